"""TFDS sets: preparing one, which needs TensorFlow, and reading one, which does not.

On the command line: `python -m ccsrp_jax.data.prepare cifar10 DATA_DIR`.
"""

import importlib.util
import sys

from ccsrp_jax.data.tfds import _check_name, _root
from ccsrp_jax.utils.errors import InputError, reason


def prepare(name: str, data_dir: str | None = None) -> None:
    """Downloads a TFDS set and writes it as `load` reads it; no work where that is done.

    Needs TensorFlow, the extra `prepare`.

    Args:
      name: of a TFDS set, `cifar10` or `imagenette/160px-v2`.
      data_dir: where to write it; by default TFDS's own folder.

    Raises:
      InputError: TensorFlow is missing, TFDS does not know the set or cannot prepare it.
    """
    import tensorflow_datasets as tfds

    if name == "digits" or name.endswith(".npz"):
        raise InputError(f"{name} needs no preparing: give it as the data set as it is.")
    if name == "nmnist":
        raise InputError(
            "nmnist is no TFDS set: unpack its official archives, Train.zip and Test.zip, into the "
            "folder that you give as --data-dir."
        )
    _check_name(name)
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"preparing {name} needs TensorFlow, which is not installed: run "
            "`pip install '.[prepare]'` in a checkout first (reading it afterwards does without)."
        )
    root = _root(data_dir)
    try:
        tfds.builder(name, data_dir=root, file_format="array_record").download_and_prepare()
    except Exception as error:  # of any type: network, disk, checksum, manual downloads
        raise InputError(
            f"TFDS could not prepare {name} in {root} ({reason(error)}): check the network, the "
            "disk and the set's page in the TFDS catalogue, then try again."
        ) from error


def main(args: list[str]) -> int:
    """Runs `prepare NAME [DATA_DIR]`; returns the exit status."""
    if len(args) not in (1, 2) or args[0].startswith("-"):
        print("usage: python -m ccsrp_jax.data.prepare NAME [DATA_DIR]", file=sys.stderr)
        return 2
    try:
        prepare(*args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
