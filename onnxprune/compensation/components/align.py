"""Components instead of units: where only linear maps lie between, units become what matters most.

Formula, for units x of a set that are made by W_in, b_in and read by W_out, with an invertible T::

    W_in' = T W_in    b_in' = T b_in    W_out' = W_out T^-1             layers
    W_q'  = T W_q     b_q'  = T b_q     W_k'   = T^-T W_k  (b_k too)     queries and keys

The model computes the same. T is chosen (`components/matrix.py`) so that unit j is the
j-th component of what the readers get out of the set: dropping the last units, with all that
comes with it (mask, slice, certificate, least squares), is then the truncated singular value
decomposition, which of all ways to keep so many dimensions has the least error.

Before (one head of 32; each of its dims matters somewhat)::

    x -> MatMul(W_v [384,32]) -> Add(b_v) -> MatMul(attention, .) -> MatMul(W_o [32,384]) -> y

After (dims in the order of what they give to y)::

    x -> MatMul(W_v T' ) -> Add(T b_v) -> MatMul(attention, .) -> MatMul(T^-T W_o) -> y

Sets are found by their labels (`components/linear_paths.py`), not by names or patterns: the
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
  where they are made and where they are read, as remove_lossless leaves them, stay what they are.
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
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.compensation.agreement import agreeing_groups
from onnxprune.compensation.components.linear_paths import LeftAlone, LinearSet, linear_sets
from onnxprune.compensation.components.matrix import Components, balance, measure
from onnxprune.coupling.groups import Group
from onnxprune.surgery.editable_model import EditableModel


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


@dataclass(frozen=True)
class Alignment:
    """What was aligned.

    Attributes:
        sets: by group name.
        left_alone: sets that could not be, and why.
        dropped: groups left as they were because the result differed from the original.
    """

    sets: Mapping[str, tuple[Aligned, ...]]
    left_alone: Sequence[LeftAlone]
    dropped: tuple[str, ...] = ()


def align_components(
    target: EditableModel,
    groups: Sequence[Group],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    context: RunContext,
) -> Alignment:
    """Make components of the units of all sets that only linear maps are done to.

    Args:
        target: the model at full size and its coupling; both are updated.
        groups: groups to look at.
        feeds: calibration batches.
        context: runtime, seed of the rows that moments are taken of, progress callback.
    """
    facts = target.coupling.facts
    sets, left_alone = linear_sets(target.model, target.coupling, groups)
    if not sets or not feeds:
        return Alignment({}, left_alone)
    moments = measure(target, sets, feeds, context)
    work: dict[str, list[tuple[LinearSet, Components]]] = {}
    for linear_set, taken in zip(sets, moments, strict=True):
        components = balance(taken) if taken is not None else None
        if components is not None:
            work.setdefault(linear_set.group, []).append((linear_set, components))

    def change(model: EditableModel, names: Sequence[str]) -> bool:
        _apply(model, [part for name in names for part in work[name]])
        return bool(names)

    feeds = [facts.first.feed, facts.second.feed]
    kept, dropped = agreeing_groups(target, list(work), change, feeds, context.runtime)
    change(target, kept)
    aligned = {name: tuple(_described(*part) for part in work[name]) for name in kept}
    return Alignment(aligned, left_alone, dropped)


def _apply(target: EditableModel, parts: Sequence[tuple[LinearSet, Components]]) -> None:
    """Multiply the constants of all sets."""
    constants = target.coupling.facts.constants
    arrays: dict[str, NDArray[np.float64]] = {}
    for linear_set, components in parts:
        for factor in linear_set.factors:
            name = factor.tensor
            if name not in arrays:
                arrays[name] = constants[name].numpy().astype(np.float64)
            matrix = components.inverse if factor.inverse else components.matrix
            arrays[name] = factor.places.multiplied(arrays[name], matrix)
    for name, array in arrays.items():
        target.replace_constant(name, array.astype(constants[name].dtype.numpy()))


def _described(linear_set: LinearSet, components: Components) -> Aligned:
    nodes = [reader.layer.node for reader in linear_set.readers]
    nodes += [product.node for product in linear_set.products]
    readers = tuple(node.outputs[0].name or "" for node in nodes)
    order = np.argsort(-components.energies, kind="stable")
    units = tuple(linear_set.units[place] for place in order.tolist())
    return Aligned(units, components.energies[order], readers, bool(linear_set.products))
