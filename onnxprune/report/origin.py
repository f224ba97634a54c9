"""How a result was made, as names and texts: files, digests, options, versions, machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.report.provenance import file_digest
from onnxprune.shares import share_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxprune.report.provenance import Provenance
    from onnxprune.study import Study

__all__ = ["machine_facts", "option_text", "origin_facts", "study_facts"]

Facts = list[tuple[str, str]]

_OWN_LINES = ("seed", "labels")
"""Options that have lines of their own."""


def origin_facts(one: Provenance | None, model_file: str | Path | None) -> Facts:
    """What a run depends on, and the files it read and wrote.

    Args:
        one: of the run; None where nothing is known.
        model_file: where the result was saved; None where it was not.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    facts: Facts = []
    if one is not None:
        facts.append(("original", _file(one.model or "in memory", one.sha256)))
    if model_file is not None:
        facts.append(("result", _file(str(model_file), file_digest(model_file))))
        data = Path(f"{model_file}.data")
        if data.is_file():
            facts.append(("its data", _file(str(data), file_digest(data))))
    if one is None:
        return facts
    facts.append(("seed", str(one.options.get("seed", 0))))
    if set_options := option_text(one.options):
        facts.append(("options", set_options))
    return [*facts, *machine_facts(one.versions, one.machine)]


def study_facts(study: Study) -> Facts:
    """What all results of a study depend on."""
    labels = study.options.get("labels")
    return [
        ("model", f"sha256 {study.model}"),
        ("samples", f"sha256 {study.samples}"),
        *([("labels", f"sha256 {labels}")] if labels else []),
        ("seed", str(study.options.get("seed", 0))),
        ("options", option_text(study.options)),
        *machine_facts(study.versions, {}),
    ]


def option_text(options: Mapping[str, Any]) -> str:
    """Options with their values, those that are empty left out."""
    shown = {name: _value(value) for name, value in options.items() if name not in _OWN_LINES}
    return ", ".join(f"{name} {text}" for name, text in shown.items() if text)


def machine_facts(versions: Mapping[str, str], machine: Mapping[str, str]) -> Facts:
    """Versions, and what they ran on."""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    ran = ", ".join(f"{name} {value}" for name, value in machine.items())
    return [("versions", listed), *([("machine", ran)] if ran else [])]


def _file(name: str, digest: str) -> str:
    return f"{name}, sha256 {digest}"


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, dict):
        return " and ".join(f"{name}={_value(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return share_text(value)
    return str(value)
