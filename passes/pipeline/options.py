"""The options of a pass: the keyword parameters of its constructor, and nothing else.

Their types are the annotations, their meaning is what the docstring says under `Args:`. So a pass
of anybody's can be configured, listed and checked without being told about any of this.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError, nearest

SUPPLIED = frozenset({"samples", "runtime", "seed", "progress", "plan"})
"""Parameters that the pipeline fills in: they are no options."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ENTRY = re.compile(r"(\w+)(?: \([^)]*\))?: (.*)")
# What annotations commonly name and modules import for type checkers only.
_WELL_KNOWN = {
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
    **{name: getattr(collections.abc, name) for name in ("Callable", "Mapping", "Sequence")},
    "Path": Path,
}
_SINGLE = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


@dataclass(frozen=True)
class PassOption:
    """One option of a pass.

    Attributes:
        name: as in the constructor.
        kind: its type; Any where that is not known.
        default: value when it is not given; `inspect.Parameter.empty` when it has to be.
        help: what the docstring says of it.
    """

    name: str
    kind: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty

    @property
    def expects(self) -> str:
        """What its value may be, in words."""
        return _described(self.kind)


def options_of(factory: Callable[..., Any], skip: int = 0) -> tuple[PassOption, ...]:
    """Read the options of a pass.

    Args:
        factory: its class, or a function. A class may name another function whose parameters its
            options are, as `options_from`, and those that are none as `not_options`.
        skip: how many positional parameters come first that are no options.
    """
    described = getattr(factory, "options_from", factory)
    left_out = SUPPLIED | getattr(factory, "not_options", frozenset())
    try:
        parameters = list(inspect.signature(described).parameters.values())
    except ValueError:  # written in C
        return ()
    first = [one for one in parameters if one.kind in _POSITIONAL][:skip]
    helps = _documented(described)
    return tuple(
        PassOption(one.name, _kind(one, described), one.default, helps.get(one.name, ""))
        for one in parameters
        if one.kind in _NAMED and one not in first and one.name not in left_out
    )


def check_options(
    options: Sequence[PassOption], given: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Compare what is given with what there is.

    Args:
        options: those of the pass.
        given: value by name; "-" in a name is as good as "_".
        where: what messages begin with.

    Raises:
        InputError: for an unknown name (with the nearest valid one), a value of another type (with
            what was expected), or an option that is missing.
    """
    known = {option.name: option for option in options}
    checked = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{where}: unknown option {key!r}{nearest(name, known)}")
        if name in checked:
            raise InputError(f"{where}: the option {name!r} is given twice")
        option = known[name]
        fitting = _conformed(value, option.kind)
        if fitting is _UNFIT:
            raise InputError(f"{where}: {name} is {option.expects}, not {value!r}")
        checked[name] = fitting
    missing = [one for one in options if one.required and one.name not in checked]
    if missing:
        one = missing[0]
        raise InputError(f"{where}: needs the option {one.name!r} ({one.expects})")
    return checked


class _Unfit:
    """What `_conformed` returns for values that do not fit."""


_UNFIT = _Unfit()


def _conformed(value: Any, kind: Any) -> Any:
    """The value as its type wants it: a whole number is also a number, a list also a tuple."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, str):
        return value
    if origin is typing.Literal:
        return value if value in arguments else _UNFIT
    if origin in (typing.Union, types.UnionType):
        fitting = (_conformed(value, one) for one in arguments)
        return next((one for one in fitting if one is not _UNFIT), _UNFIT)
    if kind is type(None):
        return value if value is None else _UNFIT
    container = origin or kind
    if container in (list, tuple, collections.abc.Sequence):
        return _sequence(value, container, arguments)
    if container in (dict, collections.abc.Mapping):
        return _mapping(value, arguments)
    if container is collections.abc.Callable:
        return value if callable(value) else _UNFIT
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in _SINGLE:
        exact = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        return value if exact else _UNFIT
    return value if not isinstance(kind, type) or isinstance(value, kind) else _UNFIT


def _sequence(value: Any, container: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return _UNFIT
    inner = [_conformed(one, arguments[0] if arguments else Any) for one in value]
    if any(one is _UNFIT for one in inner):
        return _UNFIT
    return tuple(inner) if container is tuple else inner


def _mapping(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, Mapping):
        return _UNFIT
    key, kind = arguments or (Any, Any)
    pairs = {_key: _conformed(one, kind) for _key, one in value.items()}
    fits = all(_conformed(one, key) is not _UNFIT for one in pairs)
    return pairs if fits and all(one is not _UNFIT for one in pairs.values()) else _UNFIT


def _described(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(one) for one in arguments if one is not type(None))
    container = origin or kind
    if container in (list, tuple, collections.abc.Sequence):
        return f"a list of {_described(arguments[0])}" if arguments else "a list"
    if container in (dict, collections.abc.Mapping):
        return f"a mapping of {_described(arguments[1])}" if arguments else "a mapping"
    if container is collections.abc.Callable:
        return "a function"
    return "any value" if kind is Any else str(_SINGLE.get(kind) or getattr(kind, "__name__", kind))


def _kind(parameter: inspect.Parameter, described: Callable[..., Any]) -> Any:
    """The type of a parameter, Any for none and for one whose names cannot be found."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    known = _WELL_KNOWN | vars(sys.modules.get(described.__module__, typing))
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(holder, known)["it"]
    except Exception:  # names that are imported for type checkers only
        return Any


def _documented(described: Callable[..., Any]) -> dict[str, str]:
    """What a Google-style docstring says of each parameter under `Args:`."""
    lines = (inspect.getdoc(described) or "").splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and len(line) - len(line.lstrip()) == 4:
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
