"""Every public function that takes images, called with a split that may be wrong."""

import jax
import numpy as np

import ccsrp_jax as cc
from ccsrp_jax.attacks import ThreatModel
from ccsrp_jax.networks import cost
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.problem import Problem
from ccsrp_jax.robustness import Evaluator, attack_all, build_suite, gradient_sources, smoothing

KEY = jax.random.key(0)
NETWORK = cc.plain((4, "A", 4), (8, 8, 1), 10, time_steps=2, mean=(0.3,), std=(0.4,))
CLASSIFIER, MASKS = cc.Classifier(NETWORK), cc.masks.ones(NETWORK)
ATTACK, SMOOTHING = cc.PGD(0.1, 1), cc.Smoothing(0.1, 2, 2)
SEARCH, RECIPE = cc.Search(population=2, generations=1), cc.Recipe(epochs=1, batch_size=4)


def sound() -> cc.Split:
    random = np.random.default_rng(0)
    images = random.uniform(size=(10, 8, 8, 1)).astype(np.float32)
    return cc.Split(images, np.arange(10, dtype=np.int32))


def _attacked(classifier, state, split, key):
    evaluator = Evaluator(classifier, state, split)
    sources, threat = gradient_sources(classifier, state), ThreatModel("linf", 0.1)
    suite = build_suite("pgd", threat, sources)
    return attack_all(evaluator, suite, sources, key, threat=threat)


# (classifier, variables, split, key) -> the call
WITH_LABELS = {
    "train": lambda c, v, s, k: cc.train(k, c, v, MASKS, s, RECIPE),
    "correct": lambda c, v, s, k: cc.correct(c, (v, None), s),
    "evaluate": lambda c, v, s, k: cc.evaluate(c, (v, None), s, eps=0.1, key=k, suite="pgd"),
    "attack_all": lambda c, v, s, k: _attacked(c, (v, None), s, k),
    "search_round": lambda c, v, s, k: cc.search_round(k, c, v, MASKS, s, cc.PGD(0.1, 1), SEARCH),
    "make_task": lambda c, v, s, k: cc.make_task(c, v, MASKS, "conv1", s, s, key=k),
    "make_task, attacked": lambda c, v, s, k: cc.make_task(
        c, v, MASKS, "conv1", s, None, attack=cc.PGD(0.1, 1), key=k
    ),
    "Problem": lambda c, v, s, k: Problem(c, v, s, s, Target("macs", 0.5), RECIPE, cc.PGD(0.1, 1)),
}
ATTACKS = {
    "PGD": lambda c, v, s, k: cc.PGD(0.1, 1)(c, (v, None), *s, k),
    "PGD restarts": lambda c, v, s, k: cc.PGD(0.1, 1, restarts=2)(c, (v, None), *s, k),
    "APGD": lambda c, v, s, k: cc.APGD(0.1, 1)(c, (v, None), *s, k),
    "SAPGD": lambda c, v, s, k: cc.SAPGD(0.1, 1)(c, (v, None), *s, k),
    "Square": lambda c, v, s, k: cc.Square(0.1, 1)(c, (v, None), *s, k),
}
WITH_LABELS |= ATTACKS
IMAGES_ONLY = {
    "predict": lambda c, v, s, k: cc.predict(c, (v, None), s[0]),
    "certify": lambda c, v, s, k: cc.certify(c, (v, None), s[0], k, cc.Smoothing(0.1, 2, 2)),
    "smoothing.predict": lambda c, v, s, k: smoothing.predict(
        c, (v, None), s[0], k, cc.Smoothing(0.1, 2, 2)
    ),
    "Noise": lambda c, v, s, k: cc.Noise(0.1)(c, (v, None), s[0], None, k),
    "corrupt": lambda c, v, s, k: cc.corrupt(s[0], "fog", 1, k),
    "latency_ms": lambda c, v, s, k: cost.latency_ms([(c, (v, None))], s[0], 1),
    "synops": lambda c, v, s, k: cost.synops(NETWORK, v, s[0]),
}
ENTRIES = WITH_LABELS | IMAGES_ONLY
FREE_OF_SHAPE = ("Noise", "corrupt")  # they do not ask the network
WITHOUT_KEY = ("correct", "predict", "Problem", "latency_ms", "synops")


class Tensor:
    """As another library's tensor that has to be detached first."""

    def __init__(self, values):
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, "float32"

    def __array__(self, *_, **__):
        raise RuntimeError("can't call numpy() on a tensor that requires grad")

    def __iter__(self):
        raise TypeError("iteration over a tensor")


def wrong_types() -> dict[str, tuple]:
    """By name: entries, split, and what else is wrong."""
    images, labels = sound()
    pairs = [name for name in WITH_LABELS if name not in ATTACKS]
    return {
        "a dict": (pairs, {"images": images, "labels": labels}),
        "images alone": (pairs, images),
        "a data set": (pairs, cc.load_data("digits")),
        "nothing": (pairs, None),
        "tensors": (ENTRIES, cc.Split(Tensor(images), labels)),
        "labels as floats": (WITH_LABELS, cc.Split(images, labels.astype(np.float32))),
        "too few labels": (WITH_LABELS, cc.Split(images, labels[:4])),
        "too many labels": (WITH_LABELS, cc.Split(images[:4], labels)),
        "one-hot labels": (WITH_LABELS, cc.Split(images, np.eye(10)[labels])),
        "text": (ENTRIES, cc.Split("images", labels)),
        "a dict of images": (ENTRIES, cc.Split({"x": images}, labels)),
        "ragged lists": (ENTRIES, cc.Split([[1.0], [1.0, 0.0]], labels)),
        "no channels": (ENTRIES, cc.Split(images[..., 0], labels)),
        "int64 pixels": (ENTRIES, cc.Split((images * 255).astype(int), labels)),
    }


