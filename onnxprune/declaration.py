"""How options are declared: once, as records that checks, --help, plans, JSON schema and docs read.

`option` declares a field of a dataclass, `declared_options` lists what a dataclass declares. Passes
declare theirs by the signature of their constructor (`passes/pipeline/options.py`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError, nearest

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

_KEY = "option"
_SIMPLE = {
    bool: ("boolean", "true or false"),
    int: ("integer", "a whole number"),
    float: ("number", "a number"),
    str: ("string", "text"),
    Path: ("string", "a path"),
}
"""Type -> its name in JSON schema, and what it expects in words."""


@dataclass(frozen=True)
class Option:
    """One option, of pruning or of a pass.

    Attributes:
        name: as in Python; the command line writes - for _.
        kind: its type; Any where it is not known.
        default: value when it is not set; `REQUIRED` when it must be.
        help: what it does, for docstrings, --help, JSON schema and reference.
        metavar: what --help calls its value; empty for yes or no.
        least: the smallest number allowed, which must then be finite; None for any.
        choices: the words allowed; empty for any.
        check: returns the value as it is used, instead of a check of the type.
        with_samples: what None stands for when there are calibration samples.
    """

    name: str
    kind: Any
    default: Any
    help: str
    metavar: str = ""
    least: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], Any] | None = None
    with_samples: Any = None

    @property
    def required(self) -> bool:
        """Whether it must be set."""
        return self.default is REQUIRED

    @property
    def expects(self) -> str:
        """What its value may be, in words."""
        return self._type().expects

    def read(self, value: Any) -> Any:
        """Return a value as its type wants it: a whole number is also a number, a list a tuple.

        Raises:
            InputError: saying what was expected.
        """
        if self.check is not None:
            return value if value is None and self.default is None else self.check(value)
        try:
            return self._type().convert(value)
        except ValueError:
            raise InputError(f"{self.name} must be {self.expects}, not {value!r}") from None

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its value."""
        plain = isinstance(self.default, (str, bool, int, float))
        default = {"default": self.default} if plain else {}
        return {"description": self.help, **self._type().schema, **default}

    def _type(self) -> _ValueType:
        return _value_type(self.kind, self.least, self.choices)


def option(default: Any, help: str, *, optional: bool = False, **declaration: Any) -> Any:
    """Declare the field of a dataclass as an option.

    Args:
        default: value of the field.
        help: as for `Option`, as are all others.
        optional: users may also leave it at None, which stands for the default.
        **declaration: metavar, least, choices, check; with_samples makes it optional too.
    """
    optional = optional or "with_samples" in declaration
    declared = Option("", Any, None if optional else default, help, **declaration)
    return dataclasses.field(default_factory=lambda: default, metadata={_KEY: declared})


def declared_options(declaring: type) -> tuple[Option, ...]:
    """Options that a dataclass declares, in the order of its fields."""
    kinds = typing.get_type_hints(declaring)
    declared = {
        field.name: field.metadata[_KEY]
        for field in dataclasses.fields(declaring)
        if _KEY in field.metadata
    }
    return tuple(
        dataclasses.replace(
            option, name=name, kind=kinds[name] | None if option.default is None else kinds[name]
        )
        for name, option in declared.items()
    )


