"""Any file of settings gives settings or one error, whatever names and values it has."""

import json
import math
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.settings_file import field_kinds
from ccsrp_jax.utils.console import one_line
from ccsrp_jax.utils.errors import InputError

KINDS = field_kinds(Config)
GROUPS = [name for name in KINDS if KINDS[name] is dict]
NAMES = st.sampled_from(sorted({part for name in KINDS for part in name.split(".")}))
INTEGERS = st.integers() | st.sampled_from([10**12, 10**30, 10**400, -(2**63), 2**64, 0, 1])
NUMBERS = INTEGERS | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
ANY_TABLE = st.dictionaries(NAMES | st.text(max_size=10), VALUES, max_size=4)
FEW = effort(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = effort(FEW, max_examples=20)  # most of these are parsed to their end


def suitable(annotation) -> st.SearchStrategy:
    """Values of a setting's type, most of them out of range or at its ends."""
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    kinds = {bool: st.booleans(), int: INTEGERS | st.integers(0, 9), str: st.text(max_size=9)}
    kinds[float] = st.floats(0, 1) | NUMBERS
    return kinds.get(annotation, st.none() | st.integers(1, 9))


TYPED_TABLE = st.dictionaries(
    st.sampled_from([name for name in KINDS if name not in GROUPS]), st.none(), max_size=3
).flatmap(lambda names: st.fixed_dictionaries({name: suitable(KINDS[name]) for name in names}))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("settings") / "s"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, file):
    monkeypatch.chdir(file.parent)  # where there are no runs


def parsed(path) -> None:
    try:
        config = parse(["--config", str(path)])
    except InputError as error:
        message = one_line(str(error))
        assert "\n" not in message and 20 < len(message) < 3000
    else:
        assert isinstance(config, Config)
        again = path.with_name("again.json")
        again.write_text(json.dumps(settings(config)))
        assert settings(parse(["--config", str(again)])) == settings(config)


@FEW
@given(ANY_TABLE | VALUES)
@example({"resume": True, "run_dir": "a\0b"})
@example({"resume": True, "run_dir": "\ud800"})
@example({"config": "s.json"})
@example({"\ud800": 1, "dataset": "\ud800"})
def test_any_json(file, table):
    path = file.with_suffix(".json")
    path.write_text(json.dumps(table))
    parsed(path)


@FEWER
@given(TYPED_TABLE)
@example({"rounds": 10**400, "width": 10**400})
@example({"neuron.tau": math.inf})
@example({"resume": True, "run_dir": "~nosuchuser/x"})
def test_json_with_values_of_the_right_types(file, table):
    path = file.with_suffix(".json")
    path.write_text(json.dumps(table))
    parsed(path)


def toml(value) -> str:
    """A value as TOML has it; None as an empty string."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(value or "").replace("\x7f", "\\u007f")


@FEW
@given(ANY_TABLE | TYPED_TABLE)
def test_any_toml(file, table):
    path = file.with_suffix(".toml")
    rows = (f"{toml(key)} = {toml(value)}\n" for key, value in table.items())
    path.write_text("".join(rows))
    parsed(path)


@FEW
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore"))
)
def test_any_bytes(file, data):
    for suffix in (".toml", ".json"):
        path = file.with_suffix(suffix)
        path.write_bytes(data)
        parsed(path)
