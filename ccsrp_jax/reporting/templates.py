"""Self-contained HTML pages from the templates of this package."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any


def render(template: str, filters: Mapping[str, Callable], values: Mapping[str, Any]) -> str:
    """Fills in a template of this package; all text is escaped.

    The page has the style and the script of the package inline, and its content security policy
    allows that script only.

    Args:
      template: file name.
      filters: functions that the template may apply, by name.
      values: what the template refers to, by name.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # slow to import
    from markupsafe import Markup

    script = _read("page.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=FunctionLoader(_read)
    )
    environment.filters |= filters
    environment.globals |= {
        "style": Markup(_read("page.css")),
        "script": Markup(script),
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template(template).render(values)


def _read(name: str) -> str:
    return resources.files("ccsrp_jax.reporting").joinpath(name).read_text("utf-8")
