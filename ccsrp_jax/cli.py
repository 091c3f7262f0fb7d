"""The command `ccsrp`. Its subcommands are loaded when they are used, so that help is immediate."""

import importlib
import sys
from collections.abc import Sequence

from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.interruption import ended

__all__ = ["COMMANDS", "guard", "main"]

# each is a module of `ccsrp_jax.commands` with a function `main(flags, prog) -> exit status`
COMMANDS = {
    "run": "from a data set to a compact, robust network: train, prune, report",
    "robustness": "attack a saved network, audit the attacks, corrupt and certify",
    "compare": "prune the network of a run by many methods, at equal budgets",
    "rank": "rank the methods of several comparisons",
    "export": "write a saved network in the format of other tools",
    "prepare": "download a TFDS data set (needs TensorFlow)",
    "info": "what is in a saved network or in the directory of a run",
    "version": "versions of this library and of what it uses, and devices",
}
HELP = f"""\
usage: ccsrp COMMAND [FLAGS]

Robust pruning of spiking neural networks by cooperative coevolution.

{"".join(f"  {name:<12}{text}" + chr(10) for name, text in COMMANDS.items())}
`ccsrp COMMAND --help` lists the flags of a command. The first steps:

  ccsrp run                                  digits, in minutes on a laptop
  ccsrp info runs/latest
  ccsrp robustness runs/latest/pruned.safetensors --suite standard
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand with its flags; returns the exit status.

    Flags alone are those of `run`, which was the only command once.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    name, flags = ("run", args) if args[0].startswith("-") else (args[0], args[1:])
    if args[0] == "--version":
        name, flags = "version", args[1:]
    if name not in COMMANDS:
        return guard(lambda: _refuse(name))
    with ended("interrupted before the run began; start it again."):
        command = importlib.import_module(f"ccsrp_jax.commands.{name}")
    return command.main(flags, prog=f"ccsrp {name}")


def _refuse(name: str) -> None:
    raise InputError(f"{unknown('command', name, COMMANDS)} See ccsrp --help.")