def wrong_masks(variables: dict) -> dict[tuple, str]:
    """What entries say to masks, candidates and suites that are none."""
    split, found = sound(), {}
    task = cc.make_task(CLASSIFIER, variables, MASKS, "conv1", split, split)
    for what, masks in {
        "of another group": {"head": np.ones(4)},
        "of another width": {"conv1": np.ones(5)},
        "a number": {"conv1": 1},
        "an array": np.ones(4),
    }.items():
        state = variables, masks
        for name, call in {
            "correct": lambda state=state: cc.correct(CLASSIFIER, state, split),
            "PGD": lambda state=state: ATTACK(CLASSIFIER, state, *split, KEY),
            "evaluate": lambda state=state: cc.evaluate(
                CLASSIFIER, state, split, eps=0.1, key=KEY, suite="pgd"
            ),
            "train": lambda state=state: cc.train(KEY, CLASSIFIER, *state, split, RECIPE),
            "search_round": lambda state=state: cc.search_round(
                KEY, CLASSIFIER, *state, split, ATTACK, SEARCH
            ),
            "compact": lambda state=state: cc.compact(NETWORK, *state),
        }.items():
            found[f"masks {what}", name] = said_by(call)
    for masks in (np.full(4, 0.5), np.full(4, np.nan), np.zeros(4)):
        arguments = CLASSIFIER, variables, {"conv1": masks}, split, RECIPE
        found[f"masks of {masks}", "train"] = said_by(cc.train, KEY, *arguments)
    for members in (np.ones(4), np.ones((2, 5)), np.full((1, 4), 0.5), np.full((1, 4), 2), "ab"):
        found[f"members {members}", "score"] = said_by(cc.score, task, members)
    return found


def wrong_numbers(variables: dict) -> dict[tuple, str]:
    """What entries say to sizes, suites and corruptions that are none."""
    split, state, found = sound(), (variables, None), {}
    for value in (0, -1, 2.5, "4", None, np.nan, True):
        for name, call in {
            "correct": lambda n: cc.correct(CLASSIFIER, state, split, batch_size=n),
            "votes": lambda n: cc.correct(CLASSIFIER, state, split, votes=n),
            "certify": lambda n: cc.certify(
                CLASSIFIER, state, split[0], KEY, SMOOTHING, batch_size=n
            ),
            "population": lambda n: cc.make_task(
                CLASSIFIER, variables, MASKS, "conv1", split, split, population=n
            ),
            "audit_images": lambda n: _assessed(state, audit_images=n),
            "repeats": lambda n: cost.latency_ms([(CLASSIFIER, state)], split[0], n),
            "severity": lambda n: cc.corrupt(split[0], "jpeg", n, KEY),
        }.items():
            found[f"size {value!r}", name] = said_by(call, value)
    for option in (
        *({"suite": ["pgd"]}, {"suite": [cc.PGD()]}, {"natural": ["fog"]}, {"samples": 0}),
        *({"natural": [("fog", "3")]}, {"eps": "8/255"}, {"eps": None}, {"norm": 2}),
    ):
        found[str(option), "evaluate"] = said_by(lambda option=option: _assessed(state, **option))
    return found


def _assessed(state: tuple, **options) -> cc.Assessment:
    options = {"eps": 0.1, "key": KEY, "suite": "pgd"} | options
    return cc.evaluate(CLASSIFIER, state, sound(), **options)


def said_by(call, *arguments) -> str:
    """The error's sentence, or what came in its place."""
    try:
        call(*arguments)
    except cc.InputError as error:
        return str(error)
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}: {error}"
    return "ACCEPTED"


def check_types() -> None:
    """Fails if a wrong type passes an entry, or ends in another error than `InputError`."""
    variables, found = cc.init(KEY, NETWORK), {}
    for what, (entries, split) in wrong_types().items():
        for name in entries:
            found[what, name] = said_by(ENTRIES[name], CLASSIFIER, variables, split, KEY)
    for key in (0, "0", np.zeros(3), jax.random.split(KEY)):
        for name in ENTRIES:
            if name not in WITHOUT_KEY:
                found[f"key {key}", name] = said_by(
                    ENTRIES[name], CLASSIFIER, variables, sound(), key
                )
    for wrong in (NETWORK, None, {"logits": 0}):
        for name in ENTRIES:
            if name not in (*FREE_OF_SHAPE, "synops"):
                found[f"classifier {type(wrong)}", name] = said_by(
                    ENTRIES[name], wrong, variables, sound(), KEY
                )
    found |= wrong_masks(variables) | wrong_numbers(variables)
    for state in (variables, (variables["params"], None), None):
        found["state", str(type(state))] = said_by(cc.correct, CLASSIFIER, state, sound())
    bad = {case: said for case, said in found.items() if said.startswith(("TRACE", "ACCEPT"))}
    assert not bad, "\n".join(f"{case}: {said}" for case, said in bad.items())
    assert all("\n" not in said and said[-1] in ".?" for said in found.values()), found