def read_options(
    options: Sequence[Option], values: Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    """Check the values that are set.

    Args:
        options: those there are.
        values: value by name; - in a name is as good as _.
        where: what messages begin with.

    Raises:
        InputError: for an unknown name (with the nearest valid one), a value that is not allowed
            (with what was expected), or a required option that is missing.
    """
    start = f"{where}: " if where else ""
    known = {option.name: option for option in options}
    read = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{start}unknown option {key!r}{nearest(name, known)}")
        if name in read:
            raise InputError(f"{start}the option {name!r} is given twice")
        try:
            read[name] = known[name].read(value)
        except InputError as error:
            raise InputError(f"{start}{error}") from None
    for option in options:
        if option.required and option.name not in read:
            raise InputError(f"{start}needs the option {option.name!r} ({option.expects})")
    return read


class _ValueType(typing.NamedTuple):
    """What is known of a type: what a value may be in words, JSON schema, conversion.

    The conversion raises ValueError for a value that does not fit.
    """

    expects: str
    schema: dict[str, Any]
    convert: Callable[[Any], Any]


def _value_type(kind: Any, least: float | None, choices: tuple[str, ...]) -> _ValueType:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or (kind is str and choices):
        words = list(arguments or choices)
        expects = ("one of " if len(words) > 1 else "") + ", ".join(map(str, words))
        return _ValueType(expects, {"enum": words}, lambda value: _fit(value in words, value))
    if kind in _SIMPLE:
        return _simple(kind, least)
    container = origin or kind
    inner = [_value_type(argument, least, choices) for argument in arguments]
    if origin in (typing.Union, types.UnionType):
        return _union(inner)
    if container in (list, tuple, collections.abc.Sequence):
        return _sequence(container, inner[0] if inner else None)
    if container in (dict, collections.abc.Mapping):
        return _mapping(inner[1] if inner else None)
    if container is collections.abc.Callable:
        return _ValueType("a function", {}, lambda value: _fit(callable(value), value))
    if kind is type(None):
        return _ValueType("", {"type": "null"}, lambda value: _fit(value is None, value))
    if isinstance(kind, type) and kind is not Any:
        return _ValueType(kind.__name__, {}, lambda value: _fit(isinstance(value, kind), value))
    return _ValueType("any value", {}, lambda value: value)


def _fit(fits: bool, value: Any) -> Any:
    """Return the value.

    Raises:
        ValueError: when it does not fit.
    """
    if not fits:
        raise ValueError(value)
    return value


def _simple(kind: type, least: float | None) -> _ValueType:
    name, expects = _SIMPLE[kind]
    if kind not in (int, float):
        allowed = (str, Path) if kind is Path else kind
        return _ValueType(
            expects, {"type": name}, lambda value: kind(_fit(isinstance(value, allowed), value))
        )
    number = numbers.Integral if kind is int else numbers.Real

    def convert(value: Any) -> Any:
        converted = kind(_fit(isinstance(value, number) and not isinstance(value, bool), value))
        return _fit(least is None or (math.isfinite(converted) and converted >= least), converted)

    if least is None:
        return _ValueType(expects, {"type": name}, convert)
    return _ValueType(f"{expects} of at least {least}", {"type": name, "minimum": least}, convert)


def _union(members: list[_ValueType]) -> _ValueType:
    def convert(value: Any) -> Any:
        for member in members:
            try:
                return member.convert(value)
            except ValueError:
                continue
        raise ValueError(value)

    # what JSON cannot express, such as a function, is left out
    schemas = [member.schema for member in members if member.schema]
    expects = " or ".join(member.expects for member in members if member.expects)
    return _ValueType(expects, {"anyOf": schemas}, convert)


def _sequence(container: Any, item: _ValueType | None) -> _ValueType:
    def convert(value: Any) -> Any:
        plain = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
        items = [item.convert(each) if item else each for each in _fit(plain, value)]
        return tuple(items) if container is tuple else items

    if item is None:
        return _ValueType("a list", {"type": "array"}, convert)
    schema = {"type": "array", "items": item.schema}
    return _ValueType(f"a list (each item {item.expects})", schema, convert)


def _mapping(item: _ValueType | None) -> _ValueType:
    def convert(value: Any) -> Any:
        pairs = _fit(isinstance(value, Mapping), value).items()
        return {str(name): item.convert(each) if item else each for name, each in pairs}

    if item is None:
        return _ValueType("a mapping", {"type": "object"}, convert)
    schema = {"type": "object", "additionalProperties": item.schema}
    return _ValueType(f"a mapping (each value {item.expects})", schema, convert)
