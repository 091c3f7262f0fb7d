"""Downloads and prepares a TFDS data set, which needs TensorFlow; reading it does not.

On the command line: `ccsrp prepare cifar10 DATA_DIR`.
"""

import importlib.util
import sys

from ccsrp_jax.data import tfds
from ccsrp_jax.data.datasets import READERS
from ccsrp_jax.utils.errors import InputError, reason


def prepare(name: str, data_dir: str | None = None) -> None:
    """Downloads a TFDS data set and writes it in the format that `load` reads.

    A data set that has already been prepared is left as it is, in whatever format. Needs
    TensorFlow (optional dependency `prepare`).

    Args:
      name: of a TFDS data set, as `cifar10` or `imagenette/160px-v2`.
      data_dir: folder to write to; by default that of TFDS.

    Raises:
      InputError: TensorFlow is missing, TFDS does not have the data set or cannot prepare it.
    """
    if name == "nmnist":
        raise InputError(
            "nmnist is no TFDS data set: unpack its official archives, Train.zip and Test.zip, "
            "into the folder that you give as --data-dir."
        )
    if name in READERS or name.endswith(".npz"):
        raise InputError(f"{name} needs no preparing: use it as the data set directly.")
    tfds.check_name(name, READERS)
    root = tfds.data_folder(data_dir)
    prepared = tfds.newest_version(name, root)
    if prepared:
        tfds.check_format(name, prepared)
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"preparing {name} needs TensorFlow, which is not installed: run "
            "`pip install 'ccsrp-jax[prepare]'` first (reading the data set afterwards does not "
            "need it)."
        )
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=root, file_format=tfds.FILE_FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # of any type: network, disk, checksum, manual downloads
        raise InputError(
            f"TFDS could not prepare {name} in {root} ({reason(error)}): check the network, the "
            "disk and the page of the data set in the TFDS catalogue, then try again."
        ) from error


def main(args: list[str]) -> int:
    """Runs `prepare NAME [DATA_DIR]` and returns the exit status."""
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
