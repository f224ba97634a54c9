"""Whatever can change a model as an onnx-ir pass: passes, rewrite rules, plain functions.

* an onnx-ir or onnxscript pass: a class, whose options are its keyword parameters, or an object;
* a set of onnxscript rewrite rules: anything with `apply_to_model(model)`;
* a function of one model, whose other parameters are its options. What it wants to be called with
  is said by the annotation of its first parameter (the first of these, where it allows several),
  or else by its name: `model: ir.Model`, `graph: gs.Graph` (onnx-graphsurgeon) or
  `proto: onnx.ModelProto`. It changes what it is given, or returns something new.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnxprune.passes.pipeline.options import SUPPLIED, options_of

from onnxprune.calibration.streams import Samples
from onnxprune.declaration import Option
from onnxprune.errors import InputError
from onnxprune.model.load import ModelKind, load
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent

_KINDS: dict[str, tuple[ModelKind, tuple[str, ...]]] = {
    "model": ("ir", ("ir.Model", "onnx_ir.Model", "Model")),
    "graph": ("graphsurgeon", ("gs.Graph", "onnx_graphsurgeon.Graph", "Graph")),
    "proto": ("proto", ("onnx.ModelProto", "ModelProto")),
}
"""Name of the parameter -> what it is called with, and the annotations that say the same."""


@dataclass(frozen=True)
class Context:
    """What a pipeline offers its passes, by the names of their parameters.

    Attributes:
        samples: calibration samples; None for none.
        runtime: how to run models.
        seed: of everything random.
        progress: told about long loops.
        plan: what the pass planned in the run that is to be repeated; None where it is to choose.
    """

    samples: Samples | None = None
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    progress: Progress[Any] = silent
    plan: Mapping[str, Any] | None = None


class _RewriteRules(ir.passes.InPlacePass):
    """A set of onnxscript rewrite rules."""

    def __init__(self, rules: Any) -> None:
        super().__init__()
        self.rules = rules

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        return ir.passes.PassResult(model, bool(self.rules.apply_to_model(model)))


class _Function(ir.passes.FunctionalPass):
    """A function of one model."""

    def __init__(
        self, function: Callable[..., Any], kind: ModelKind, given: dict[str, Any]
    ) -> None:
        super().__init__()
        self.function = function
        self.kind = kind
        self.given = given

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Call it with a copy.

        Raises:
            InputError: when it returns something that is no model.
        """
        from onnxprune.model.load import convert

        copy = convert(model.clone(), self.kind)
        result = self.function(copy, **self.given)
        if isinstance(result, ir.passes.PassResult):
            return ir.passes.PassResult(result.model, result.modified)
        changed = copy if result is None or isinstance(result, (bool, int)) else result
        return ir.passes.PassResult(load(changed).model, modified=True)


def options_of_pass(made_by: Any, name: str) -> tuple[Option, ...]:
    """Options of anything that can be a pass.

    Raises:
        InputError: when it cannot be one.
    """
    if isinstance(made_by, type) and issubclass(made_by, ir.passes.PassBase):
        return options_of(made_by)
    if isinstance(made_by, ir.passes.PassBase) or hasattr(made_by, "apply_to_model"):
        return ()
    if inspect.isroutine(made_by):
        _kind_wanted(made_by, name)
        return options_of(made_by, skip=1)
    raise InputError(
        f"pass {name!r} is {type(made_by).__name__}; a pass is an onnx-ir pass, a set of "
        "onnxscript rewrite rules, or a function of a model"
    )


def make_pass(
    made_by: Any, options: Mapping[str, Any], context: Context, name: str
) -> ir.passes.PassBase:
    """Make the pass itself.

    Args:
        made_by: as for `options_of_pass`.
        options: checked.
        context: what the pipeline supplies, as far as the pass has parameters for it.
        name: for messages.
    """
    if isinstance(made_by, ir.passes.PassBase):
        return made_by
    if not isinstance(made_by, type) and hasattr(made_by, "apply_to_model"):
        return _RewriteRules(made_by)
    supplied = {
        key: getattr(context, key)
        for key in inspect.signature(made_by).parameters
        if key in SUPPLIED
    }
    given = {**supplied, **options}
    if isinstance(made_by, type):
        made: ir.passes.PassBase = made_by(**given)
        return made
    return _Function(made_by, _kind_wanted(made_by, name), given)


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
        return {one.strip().strip("'\"") for one in annotation.split("|")}
    several = (*typing.get_args(annotation), *getattr(annotation, "__constraints__", ()))
    if several:
        return set().union(*map(_names_in, several))
    module = str(getattr(annotation, "__module__", "")).partition(".")[0]
    return {f"{module}.{getattr(annotation, '__name__', '')}"}
