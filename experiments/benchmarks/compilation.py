"""Number of programs that a CCSRP run compiles, and the time it takes.

    python experiments/benchmarks/compilation.py [--model vgg16 --width 0.125]

Runs two rounds of search with the preset `faithful` and fewer generations on random images, and
records the number of programs by name, and the seconds of compilation and search. The programs do
not depend on widths, images or generations, so a narrow network is enough. Then the same in a
second process, which uses the persistent cache of the first. Writes results/compilation.json.

On two cores (jax 0.10.2), vgg16 (14 groups): 93 programs in the first round, including 14 prefixes
and 14 scorings; none in the second. Compilation takes 21 s of the first round's 31 s, or 2 s of
14 s with the cache of an earlier run. A round that compiles nothing takes 4 s.

The script fails if scoring is traced more than once for a group.
"""

import argparse
import dataclasses
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter

import chex
import jax
import numpy as np

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils import compilation, devices
from common import parser, write


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", choices=zoo.MODELS, default="vgg16")
    flags.add_argument("--width", type=float, default=1 / 8)
    flags.add_argument("--cache", help="(set by the script) folder of the persistent cache")
    options = flags.parse_args()
    if options.cache:
        compilation.enable_persistent_cache(options.cache)
        print(json.dumps(search(options)))
        return
    record = {"model": options.model, "width": options.width, **devices.machine()}
    with tempfile.TemporaryDirectory() as cache:
        again = [sys.executable, __file__, *sys.argv[1:], "--cache", cache]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        for name in ("first_run", "second_run"):
            done = subprocess.run(again, check=True, stdout=subprocess.PIPE, env=environment)
            record[name] = json.loads(done.stdout)
            print(name, json.dumps(record[name]["rounds"]))
    write(options.out, "compilation", record)


def search(options: argparse.Namespace) -> dict:
    """Runs two rounds; what each compiled."""
    architecture = zoo.build(options.model, (32, 32, 3), 10, width=options.width)
    variables = zoo.init(jax.random.key(0), architecture)
    random, current = np.random.default_rng(0), masks.ones(architecture)
    images = Split(
        random.uniform(size=(32, 32, 32, 3)).astype(np.float32),
        random.integers(0, 10, 32).astype(np.int32),
    )
    # the second round takes the programs of the first
    limited = chex.assert_max_traces(inspect.unwrap(fitness.score_members), n=len(current))
    fitness.score_members = jax.jit(limited, static_argnums=(0, 1), static_argnames="mesh")
    settings, rounds = dataclasses.replace(PRESETS["faithful"], generations=2), []
    for number in (1, 2):
        started = time.perf_counter()
        with compilation.count_compilations() as compiled:
            found = search_round(
                jax.random.fold_in(jax.random.key(1), number),
                Classifier(architecture),
                variables,
                current,
                images,
                PGD(2 / 255, 2),
                settings,
                batch_size=32,
                mesh=devices.mesh(),
            )
        current = found.masks
        by_name = Counter(name for name, _ in compiled.programs)
        rounds.append(
            {
                "seconds": time.perf_counter() - started,
                "compile_seconds": compiled.seconds,
                "programs": len(compiled.programs),
                "scoring": compiled.count("score_members"),
                "prefixes": compiled.count("shared_prefix"),
                "by_name": dict(by_name.most_common()),
            }
        )
    return {"groups": len(current), "rounds": rounds}


if __name__ == "__main__":
    main()
