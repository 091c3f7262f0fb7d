"""Evaluates the robustness of a saved network: a suite of attacks, their audit, corruptions.

    python experiments/robustness.py runs/latest/pruned.safetensors
    python experiments/robustness.py NETWORK --suite standard --eps 0.0625 --images 256
    python experiments/robustness.py NETWORK --others dense=runs/latest/networks/round00.safetensors
    python experiments/robustness.py NETWORK --attacks apgd-ce:assg apgd-t:own square
    python experiments/robustness.py NETWORK --certify 0.1 --norm l2 --eps 0.5
    python experiments/robustness.py NETWORK --baseline runs/latest/networks/round00.safetensors

It writes robustness.json and robustness.png beside the network, or into --out; where these are of
another network or other settings, it writes NAME.robustness.json and .png. Repeating the command
resumes an interrupted run after its last finished attack.
"""

import sys

from ccsrp_jax.commands.robustness import main

if __name__ == "__main__":
    sys.exit(main())
