"""Train, attack, prune by cooperative coevolution, shrink, report."""

import sys

from ccsrp_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
