import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ccsrp_jax.utils import compilation

# compiles a large program, and says how many came out of the folder
WORK = """
import sys
import jax, jax.numpy as jnp
from ccsrp_jax.utils import compilation

found = []
jax.monitoring.register_event_listener(lambda event, **about: found.append(event))
compilation.enable_persistent_cache(*sys.argv[1:])

@jax.jit
def long(x):
    for i in range(100):
        x = jnp.sort(jnp.sin(x @ x) + i, axis=i % 2)
    return x

with compilation.count_compilations() as counted:
    long(jnp.eye(12)).block_until_ready()
assert counted.count("long") == 1
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def hits(*folder: object, **variables: str) -> int:
    """Programs that a new process finds."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    run = subprocess.run(
        [sys.executable, "-c", WORK, *map(str, folder)],
        env=kept | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def programs(folder) -> set[str]:
    """Those of the large one; small ones may be kept or not, as they took."""
    return {path.name for path in folder.rglob("jit_long*-cache")}


def test_each_program_is_counted_once():
    @jax.jit
    def fresh(x):
        return x * 2 + 1

    a, b = jnp.ones(3), jnp.ones(4)
    with compilation.count_compilations() as counted:
        fresh(a)
        assert counted.count("fresh") == 1
        fresh(a + 1)
        assert counted.count("fresh") == 1
        fresh(b)  # another shape is another program
    assert counted.count("fresh") == 2
    assert counted.count("fres") == counted.count("") == 0
    assert counted.seconds == pytest.approx(sum(seconds for _, seconds in counted.programs))
    assert counted.seconds > 0


def test_counting_ends_with_its_context():
    @jax.jit
    def later(x):
        return x - 7

    with pytest.raises(RuntimeError), compilation.count_compilations() as counted:
        raise RuntimeError
    with compilation.count_compilations() as other:
        later(jnp.ones(5))
    assert counted.programs == [] and other.count("later") == 1


def test_a_count_within_a_count():
    @jax.jit
    def inner(x):
        return x - 8

    with compilation.count_compilations() as outer:
        with compilation.count_compilations() as within:
            inner(jnp.ones(6))
        jax.jit(lambda x: x - 9)(jnp.ones(6))
    assert within.count("inner") == outer.count("inner") == 1
    assert len(outer.programs) > len(within.programs)


def test_programs_are_kept_for_the_next_process(tmp_path):
    folder = tmp_path / "kept"
    assert hits(folder) == 0
    kept = programs(folder)
    assert len(kept) == 1
    assert hits(folder) >= 1
    assert programs(folder) == kept


def test_the_users_cache_is_the_default_place(tmp_path):
    hits(XDG_CACHE_HOME=str(tmp_path))
    assert programs(tmp_path / "ccsrp_jax")


def test_the_environment_says_where_instead(tmp_path, monkeypatch):
    """Or, where it is empty, that nothing is kept."""
    before = jax.config.jax_compilation_cache_dir
    for place in ("", str(tmp_path / "there")):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", place)
        compilation.enable_persistent_cache(tmp_path / "here")
        assert jax.config.jax_compilation_cache_dir == before
