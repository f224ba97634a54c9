"""The steps of a pipeline, read from YAML, JSON or Python and checked before anything runs.

    passes:
      - remove-lossless
      - prune: {target: {macs: 0.5}}
      - sparsify-weights: {pattern: "2:4", criterion: wanda}
      - my_passes.py:clean_up

Files in Python are found from the working folder. YAML is read as version 1.2 has it: 2:4 is text
and no number to the base of 60, and only true and false are truth values.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxprune.declaration import read_options
from onnxprune.errors import InputError, nearest
from onnxprune.passes.pipeline.adapters import options_of_pass
from onnxprune.passes.pipeline.registry import InstalledPass, find_pass
from onnxprune.pruning.plan import Plan

if TYPE_CHECKING:
    from yaml import SafeLoader


_KEYS = ("passes",)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)"), "-+0123456789"),
    ("tag:yaml.org,2002:float", _NUMBER, "-+.0123456789"),
)


@dataclass(frozen=True)
class Step:
    """One pass of a pipeline with its options, checked.

    Attributes:
        installed: the pass.
        options: what was set.
        where: what messages about it begin with; empty for the only pass.
        plan: what the pass planned in the run that is to be repeated; None where it is to choose.
    """

    installed: InstalledPass
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    plan: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.installed.name

    def named(self, message: object) -> str:
        """A message about the step, after what names it."""
        return f"{self.where}: {message}" if self.where else str(message)


def read_steps(source: Any) -> tuple[Step, ...]:
    """Read a pipeline.

    Args:
        source: path of a YAML or JSON file; a mapping with the key `passes`; or a sequence of
            names, of {name: options} with one key each, and of passes and functions themselves.

    Raises:
        InputError: naming what is wrong and, for unknown names, the nearest valid one.
    """
    items, where = _items(source)
    return tuple(_step(item, f"{where}: pass {n}") for n, item in enumerate(items, 1))


def planned_steps(plan: Plan) -> tuple[Step, ...]:
    """The steps of a plan.

    Raises:
        InputError: for passes or options that this onnxprune does not have.
    """
    if not plan.steps:
        return (replace(single_step("prune", {}), plan=plan.to_dict()),)
    steps = []
    for number, planned in enumerate(plan.steps, 1):
        step = _named(planned.name, planned.options, f"plan: pass {number}")
        steps.append(replace(step, plan=planned.plan))
    return tuple(steps)


def single_step(name: str, options: Mapping[str, Any]) -> Step:
    """The only step of a pipeline.

    Args:
        name: of the pass.
        options: value by name; the pass checks them. None is as good as not set, and names that
            are none of its options are left out.
    """
    installed = find_pass(name)
    known = [option for option in installed.options if options.get(option.name) is not None]
    values = {option.name: options[option.name] for option in known}
    defaults = {option.name: option.default for option in known}
    return Step(installed, {n: value for n, value in values.items() if value is not defaults[n]})


def read_description(source: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Read names and options alone, nothing of which is looked up.

    Args:
        source: as for `read_steps`, without passes and functions themselves.

    Raises:
        InputError: for anything that is no list of names and {name: options}.
    """
    items, where = _items(source)
    return [_pair(item, f"{where}: pass {n}") for n, item in enumerate(items, 1)]


def _items(source: Any) -> tuple[Sequence[Any], str]:
    """The list of a pipeline, and what messages about it begin with."""
    where = "pipeline"
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        source = _read_file(Path(source))
    if isinstance(source, Mapping):
        for key in source:
            if key not in _KEYS:
                raise InputError(f"{where}: unknown key {key!r}{nearest(str(key), _KEYS)}")
        source = source.get("passes")
    if not isinstance(source, Sequence) or isinstance(source, (str, bytes)):
        raise InputError(f"{where}: passes is a list of names or of name: options")
    if not source:
        raise InputError(f"{where}: names no pass; `onnxprune passes` lists those there are")
    return source, where


def parse_value(text: str) -> Any:
    """Read the value of one option as YAML.

    Raises:
        InputError: when it is none.
    """
    return _yaml(text, repr(text))


def _step(item: Any, where: str) -> Step:
    if isinstance(item, (str, Mapping)):
        return _named(*_pair(item, where), where)
    name = getattr(item, "__name__", type(item).__name__)
    where = f"{where} ({name})"
    try:
        found = InstalledPass(name, "", options_of_pass(item, name), "", item)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Step(found, read_options(found.options, {}, where), where)


def _pair(item: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Name and options of one entry."""
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: is a name, or name: options, not {item!r}")
    if len(item) != 1:
        raise InputError(f"{where}: is one name with its options, not {len(item)} keys")
    name, options = next(iter(item.items()))
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"{where} ({name}): options are name: value, not {options!r}")
    return str(name), options or {}


def _named(name: str, options: Mapping[str, Any], where: str) -> Step:
    try:
        found = find_pass(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    where = f"{where} ({name})"
    return Step(found, read_options(found.options, options, where), where)


def _read_file(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: is no JSON: {error}") from None
    return _yaml(text, str(path))


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" (line {place.line + 1})" if place is not None else ""
        raise InputError(
            f"{where}: is no YAML: {getattr(error, 'problem', None) or error}{line}"
        ) from None


def _loader() -> type[SafeLoader]:
    """A loader of plain data with the scalars of YAML 1.2, for which every key counts once."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands there twice", node.start_mark
                    )
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    for tag, pattern, first in _SCALARS:
        Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern.pattern})$"), list(first))
    return Loader
