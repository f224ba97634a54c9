"""Components instead of units: where only linear maps lie between, units become what matters most.

Formula, for units x of a set that are made by W_in, b_in and read by W_out, with an invertible T::

    W_in' = T W_in    b_in' = T b_in    W_out' = W_out T^-1             layers
    W_q'  = T W_q     b_q'  = T b_q     W_k'   = T^-T W_k  (b_k too)     queries and keys

The model computes the same. T is chosen (`reconstruction/components.py`) so that unit j is the
j-th component of what the readers get out of the set: dropping the last units, with all that
comes with it (mask, slice, certificate, least squares), is then the truncated singular value
decomposition, which of all ways to keep so many dimensions has the least error.

Before (one head of 32; each of its dims matters somewhat)::

    x -> MatMul(W_v [384,32]) -> Add(b_v) -> MatMul(attention, .) -> MatMul(W_o [32,384]) -> y

After (dims in the order of what they give to y)::

    x -> MatMul(W_v T' ) -> Add(T b_v) -> MatMul(attention, .) -> MatMul(T^-T W_o) -> y

Sets are found by their labels (`reconstruction/linear_paths.py`), not by names or patterns: the
values of each head, queries and keys of each head, bottlenecks without activation (residual ones
too), in any layout: heads apart or fused, shared by several query heads, with 1x1 or larger
kernels (a zero-padded convolution acts alike on all channels).

Conditions:

* every node at which the units appear is one of: movement of data; sums of tensors that all carry
  the units, biases included; scaling by what is the same for all units; products and averages
  along other axes; the producers; and in the end layers with weights of their own, or products of
  two activations that both carry them. An activation, normalisation, rotary embedding or fused
  attention node on the way leaves a set alone; so does a weight that something else uses as well.
* labels stay what they are: units of a set change places only among themselves. Units that are zero
  where they are made and where they are read, as RemoveLossless leaves them, stay what they are.
* the outputs must agree with the original's, to the certificate's tolerance; groups for which they
  do not are left as they were.

Source: Moore 1981 (balanced truncation); Lin et al. 2024 (MoDeGPT);
Ashkboos et al. 2024 (SliceGPT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.components.linear_paths import LeftAlone, LinearSet, linear_sets
from onnxprune.compensation.components.matrix import Components, balance, measure
from onnxprune.coupling.groups import Group
from onnxprune.errors import RuntimeFailure
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.merge import replace_constant
from onnxprune.verification.certificate import probe, tolerance_for
from onnxprune.verification.comparison import largest_difference


@dataclass(frozen=True, eq=False)
class Aligned:
    """A set whose units are components now.

    Attributes:
        units: their numbers in the group, the most important component first.
        energies: error of dropping each in what is computed from the set: the sum over outputs
            of the mean square for layers, the mean square of an entry for products.
        readers: nodes that read the set.
        product: they multiply two activations.
    """

    units: tuple[int, ...]
    energies: NDArray[np.float64]
    readers: tuple[str, ...]
    product: bool


class AlignComponents(ir.passes.InPlacePass):
    """Make components of the units of all sets that only linear maps are done to.

    Args:
        target: the model at full size and its coupling; both are updated.
        groups: groups to look at.
        feeds: calibration batches.
        runtime: how to run the model.
        seed: of the rows that moments are taken of.
        progress: told about every reader.

    Attributes:
        aligned: what was aligned, by group name; filled by the call.
        left_alone: sets that could not be, and why.
        dropped: groups left as they were because the result differed from the original.
    """

    def __init__(
        self,
        target: EditableModel,
        groups: Sequence[Group],
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        seed: int = 0,
        progress: Progress[Any] = silent,
    ) -> None:
        super().__init__()
        self.target = target
        self.groups = groups
        self.feeds = feeds
        self.runtime = runtime
        self.seed = seed
        self.progress = progress
        self.aligned: dict[str, tuple[Aligned, ...]] = {}
        self.left_alone: list[LeftAlone] = []
        self.dropped: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the model that `target` holds.

        Raises:
            ValueError: when called with another model.
        """
        if model is not self.target.model:
            raise ValueError("AlignComponents changes the model its target was made with")
        coupling = self.target.coupling
        sets, self.left_alone = linear_sets(model, coupling, self.groups)
        if not sets or not self.feeds:
            return ir.passes.PassResult(model, modified=False)
        moments = measure(
            model, coupling, sets, self.feeds, self.runtime, seed=self.seed, progress=self.progress
        )
        work: dict[str, list[tuple[LinearSet, Components]]] = {}
        for one, taken in zip(sets, moments, strict=True):
            found = balance(taken) if taken is not None else None
            if found is not None:
                work.setdefault(one.group, []).append((one, found))
        kept = self._agreeing(work) if work else {}
        self.dropped = tuple(name for name in work if name not in kept)
        _apply(self.target, kept)
        self.aligned = {
            name: tuple(_described(one, found) for one, found in parts)
            for name, parts in kept.items()
        }
        return ir.passes.PassResult(model, modified=bool(kept))

    def _agreeing(
        self, work: dict[str, list[tuple[LinearSet, Components]]]
    ) -> dict[str, list[tuple[LinearSet, Components]]]:
        """Those groups with which a copy computes what the original does."""
        facts = self.target.coupling.facts
        feeds = [facts.first.feed, facts.second.feed]
        model = self.target.model
        wanted = probe(model, self.runtime, feeds).compared
        tolerance = tolerance_for(model)

        def agrees(part: dict[str, list[tuple[LinearSet, Components]]]) -> bool:
            trial = EditableModel(model.clone(), self.target.coupling)
            _apply(trial, part)
            try:
                got = probe(trial.model, self.runtime, feeds).compared
            except RuntimeFailure:
                return False
            return max(map(largest_difference, wanted, got), default=0.0) <= tolerance

        if agrees(work):
            return work
        alone = {name: parts for name, parts in work.items() if agrees({name: parts})}
        return alone if alone and agrees(alone) else {}


def _apply(target: EditableModel, work: dict[str, list[tuple[LinearSet, Components]]]) -> None:
    """Multiply the constants of all sets."""
    constants = target.coupling.facts.constants
    arrays: dict[str, NDArray[np.float64]] = {}
    for parts in work.values():
        for one, found in parts:
            for factor in one.factors:
                name = factor.tensor
                if name not in arrays:
                    arrays[name] = constants[name].numpy().astype(np.float64)
                matrix = found.inverse if factor.inverse else found.matrix
                arrays[name] = factor.places.multiplied(arrays[name], matrix)
    for name, array in arrays.items():
        replace_constant(target, name, array.astype(constants[name].dtype.numpy()))


def _described(one: LinearSet, found: Components) -> Aligned:
    nodes = [reader.layer.node for reader in one.readers] + [each.node for each in one.products]
    readers = tuple(node.outputs[0].name or "" for node in nodes)
    order = np.argsort(-found.energies, kind="stable")
    units = tuple(one.units[place] for place in order.tolist())
    return Aligned(units, found.energies[order], readers, bool(one.products))
