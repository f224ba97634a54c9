"""Class removal: classes that are not kept are cut from the classifier.

Formula, for logits z = W h + b and kept classes K in ascending order::

    z' = W[K] h + b[K]        softmax(z')_k = softmax(z)_k / sum over K of softmax(z)

Before::

    h [N,512] -> Gemm(W [100,512], b [100]) -> Softmax -> p [N,100]
                                            -> ArgMax -> label [N]

After (classes 3, 7 and 9 are kept)::

    h [N,512] -> Gemm(W [3,512], b [3]) -> Softmax -> p [N,3]
                                        -> ArgMax -> Gather([3,7,9]) -> label [N]

Logits and independent scores (Sigmoid) keep their values; a Softmax is taken over the kept classes,
and so is ReduceMax; ArgMax, TopK and NonMaxSuppression pick among them and still return the old
class numbers. The output's new size is declared, and the kept classes are listed in the model's
metadata: entry `k` of `onnxprune.kept_classes` (a JSON list) is the old number of class `k`.

The labels of `coupling/` lead from the class axis back to the weights that make it, so that all
that lies between (BatchNorm, biases, reshapes of a detection head, quantisation) is cut too.
Channels that served only removed classes lose their consumers' weights; `remove-lossless` removes
them, and `prune`, run next on samples of the kept classes, removes others at little cost.

A detection head that joins boxes and classes along one axis only loses entries of classes::

    Concat(boxes [N,4,A], Sigmoid(scores [N,100,A]), axis=1) -> [N,104,A]    becomes    [N,7,A]

The Concat says which part that is, or `first` does: 5 where objectness follows the box. Other
outputs lose what is made of the same weights.

Conditions: every output axis of the classifier's size that weights make has to be cuttable, at most
one in each output; `outputs` selects outputs. No later node may sum over the classes. Anything else
is refused with the reason.

The result is compared with the original, in which the removed classes can win no Softmax and no
ArgMax: outputs have to agree at the kept classes within the certificate's tolerance.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import observe_model
from onnxprune.errors import InputError
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.passes.interface.axis_cut import apply, axes_picked_along, check, find_cut
from onnxprune.passes.interface.interface_pass import (
    InterfacePass,
    KeptSamples,
    note_kept,
    read_entries,
    resolve,
    samples_of,
)
from onnxprune.passes.interface.parts import Part, find_parts, select_outputs

KEPT_CLASSES = "onnxprune.kept_classes"
"""Metadata key: JSON list, the old number of every class there is."""

_NAMES = "names"


class KeepClasses(InterfacePass):
    """Cut a classifier down to some of its classes.

    Args:
        keep: the classes to keep: numbers or names in a list or as "3,7,9", or the path of a file
            with one a line.
        classes: how many there are; default: as many as there are names, else the last axis of
            the outputs of rank 2.
        names: names of all classes in order, as a list or a file with one a line; default: what
            the metadata of the model call `names`.
        first: position of class 0 on an output axis that has other entries, too; default: where
            the only part of this size begins that a Concat joins to others.
        outputs: names of the outputs with an entry for each class; default: all that may have.
        own_samples: let later passes see only the calibration samples that the original assigns
            to a kept class, if there are at least 64; for outputs [samples, classes]
        samples: calibration samples to compare on; None for randomly generated inputs.
        runtime: onnxruntime providers and threads.
        seed: of randomly generated inputs.

    Attributes:
        details: the kept classes, the outputs they are in, and how far those are from the
            original's; filled by the call.
    """

    def __init__(
        self,
        keep: str | Sequence[int | str],
        classes: int | None = None,
        names: str | Sequence[str] | None = None,
        first: int | None = None,
        outputs: Sequence[str] | None = None,
        own_samples: bool = True,
        *,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(keep, outputs, RunContext(samples, None, runtime or Runtime(), seed))
        self.classes = classes
        self.names = names
        self.first = first
        self.own_samples = own_samples
        self._kept_samples: KeptSamples | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the classifier.

        Raises:
            InputError: for classes or outputs that do not exist, or when their number is not
                known.
            NothingPrunable: when the class axis cannot be cut; says why.
            VerificationError: when the result gives something else for the kept classes.
        """
        names = self._names(model)
        facts = observe_model(model, self.context)
        scores = select_outputs(model, facts, self.outputs, scores=True)
        size = self._size(scores, facts, names)
        kept = resolve(read_entries(self.keep, "class"), size, names, "class")
        parts = self._parts(model, scores, facts, size)
        axis_cut = find_cut(model, facts, kept, size, parts)
        self._kept_samples = self._find_kept_samples(model, facts, parts, kept)
        result = model.clone()
        apply(result, axis_cut)
        feeds = [(run.feed, run.feed) for run in (facts.first, facts.second)]
        error = check(model, result, axis_cut, feeds, self.context.runtime)
        apply(model, axis_cut)
        note_kept(model, KEPT_CLASSES, kept, size)
        if names is not None:
            left = {number: names[old] for number, old in enumerate(kept)}
            model.metadata_props[_NAMES] = str(left)
        self.details = {
            "kept": kept.tolist(),
            "classes": size,
            "outputs": axis_cut.describe(),
            "error": error,
            "own_samples": self._kept_samples is not None,
        }
        return ir.passes.PassResult(model, modified=True)

    def convert(self, feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The samples of a feed that later passes are to see; its arrays may have no rows."""
        return feed if self._kept_samples is None else self._kept_samples.of(feed)

    def _find_kept_samples(
        self,
        model: ir.Model,
        facts: Facts,
        parts: Mapping[str, Sequence[Part]],
        kept: NDArray[np.int64],
    ) -> KeptSamples | None:
        """What picks the samples of the kept classes; None where later passes see all samples."""
        plain = [
            name
            for name, places in parts.items()
            if list(places) == [Part(1)] and len(facts.first.shapes[name]) == 2
        ]
        returned = [value.name for value in model.graph.outputs]
        if not self.own_samples or len(plain) != 1 or plain[0] not in returned:
            return None
        return samples_of(model.clone(), plain[0], kept, self.context)

    def _names(self, model: ir.Model) -> list[str] | None:
        if self.names is not None:
            return read_entries(self.names, "class names")
        try:
            known = ast.literal_eval(model.metadata_props.get(_NAMES, ""))
        except (ValueError, SyntaxError):
            return None
        if isinstance(known, Mapping) and set(known) == set(range(len(known))):
            return [str(known[number]) for number in range(len(known))]
        return [str(name) for name in known] if isinstance(known, (list, tuple)) else None

    def _size(self, scores: Sequence[ir.Value], facts: Facts, names: Sequence[str] | None) -> int:
        """How many classes there are.

        Raises:
            InputError: when nothing says so, or two things say different numbers.
        """
        counts = [n for n in (self.classes, len(names) if names is not None else None) if n]
        if len(set(counts)) > 1:
            raise InputError(f"classes={counts[0]} but there are {counts[1]} names")
        if counts:
            return counts[0]
        shapes = _shapes(scores, facts)
        lengths = {shape[1] for shape in shapes.values() if len(shape) == 2}
        if len(lengths) != 1:
            raise InputError(
                "the number of classes is not clear from the outputs, whose shapes are "
                f"{shapes}; set classes=N or give names"
            )
        return lengths.pop()

    def _parts(
        self, model: ir.Model, scores: Sequence[ir.Value], facts: Facts, size: int
    ) -> dict[str, list[Part]]:
        """Where classes may be: in outputs, else in tensors along which positions are picked.

        Raises:
            InputError: when there is no such axis.
        """
        parts = {value.name or "": find_parts(value, facts, size, self.first) for value in scores}
        parts = {name: places for name, places in parts.items() if places}
        if not parts and self.outputs is None:
            picked = axes_picked_along(model.graph, facts)
            shapes = facts.first.shapes
            parts = {name: [Part(a)] for name, a in picked.items() if shapes[name][a] == size}
        if not parts and not scores:
            names = [value.name for value in model.graph.outputs]
            raise InputError(f"none of the outputs {names} is a tensor of scores")
        if not parts:
            where = "no output has an axis with"
            if self.first is not None:
                where = f"no output has an axis on which, from position {self.first} on, there are"
            raise InputError(
                f"{where} {size} classes; their shapes are {_shapes(scores, facts)}. Where an axis "
                "has other entries too, set first=N, the position of class 0"
            )
        self.require_named(parts, facts, size)
        return parts


def _shapes(values: Sequence[ir.Value], facts: Facts) -> dict[str, tuple[int, ...]]:
    return {value.name or "": facts.first.shapes[value.name or ""] for value in values}
