"""From a data set to a compact, robust spiking network, in one command.

python experiments/ccsrp.py                       # digits, as `make run` does
python experiments/ccsrp.py --preset faithful     # the ancestor's search
python experiments/ccsrp.py --config experiments/configs/cifar10.toml --data-dir DIR
"""

import sys

from ccsrp_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
