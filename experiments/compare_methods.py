r"""Compares every pruning method on one trained network, at equal budgets.

    python experiments/ccsrp.py --rounds 0 --run-dir runs/dense
    python experiments/compare_methods.py runs/dense

The first command trains the network; the second prunes it with every method, for every target and
seed. All methods have the same images and gradient steps to train weights; what they compute in
addition, to decide what is pruned, is reported as search. Every cell of the table is a file, so the
same command resumes where it was interrupted, and commands with different --seeds or --methods may
share a directory and run at the same time. `methods.json`, `curves.png` and `index.html` are
made from all cells that exist; --only-report makes them without computing any. `networks/` has
the pruned networks, for `experiments/robustness.py`.

Run so far, on two cores with one command on each, so that seconds are rough:

  digits   RUN --targets 0.5 0.25: every method, 3 seeds, in about two hours
  mnist    RUN --targets 0.5 0.25 --epochs 4 --train-images 1500 --test-images 300: methods that
           remove filters, 3 seeds, and 4 of them 5; the others at 0.5; in 3 1/2 hours. RUN is
           `--dataset mnist --model medium --width 0.5 --train-images 4000 --search-images 300
           --test-images 500 --rounds 0 --attack.eps 0.1 --training.epochs 10
           --training.clean-epochs 2 --training.batch-size 64`
  cifar10  RUN --targets 0.5 0.25 --epochs 3 --train-images 2000 --search-images 300
           --test-images 500: every method, 1 seed, in two hours; RUN is configs/cifar10.toml
  digits-1, digits-2, cifar10-1: the same with --seed 1 or 2 of the main job, which gives other
           splits and networks; methods that remove filters and one ablation, 1 seed

The tables are in results/methods, and the findings in experiments/README.md. The last three
include their dense networks, so that other methods and seeds can be added, cell by cell:

    python experiments/compare_methods.py experiments/results/methods/digits-1/dense \
        --out experiments/results/methods/digits-1 --targets 0.5 0.25 --seeds 0 --methods NAME
"""

import sys

from ccsrp_jax.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
