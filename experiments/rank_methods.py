"""Methods over several networks: mean ranks, and how often the default is ahead.

    python experiments/rank_methods.py experiments/results/methods/*/methods.json

Reads the tables of `experiments/compare_methods.py`, one for each network, and takes networks
instead of seeds as the sample: seeds show the variance of fine-tuning and search on one network,
not the variance between networks. Takes a second. Writes networks.json; the findings are in
experiments/README.md.
"""

import sys

from ccsrp_jax.commands.rank import main

if __name__ == "__main__":
    sys.exit(main())
