"""Robust pruning of spiking neural networks by cooperative coevolution, in JAX.

- Networks: describe one (`Architecture`, `build`, `plain`, `residual`), run it (`Classifier`,
  `SpikingNetwork`), train it (`Recipe`, `train`), save and load it (`save`, `load`), import one
  (`from_nir`, `from_torch`) and export it (`exchange`).
- Data: `load_data` by name; `data.from_arrays` for arrays in memory.
- Attacks: `PGD`, `APGD`, `SAPGD`, `Square`, with any surrogate gradient (`gradients`).
- Robustness: evaluate a suite of attacks with an audit for masked gradients (`evaluate`), certify
  in L-infinity by intervals (`certified_accuracy`) and in L2 by smoothing (`certify`), corrupt
  images (`corrupt`).
- Pruning: score populations of filter masks (`make_task`, `score`), search them (`Search`,
  `search_round`), remove the filters (`compact`) and count the operations saved (`cost`).

Further parts are in the subpackages `data`, `networks`, `attacks`, `training`, `robustness`,
`coevolution`, `pruning`, `exchange`, `reporting`, `pipeline` and `utils`.
"""

import importlib
from typing import TYPE_CHECKING, Any

SUBPACKAGES = (
    *("attacks", "coevolution", "data", "exchange", "networks", "pipeline", "pruning"),
    *("reporting", "robustness", "training", "utils"),
)

if TYPE_CHECKING:
    from ccsrp_jax import attacks as attacks
    from ccsrp_jax import coevolution as coevolution
    from ccsrp_jax import data as data
    from ccsrp_jax import exchange as exchange
    from ccsrp_jax import networks as networks
    from ccsrp_jax import pipeline as pipeline
    from ccsrp_jax import pruning as pruning
    from ccsrp_jax import reporting as reporting
    from ccsrp_jax import robustness as robustness
    from ccsrp_jax import training as training
    from ccsrp_jax import utils as utils
    from ccsrp_jax.api import *  # noqa: F403
else:
    # PEP 562: so `ccsrp --help` answers without loading JAX
    def __getattr__(name: str) -> Any:
        if name in SUBPACKAGES:
            return importlib.import_module(f"ccsrp_jax.{name}")
        if name == "__all__" or not name.startswith("_"):
            api = importlib.import_module("ccsrp_jax.api")
            if name == "__all__" or name in api.__all__:
                return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    api = importlib.import_module("ccsrp_jax.api")
    return sorted({*globals(), *api.__all__, *SUBPACKAGES})
