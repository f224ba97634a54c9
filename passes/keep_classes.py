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
kept classes; ReduceMax runs over them; ArgMax, TopK and NonMaxSuppression choose among them and go
on naming classes by their old numbers. The output's new size is declared, and the kept classes are
listed in the model's metadata: entry `k` of `onnxprune.kept_classes` (a JSON list) is the old
number of class `k`.

The class axis leads back to the weights that make it through the labels of `coupling/`, so that
whatever lies between (BatchNorm, biases, reshapes of a detection head, quantisation) is cut with
it. Channels that served the removed classes alone lose their readers' weights; `remove-lossless`
takes out what that kills, and `prune`, run next on samples of the kept classes, finds the others
cheap.

A detection head that joins boxes and classes along one axis loses the entries of the classes
alone::

    Concat(boxes [N,4,A], Sigmoid(scores [N,100,A]), axis=1) -> [N,104,A]    becomes    [N,7,A]

Which part that is says the Concat, or `first`: 5 where objectness follows the box. Other outputs
lose what is made of the same weights.

Conditions: every output axis of the classifier's size that weights make has to be cuttable, and in
one output there may be only one; `outputs` names those that are meant. Nothing further on may add
the classes up. Anything else is refused with the reason.

The result is compared with the original, in which the other classes can win no Softmax and no
ArgMax: outputs have to agree at the kept classes to the certificate's tolerance.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxprune.passes.interface.axis_cut import apply, check, find_cut
from onnxprune.passes.interface.interface_pass import InterfacePass, note_kept
from onnxprune.passes.interface.parts import Part, find_parts, select_outputs
from onnxprune.passes.interface.selection import KeptSamples, read_entries, resolve, samples_of
from onnxprune.passes.interface.whole_axis import axes_picked_along

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import observe_model
from onnxprune.errors import InputError
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime

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
        own_samples: let later passes see only those calibration samples that the original counts
            among the kept classes, if these are at least 64; for outputs [samples, classes]
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

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
        super().__init__(keep, outputs, samples, runtime, seed)
        self.classes = classes
        self.names = names
        self.first = first
        self.own_samples = own_samples
        self._sorting: KeptSamples | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the classifier.

        Raises:
            InputError: for classes or outputs that do not exist, or when their number is not
                known.
            NothingPrunable: when the class axis cannot be cut; says why.
            VerificationError: when the result gives something else for the kept classes.
        """
        names = self._names(model)
        facts = observe_model(model, RunContext(self.samples, None, self.runtime, self.seed))
        scores = select_outputs(model, facts, self.outputs, scores=True)
        size = self._size(scores, facts, names)
        kept = resolve(read_entries(self.keep, "class"), size, names, "class")
        parts = self._parts(model, scores, facts, size)
        axis_cut = find_cut(model, facts, kept, size, parts)
        self._sorting = self._sorted(model, facts, parts, kept)
        result = model.clone()
        apply(result, axis_cut)
        feeds = [(run.feed, run.feed) for run in (facts.first, facts.second)]
        error = check(model, result, axis_cut, feeds, self.runtime)
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
            "own_samples": self._sorting is not None,
        }
        return ir.passes.PassResult(model, modified=True)

    def convert(self, feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The samples of a feed that later passes are to see; its arrays may have no rows."""
        return feed if self._sorting is None else self._sorting.of(feed)

    def _sorted(
        self,
        model: ir.Model,
        facts: Facts,
        parts: Mapping[str, Sequence[Part]],
        kept: NDArray[np.int64],
    ) -> KeptSamples | None:
        """What tells samples of the kept classes from others; None where all are to be seen."""
        plain = [
            name
            for name, found in parts.items()
            if list(found) == [Part(1)] and len(facts.first.shapes[name]) == 2
        ]
        returned = [value.name for value in model.graph.outputs]
        if not self.own_samples or self.samples is None or len(plain) != 1:
            return None
        if plain[0] not in returned:
            return None
        return samples_of(model.clone(), plain[0], kept, self.samples, self.runtime)

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

    def _size(self, scores: Sequence[ir.Value], facts: Facts, names: Sequence[str] | None) -> int:
        """How many classes there are.

        Raises:
            InputError: when nothing says so, or two things say different numbers.
        """
        given = [n for n in (self.classes, len(names) if names is not None else None) if n]
        if len(set(given)) > 1:
            raise InputError(f"classes={given[0]} but there are {given[1]} names")
        if given:
            return given[0]
        shapes = _shapes(scores, facts)
        found = {shape[1] for shape in shapes.values() if len(shape) == 2}
        if len(found) != 1:
            raise InputError(
                "the number of classes is not clear from the outputs, whose shapes are "
                f"{shapes}; say classes=N or give names"
            )
        return found.pop()

    def _parts(
        self, model: ir.Model, scores: Sequence[ir.Value], facts: Facts, size: int
    ) -> dict[str, list[Part]]:
        """Where classes may be: in outputs or, where no output has any, in what is chosen among.

        Raises:
            InputError: when nothing has any.
        """
        found = {value.name or "": find_parts(value, facts, size, self.first) for value in scores}
        found = {name: parts for name, parts in found.items() if parts}
        if not found and self.outputs is None:
            chosen = axes_picked_along(model.graph, facts)
            shapes = facts.first.shapes
            found = {name: [Part(a)] for name, a in chosen.items() if shapes[name][a] == size}
        if not found and not scores:
            names = [value.name for value in model.graph.outputs]
            raise InputError(f"none of the outputs {names} is a tensor of scores")
        if not found:
            where = "no output has an axis with"
            if self.first is not None:
                where = f"no output has an axis on which, from position {self.first} on, there are"
            raise InputError(
                f"{where} {size} classes; their shapes are {_shapes(scores, facts)}. Where an axis "
                "has other entries, too, say with first=N which position class 0 has"
            )
        self.require_named(found, facts, size)
        return found


def _shapes(values: Sequence[ir.Value], facts: Facts) -> dict[str, tuple[int, ...]]:
    return {value.name or "": facts.first.shapes[value.name or ""] for value in values}
