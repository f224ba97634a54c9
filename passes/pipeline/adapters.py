"""Passes of other packages and of users, as passes of a pipeline.

* an onnx-ir or onnxscript pass: a class, whose options are its keyword parameters, or an object;
* a set of onnxscript rewrite rules: anything with `apply_to_model(model)`;
* a function of one model, whose other parameters are its options. What it wants to be called with
  is said by the annotation of its first parameter (the first of these, where it allows several),
  or else by its name: `model: ir.Model`, `graph: gs.Graph` (onnx-graphsurgeon) or
  `proto: onnx.ModelProto`. It changes the model in place, or returns a new one.

Any of them may have the attributes of `onnxprune.passes.pipeline.protocol.Pass`: `details`,
`notes`, `files`, `plan`, `prefers`, `changes_interface`, `remark(latency)` and `convert(feed)`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.feeds import Feed
from onnxprune.cost.latency.measure import Latency
from onnxprune.declaration import Option
from onnxprune.errors import InputError
from onnxprune.model.load import ModelKind, convert, load
from onnxprune.passes.pipeline.options import SUPPLIED, options_of
from onnxprune.passes.pipeline.protocol import Pass, Reference
from onnxprune.passes.pipeline.quality import PipelineQuality

_KINDS: dict[str, tuple[ModelKind, tuple[str, ...]]] = {
    "model": ("ir", ("ir.Model", "onnx_ir.Model", "Model")),
    "graph": ("graphsurgeon", ("gs.Graph", "onnx_graphsurgeon.Graph", "Graph")),
    "proto": ("proto", ("onnx.ModelProto", "ModelProto")),
}
"""Name of the parameter -> what it is called with, and the annotations that say the same."""


class ThirdPartyPass(Pass, ir.passes.FunctionalPass):
    """A pass that does not derive from `Pass`, with those of its attributes that it has.

    Args:
        source: what has the attributes.
        action: called with a model that it may change.
    """

    def __init__(self, source: Any, action: Callable[[ir.Model], ir.passes.PassResult]) -> None:
        super().__init__()
        self._source = source
        self._action = action
        self.changes_interface = bool(getattr(source, "changes_interface", False))
        self.wants_latency = callable(getattr(source, "remark", None))
        self.prefers = self._mapping("prefers")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Call it with a copy, and read its attributes."""
        result = self._action(model.clone())
        notes = getattr(self._source, "notes", None)
        self.notes = tuple(map(str, notes)) if isinstance(notes, (list, tuple)) else ()
        self.details = self._mapping("details")
        files = self._mapping("files")
        self.files = {str(suffix): str(text) for suffix, text in files.items()}
        self.plan = self._mapping("plan") or None
        return result

    def remark(self, latency: Latency | None) -> str:
        """What it says; empty where it says nothing."""
        return str(self._source.remark(latency)) if self.wants_latency else ""

    def convert(self, feed: Feed) -> Mapping[str, NDArray[Any]]:
        """What it makes of a feed."""
        converted: Mapping[str, NDArray[Any]] = getattr(self._source, "convert", super().convert)(
            feed
        )
        return converted

    def _mapping(self, attribute: str) -> dict[str, Any]:
        value = getattr(self._source, attribute, None)
        return dict(value) if isinstance(value, Mapping) else {}


def options_of_pass(source: Any, name: str) -> tuple[Option, ...]:
    """Options of anything that can be a pass.

    Raises:
        InputError: when it cannot be one.
    """
    if isinstance(source, type) and issubclass(source, ir.passes.PassBase):
        return options_of(source)
    if isinstance(source, ir.passes.PassBase) or hasattr(source, "apply_to_model"):
        return ()
    if inspect.isroutine(source):
        _kind_wanted(source, name)
        return options_of(source, skip=1)
    raise InputError(
        f"pass {name!r} is {type(source).__name__}; a pass is an onnx-ir pass, a set of "
        "onnxscript rewrite rules, or a function of a model"
    )


def make_pass(
    source: Any,
    options: Mapping[str, Any],
    context: RunContext,
    plan: Mapping[str, Any] | None,
    name: str,
    quality: PipelineQuality | None = None,
    reference: Reference | None = None,
) -> Pass:
    """Make a pass of whatever can be one.

    Args:
        source: as for `options_of_pass`.
        options: checked.
        context: handed to those parameters of the pass that are named after its attributes.
        plan: what the pass planned in the run that is repeated; None for a new run.
        name: for messages.
        quality: what the pipeline is asked of quality, for a parameter of this name; None for
            nothing.
        reference: what answers are to follow, for a parameter of this name; None where that is
            not known yet.
    """
    if not isinstance(source, type):
        if isinstance(source, ir.passes.PassBase):
            return source if isinstance(source, Pass) else ThirdPartyPass(source, source)
        if hasattr(source, "apply_to_model"):
            return ThirdPartyPass(source, _applied(source))
    supplied = vars(context) | {"plan": plan, "quality": quality, "reference": reference}
    wanted = SUPPLIED & inspect.signature(source).parameters.keys()
    arguments = {name: supplied[name] for name in wanted} | dict(options)
    if isinstance(source, type):
        return make_pass(source(**arguments), {}, context, None, name)
    return ThirdPartyPass(source, _called(source, _kind_wanted(source, name), arguments))


def _applied(rules: Any) -> Callable[[ir.Model], ir.passes.PassResult]:
    """A set of onnxscript rewrite rules as an action."""

    def action(model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, bool(rules.apply_to_model(model)))

    return action


def _called(
    function: Callable[..., Any], kind: ModelKind, arguments: Mapping[str, Any]
) -> Callable[[ir.Model], ir.passes.PassResult]:
    """A function of one model as an action."""

    def action(model: ir.Model) -> ir.passes.PassResult:
        given = convert(model, kind)
        result = function(given, **arguments)
        if isinstance(result, ir.passes.PassResult):
            return result
        changed = given if result is None or isinstance(result, (bool, int)) else result
        return ir.passes.PassResult(load(changed).model, modified=True)

    return action


def _kind_wanted(function: Callable[..., Any], name: str) -> ModelKind:
    """What a function is to be called with.

    Raises:
        InputError: when neither annotation nor name of its first parameter say so.
    """
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is not None:
        written = _names_in(first.annotation)
        for kind, annotations in _KINDS.values():
            if not written.isdisjoint(annotations):
                return kind
        if first.name in _KINDS:
            return _KINDS[first.name][0]
    raise InputError(
        f"pass {name!r}: the first parameter of the function has to be model: onnx_ir.Model, "
        "graph: onnx_graphsurgeon.Graph or proto: onnx.ModelProto"
    )


def _names_in(annotation: Any) -> set[str]:
    """Names of the types that an annotation allows."""
    if isinstance(annotation, str):
        return {name.strip().strip("'\"") for name in annotation.split("|")}
    several = (*typing.get_args(annotation), *getattr(annotation, "__constraints__", ()))
    if several:
        return set().union(*map(_names_in, several))
    module = str(getattr(annotation, "__module__", "")).partition(".")[0]
    return {f"{module}.{getattr(annotation, '__name__', '')}"}
