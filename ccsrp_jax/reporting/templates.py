"""Self-contained HTML pages from the templates of this package."""

import base64
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined


def render(template: str, filters: Mapping[str, Callable], values: Mapping[str, Any]) -> str:
    """Fills in a template of this package; all text is escaped.

    Args:
      template: file name.
      filters: functions that the template may apply, by name.
      values: what the template refers to, by name.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= filters
    source = resources.files("ccsrp_jax.reporting").joinpath(template).read_text("utf-8")
    return environment.from_string(source).render(values)


def base64_text(data: bytes) -> str:
    """An image as text, to be embedded in a page."""
    return base64.b64encode(data).decode()
