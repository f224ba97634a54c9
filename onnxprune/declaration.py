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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError, nearest

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

_KEY = "option"
_NAMES = {
    bool: ("boolean", "true or false", "true or false"),
    int: ("integer", "a whole number", "whole numbers"),
    float: ("number", "a number", "numbers"),
    str: ("string", "text", "text"),
    Path: ("string", "a path", "paths"),
}
"""Type -> its name in JSON schema, what it expects, and what a list of it holds."""


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
        return self._type.expects

    def read(self, value: Any) -> Any:
        """Return a value as its type wants it: a whole number is also a number, a list a tuple.

        Raises:
            InputError: saying what was expected.
        """
        if self.check is not None:
            return value if value is None and self.default is None else self.check(value)
        try:
            return self._type.convert(value)
        except ValueError:
            raise InputError(f"{self.name} must be {self.expects}, not {value!r}") from None

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its value."""
        plain = isinstance(self.default, (str, bool, int, float))
        default = {"default": self.default} if plain else {}
        return {"description": self.help, **(self._type.schema or {}), **default}

    @property
    def _type(self) -> _ValueType:
        return _value_type(self.kind, self.least, self.choices)


def option(
    default: Any,
    help: str,
    *,
    optional: bool = False,
    with_samples: Any = None,
    **declaration: Any,
) -> Any:
    """Declare the field of a dataclass as an option.

    Args:
        default: value of the field.
        help: as for `Option`, as are all others.
        optional: users may also leave it at None, which stands for the default.
        with_samples: what None stands for when there are samples; makes it optional.
        **declaration: metavar, least, choices, check.
    """
    optional = optional or with_samples is not None
    metadata = {_KEY: declaration | {"help": help, "with_samples": with_samples}}
    metadata[_KEY] |= {"default": None if optional else default, "optional": optional}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def declared_options(declaring: type) -> tuple[Option, ...]:
    """Options that a dataclass declares, in the order of its fields."""
    kinds = typing.get_type_hints(declaring)
    options = []
    for each in dataclasses.fields(declaring):
        if _KEY in each.metadata:
            declaration = dict(each.metadata[_KEY])
            kind = kinds[each.name]
            kind = kind | None if declaration.pop("optional") else kind
            options.append(Option(each.name, kind, **declaration))
    return tuple(options)


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


@dataclass(frozen=True)
class _ValueType:
    """What is known of a type.

    Attributes:
        expects: what a value may be, in words.
        several: the same of the items of a list.
        schema: JSON schema; None for what JSON cannot express.
        convert: returns a value as the type wants it; raises ValueError.
    """

    expects: str
    several: str
    schema: dict[str, Any] | None
    convert: Callable[[Any], Any]


def _value_type(kind: Any, least: float | None, choices: tuple[str, ...]) -> _ValueType:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    container = origin or kind
    if origin is typing.Literal or (kind is str and choices):
        return _words(choices if kind is str else arguments)
    inner = [_value_type(argument, least, choices) for argument in arguments]
    if origin in (typing.Union, types.UnionType):
        return _union(inner)
    if container in (list, tuple, collections.abc.Sequence):
        return _sequence(container, inner[0] if inner else _ANY)
    if container in (dict, collections.abc.Mapping):
        return _mapping(*(inner or (_ANY, _ANY)))
    if container is collections.abc.Callable:
        return _ValueType(
            "a function", "functions", None, lambda value: _fit(callable(value), value)
        )
    if kind in _NAMES:
        return _single(kind, least)
    if kind is type(None):
        return _ValueType("", "", {"type": "null"}, lambda value: _fit(value is None, value))
    if isinstance(kind, type) and kind is not Any:
        return _instance(kind.__name__, lambda value: isinstance(value, kind))
    return _ANY


_ANY = _ValueType("any value", "any values", {}, lambda value: value)


def _fit(fits: bool, value: Any) -> Any:
    """Return the value.

    Raises:
        ValueError: when it does not fit.
    """
    if not fits:
        raise ValueError(value)
    return value


def _instance(expects: str, fits: Callable[[Any], bool]) -> _ValueType:
    """A type that JSON lacks."""
    return _ValueType(expects, expects, None, lambda value: _fit(fits(value), value))


def _single(kind: type, least: float | None) -> _ValueType:
    name, expects, several = _NAMES[kind]
    schema: dict[str, Any] = {"type": name}
    if least is not None and kind in (int, float):
        expects, schema = f"{expects} of at least {least}", {**schema, "minimum": least}

    def convert(value: Any) -> Any:
        if kind is Path:
            return Path(_fit(isinstance(value, (str, Path)), value))
        if kind in (int, float):
            number = numbers.Integral if kind is int else numbers.Real
            converted = kind(_fit(isinstance(value, number) and not isinstance(value, bool), value))
            in_range = least is None or (math.isfinite(converted) and converted >= least)
            return _fit(in_range, converted)
        return _fit(isinstance(value, kind), value)

    return _ValueType(expects, several, schema, convert)


def _words(words: tuple[Any, ...]) -> _ValueType:
    listed = ", ".join(map(str, words))
    expects = f"one of {listed}" if len(words) > 1 else listed
    return _ValueType(
        expects, listed, {"enum": list(words)}, lambda value: _fit(value in words, value)
    )


def _union(members: list[_ValueType]) -> _ValueType:
    def convert(value: Any) -> Any:
        for member in members:
            try:
                return member.convert(value)
            except ValueError:
                continue
        raise ValueError(value)

    schemas = [member.schema for member in members if member.schema is not None]
    expects = " or ".join(filter(None, (member.expects for member in members)))
    return _ValueType(expects, expects, {"anyOf": schemas}, convert)


def _sequence(container: Any, item: _ValueType) -> _ValueType:
    def convert(value: Any) -> Any:
        plain = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
        items = [item.convert(each) for each in _fit(plain, value)]
        return tuple(items) if container is tuple else items

    expects = "a list" if item is _ANY else f"a list of {item.several}"
    schema = {"type": "array", **({"items": item.schema} if item.schema else {})}
    return _ValueType(expects, "lists", schema, convert)


def _mapping(key: _ValueType, item: _ValueType) -> _ValueType:
    def convert(value: Any) -> Any:
        pairs = _fit(isinstance(value, Mapping), value).items()
        return {key.convert(name): item.convert(each) for name, each in pairs}

    expects = "a mapping" if item is _ANY else f"a mapping of names to {item.several}"
    schema = {"type": "object", **({"additionalProperties": item.schema} if item.schema else {})}
    return _ValueType(expects, "mappings", schema, convert)
