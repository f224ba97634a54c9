"""Self-contained HTML pages: templates, style and script in one file, nothing from elsewhere.

Names in models are hostile input: everything a template prints is escaped and without control
characters, and the page's own content policy lets no script run but the one it was written with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from onnxprune.report.charts import chart_style
from onnxprune.report.figures import (
    count,
    decimals,
    durations,
    fine_percent,
    milliseconds,
    percent,
    printable,
    share,
    significant,
)

if TYPE_CHECKING:
    from jinja2 import Environment

_NAME = 36
"""Letters of a name in a narrow column."""

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        template: name of a file in `templates/`.
        content: what it prints; markup has to be `markupsafe.Markup`, all else is escaped.
    """
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            {
                **content,
                "policy": policy,
                "script": Markup(script),
                "style": Markup(_read("page.css") + chart_style()),
                "version": version("onnxprune"),
            }
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control,
    )
    texts = (count, decimals, durations, fine_percent, milliseconds, percent, share, significant)
    environment.filters |= {text.__name__: text for text in texts}
    environment.filters["shortened"] = lambda name: printable(name, _NAME)
    return environment


def _without_control(value: Any) -> Any:
    """What a template prints, names without control characters."""
    return printable(value) if type(value) is str else value


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
