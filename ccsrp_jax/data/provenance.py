"""What a network was trained on, as its file says it, and the comparison with a data set at hand.

A test split that is drawn depends on a seed. A network that was trained with one seed has seen most
of the test images of another, so its file carries the seed and digests of both splits.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ccsrp_jax.data.division import DRAWN
from ccsrp_jax.utils.digests import sha256
from ccsrp_jax.utils.errors import InputError, shown

DIGESTS = "train_and_test_sha256"  # of both splits, before any limit on their images
CARRIED = ("name", "version", "seed", "search_fraction", DIGESTS, "search_sha256")


def describe(
    dataset: str,
    record: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    trainings: Sequence[Mapping[str, Any]] | None = None,
    **limits: int | None,
) -> dict[str, Any]:
    """The provenance of a network, as JSON-compatible data.

    Args:
      dataset: as `data.load` takes it.
      record: `Dataset.record` of the data that it was trained on.
      recipe: how it was trained, of which the digest is kept.
      trainings: recipes of the trainings that it went through, in their order, which are kept.
      limits: on the numbers of images of the splits, as `data.load` takes them.
    """
    text = json.dumps(recipe, sort_keys=True, default=repr)
    return {
        "dataset": dataset,
        **{name: record[name] for name in CARRIED},
        **limits,
        "recipe_sha256": sha256(text.encode()),
        **({} if trainings is None else {"trainings": [dict(each) for each in trainings]}),
    }


def trained_further(
    origin: Mapping[str, Any] | None, recipe: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The provenance of a network after one more training; None if it is not known."""
    if origin is None:
        return None
    before = origin.get("trainings")  # earlier versions did not record them
    further = {} if before is None else {"trainings": [*before, dict(recipe)]}
    return {**origin, **further}


def check(
    path: str, origin: Mapping[str, Any], record: Mapping[str, Any], *, also_search: bool = False
) -> None:
    """Refuses data whose splits are not those that a network was trained with.

    Args:
      path: of the network's file, for the message.
      origin: its provenance.
      record: `Dataset.record` of the data at hand.
      also_search: whether the search split matters too, as for a selection on it.

    Raises:
      InputError: they are not, or the provenance lacks what it takes to compare them.
    """
    missing = [name for name in ("dataset", *CARRIED) if name not in origin]
    if missing:
        raise InputError(
            f"{path} does not say the {', '.join(missing)} of its training data: use a copy of the "
            "file."
        )
    trained = (
        f"{path} was trained on {shown(origin['name'])}, divided with seed {shown(origin['seed'])}"
    )
    if origin[DIGESTS] != record[DIGESTS]:
        raise InputError(
            f"{trained}, and the training and test images of {record['name']} (seed "
            f"{record['seed']}) are others: give the data and the seed that it was trained with."
        )
    held_out = ("seed", "search_fraction")
    if also_search and any(origin[name] != record[name] for name in held_out):
        raise InputError(
            f"{trained} and search_fraction {shown(origin['search_fraction'])}, so it may have "
            f"been trained on images that seed {record['seed']} and search_fraction "
            f"{record['search_fraction']} hold out: give its seed and search_fraction."
        )


def is_drawn(record: Mapping[str, Any]) -> bool:
    """Whether the test split of a data set depends on the seed."""
    return DRAWN in (record["footnote"] or "")


def not_known(path: str, record: Mapping[str, Any]) -> str:
    """A warning, for a network whose file does not say what it was trained on."""
    return (
        f"warning: {path} does not say what it was trained on, and the test split of "
        f"{record['name']} is drawn, here with seed {record['seed']}: unless it was trained with "
        "that seed, it has seen most of these test images."
    )
