"""Class removal: outputs that are not wanted are cut from the classifier.

Formula, for logits z = W h + b and kept classes K in ascending order::

    z' = W[K] h + b[K]        softmax(z')_k = softmax(z)_k / sum over K of softmax(z)

Before::

    h [N,512] -> Gemm(W [100,512], b [100]) -> Softmax -> p [N,100]
                                            -> ArgMax -> label [N]

After (classes 3, 7 and 9 are kept)::

    h [N,512] -> Gemm(W [3,512], b [3]) -> Softmax -> p [N,3]
                                        -> ArgMax -> Gather([3,7,9]) -> label [N]

Logits and independent scores (Sigmoid) keep their values; what a Softmax gives is shared among the
kept classes; ArgMax and TopK choose among them and go on naming classes by their old numbers. The
output's new size is declared, and the kept classes are listed in the model's metadata: entry `k` of
`onnxprune.kept_classes` (a JSON list) is the old number of class `k`.

The class axis leads back to the weights that make it through the labels of `coupling/`, so that
whatever lies between (BatchNorm, biases, reshapes of a detection head, quantisation) is cut with
it. Channels that served the removed classes alone lose their readers' weights; `remove-lossless`
takes out what that kills, and `prune`, run next, finds the others cheap.

Conditions: every output axis of the classifier's size has to be cuttable, and in one output there
may be only one. Anything else is refused with the reason.

The result is compared with the original, in which the other classes can win no Softmax and no
ArgMax: outputs have to agree at the kept classes to the certificate's tolerance.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime
from onnxprune.reduction.narrowing import apply, check, narrow
from onnxprune.reduction.observing import observed
from onnxprune.reduction.selection import read_entries, resolve

if TYPE_CHECKING:
    from onnxprune.calibration.samples import Samples
    from onnxprune.model.observe import Facts

__all__ = ["KEPT_CLASSES", "KeepClasses"]

KEPT_CLASSES = "onnxprune.kept_classes"
"""Metadata key: JSON list, the old number of every class there is."""

_NAMES = "names"


class KeepClasses(ir.passes.InPlacePass):
    """Cut a classifier down to some of its classes.

    Args:
        keep: the classes to keep: numbers or names in a list or as "3,7,9", or the path of a file
            with one a line.
        classes: how many there are; default: as many as there are names, else the last axis of
            the outputs of rank 2.
        names: names of all classes in order, as a list or a file with one a line; default: what
            the metadata of the model call `names`.
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

    Attributes:
        details: the kept classes, the outputs they are in, and how far those are from the
            original's; filled by the call.
    """

    changes_interface: ClassVar[bool] = True

    def __init__(
        self,
        keep: str | Sequence[int | str],
        classes: int | None = None,
        names: str | Sequence[str] | None = None,
        *,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.classes = classes
        self.names = names
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.seed = seed
        self.details: dict[str, Any] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the classifier.

        Raises:
            InputError: for classes that do not exist, or when their number is not known.
            NothingPrunable: when the class axis cannot be cut; says why.
            VerificationError: when the result gives something else for the kept classes.
        """
        names = self._names(model)
        facts = observed(model, self.runtime, self.seed, self.samples)
        size = self._size(model, facts, names)
        kept = resolve(read_entries(self.keep, "class"), size, names, "class")
        narrowing = narrow(model, facts, kept, size, _axes_of_size(model, facts, size))
        result = model.clone()
        apply(result, narrowing)
        feeds = [(run.feed, run.feed) for run in (facts.first, facts.second)]
        error = check(model, result, narrowing, feeds, self.runtime)
        apply(model, narrowing)
        before = json.loads(model.metadata_props.get(KEPT_CLASSES, "null")) or list(range(size))
        model.metadata_props[KEPT_CLASSES] = json.dumps([before[number] for number in kept])
        if names is not None:
            left = {number: names[old] for number, old in enumerate(kept)}
            model.metadata_props[_NAMES] = str(left)
        self.details = {
            "kept": kept.tolist(),
            "classes": size,
            "outputs": dict(narrowing.axes),
            "error": error,
        }
        return ir.passes.PassResult(model, modified=True)

    def _names(self, model: ir.Model) -> list[str] | None:
        if self.names is not None:
            return read_entries(self.names, "class names")
        try:
            known = ast.literal_eval(model.metadata_props.get(_NAMES, ""))
        except (ValueError, SyntaxError):
            return None
        if isinstance(known, Mapping) and set(known) == set(range(len(known))):
            return [str(known[number]) for number in range(len(known))]
        return [str(one) for one in known] if isinstance(known, (list, tuple)) else None

    def _size(self, model: ir.Model, facts: Facts, names: Sequence[str] | None) -> int:
        """How many classes there are.

        Raises:
            InputError: when nothing says so, or two things say different numbers.
        """
        given = [n for n in (self.classes, len(names) if names is not None else None) if n]
        if len(set(given)) > 1:
            raise InputError(f"classes={given[0]} but there are {given[1]} names")
        if given:
            return given[0]
        shapes = [facts.first.shapes.get(v.name or "", ()) for v in _float_outputs(model, facts)]
        found = {shape[1] for shape in shapes if len(shape) == 2}
        if len(found) != 1:
            raise InputError(
                "the number of classes is not clear from the outputs; say classes=N or give names"
            )
        return found.pop()


def _float_outputs(model: ir.Model, facts: Facts) -> list[ir.Value]:
    types = facts.first.types
    return [
        value
        for value in model.graph.outputs
        if types.get(value.name or "", ir.DataType.UNDEFINED).is_floating_point()
    ]


def _axes_of_size(model: ir.Model, facts: Facts, size: int) -> dict[str, list[int]]:
    """Axes with one entry for each class, of every output that has any.

    Raises:
        InputError: when no output has.
    """
    found = {}
    for value in _float_outputs(model, facts):
        name = value.name or ""
        shapes = np.array([run.shapes[name] for run in (facts.first, facts.second)])
        # the first axis of several counts samples
        axes = [
            int(a)
            for a in np.flatnonzero((shapes == size).all(axis=0))
            if a or shapes.shape[1] == 1
        ]
        if axes:
            found[name] = axes
    if not found:
        shapes_ = {v.name: facts.first.shapes[v.name or ""] for v in _float_outputs(model, facts)}
        raise InputError(f"no output has an axis with {size} classes; their shapes are {shapes_}")
    return found
