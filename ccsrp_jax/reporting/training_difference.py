"""Whether the dense and the pruned network of a run were trained alike, in words."""

from typing import Any

from ccsrp_jax.reporting.run_summary import Row, format_number

# What fine-tuning has a value of its own for, without being another kind of training.
SCHEDULE = {"epochs", "clean_epochs", "learning_rate"}
UNKNOWN = (
    "How the dense network was trained is not recorded, so a difference between the networks may "
    "come from their training as well as from pruning."
)


def training_difference(config: Row, summary: Row) -> str:
    """A sentence on how the pruned network's training differed from the dense one's, or "".

    The length of fine-tuning and its learning rate do not count.

    Args:
      config: settings of the run.
      summary: of the run; its `training` has the recipes of the dense network, if they are known,
        and of fine-tuning.
    """
    if summary.get("chosen_round") == 0 or not summary.get("pruned"):
        return ""
    recorded = summary.get("training")
    if recorded is None:  # a run of an earlier version
        recorded = _recipes(config)
    dense, tuned = recorded.get("dense"), recorded.get("finetune") or {}
    if not tuned.get("epochs"):
        return ""
    if not dense:
        return UNKNOWN
    before, after = any(map(_is_adversarial, dense)), _is_adversarial(tuned)
    if after and not before:
        return (
            "Their training differed: the pruned network was fine-tuned on adversarial images, and "
            "the dense one was trained on clean images only, so the difference in robust accuracy "
            "is not due to pruning alone."
        )
    if before and not after:
        return (
            "Their training differed: the pruned network was fine-tuned on clean images, and the "
            "dense one was trained on adversarial ones, so the difference in robust accuracy is "
            "not due to pruning alone."
        )
    ignored = SCHEDULE if after else SCHEDULE | {"adversarial"}  # set, but no epoch has it
    names = [name for name in dense[-1] if name in tuned and name not in ignored]
    changed = [
        f"{name.replace('_', ' ')} {_text(tuned[name])} (dense: {_text(dense[-1][name])})"
        for name in names
        if tuned[name] != dense[-1][name]
    ]
    return f"Their training differed: {', '.join(changed)}." if changed else ""


def _recipes(config: Row) -> Row:
    """The recipes of earlier versions' runs, which had one recipe; nothing if they loaded a
    network or recorded none."""
    training = config.get("training")
    if config.get("dense"):
        return {"finetune": training}
    if not isinstance(training, dict):
        return {}
    tuned = training | {"clean_epochs": 0, "epochs": training.get("finetune_epochs")}
    return {"dense": [training], "finetune": tuned}


def _is_adversarial(recipe: Row) -> bool:
    """Whether an epoch of the recipe attacks its images."""
    if not recipe.get("adversarial"):
        return False
    mixes = bool(recipe.get("trades")) or recipe.get("clean_weight", 0) < 1
    return mixes and recipe.get("epochs", 1) > recipe.get("clean_epochs", 0)


def _text(value: Any) -> str:
    if isinstance(value, dict):  # an attack
        steps = format_number(value.get("steps"), "d")
        return (
            f"PGD {value.get('norm')} eps {format_number(value.get('eps'), '.4g')}, {steps} steps"
        )
    return str(value)
