"""The matrix that turns the units of a set into components, the most important first.

What reaches a set has second moments S, and what is done with it weighs errors e as e' M e: for a
layer y = W x, M = W' W; for the product of queries and keys, S and M are the moments of both. In
new coordinates T x, with the inverse of T where they are read, dropping component j costs

    error_j = (T S T')_jj (T^-' M T^-1)_jj

and the sum of what is dropped is least, for any number of components, where both matrices are
diagonal and equal (balanced coordinates; Moore 1981). With S^1/2 M S^1/2 = V diag(s^2) V'::

    T = diag(s)^1/2 V' S^-1/2        T^-1 = S^1/2 V diag(s)^-1/2        error_j = s_j^2

For a layer this is the truncated singular value decomposition of W S^1/2, for queries and keys
that of Sq^1/2 Sk^1/2. Moments are central where a mean does not matter: at layers,
whose biases take it up, and of the keys, whose mean adds the same to all that a softmax compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batches import BatchBudget, drawn_rows
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.walk import Walk
from onnxprune.compensation.components.linear_paths import LinearSet, Product, Regressor
from onnxprune.compensation.components.unit_positions import Places
from onnxprune.compensation.regression.linear_layers import LinearLayer
from onnxprune.coupling.trace import Coupling
from onnxprune.model.observe import ConstantValues
from onnxprune.model.outputs import ScoreLayout
from onnxprune.surgery.editable_model import EditableModel

_WORST_CONDITION = 1e4
"""Condition number of T up to which float32 weights stay accurate to about 1e-3."""
_MASKS = frozenset({"Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity"})
_LONGEST = 8
"""Nodes that may lie between a product and its softmax."""
_ROWS = 8192
"""Rows that moments are taken of, over all batches."""

_TABLE = 40_000_000
"""Elements of the table of what one layer reads at most."""


@dataclass(frozen=True)
class Moments:
    """What decides over the components of a set.

    Attributes:
        spread: S, second moments of the units.
        weight: M, how their errors count.
    """

    spread: NDArray[np.float64]
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """New coordinates of a set.

    Attributes:
        matrix: T.
        inverse: its inverse, transposed: what is to be applied to the columns of a reader.
        energies: error of dropping each component; descending but for units left as they are.
    """

    matrix: NDArray[np.float64]
    inverse: NDArray[np.float64]
    energies: NDArray[np.float64]


def balance(moments: Moments) -> Components | None:
    """Find the components of a set.

    Directions in which next to nothing happens are rounded up, so that T can be inverted safely;
    T is scaled to leave the power of the units as it was. Units that are zero where they are made
    and where they are read (another pass has blanked them) stay as they are.

    Returns:
        None when nothing varies, nothing counts, or something is not finite.
    """
    spread, weight = moments.spread, moments.weight
    used = np.flatnonzero(np.diagonal(spread) + np.diagonal(weight) != 0)
    if not len(used) or not (np.isfinite(spread).all() and np.isfinite(weight).all()):
        return None
    forward = _balanced(spread[np.ix_(used, used)], weight[np.ix_(used, used)])
    if forward is None:
        return None
    matrix: NDArray[np.float64] = np.eye(len(spread))
    matrix[np.ix_(used, used)] = forward
    inverse = np.asarray(np.linalg.inv(matrix).T, np.float64)
    return Components(matrix, inverse, _diagonal(matrix, spread) * _diagonal(inverse, weight))


def _balanced(
    spread: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """T, its rows in the order of their energies."""
    power = float(np.trace(spread))
    if power <= 0 or np.trace(weight) <= 0:
        return None
    values, vectors = np.linalg.eigh(spread)
    for floor in 10.0 ** np.arange(-7, 1):
        lifted = np.sqrt(np.maximum(values, 0) + floor * power / len(values))
        root = (vectors * lifted) @ vectors.T
        squares, directions = np.linalg.eigh(root @ weight @ root)
        singular = np.sqrt(np.maximum(squares, 0))[::-1]
        scale = np.sqrt(np.maximum(singular, np.sqrt(floor) * singular[0]))
        forward = scale[:, np.newaxis] * (directions.T[::-1] @ (vectors / lifted) @ vectors.T)
        if singular[0] > 0 and np.linalg.cond(forward) < _WORST_CONDITION:
            break
    else:
        return None
    forward *= np.sqrt(power / _diagonal(forward, spread).sum())
    energies = _diagonal(forward, spread) * _diagonal(np.linalg.inv(forward).T, weight)
    ordered: NDArray[np.float64] = forward[np.argsort(-energies, kind="stable")]
    return ordered


def _diagonal(matrix: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Diagonal of A S A', rounding below zero cut off."""
    diagonal: NDArray[np.float64] = ((matrix @ moments) * matrix).sum(axis=1)
    return np.maximum(diagonal, 0)


def measure(
    target: EditableModel,
    sets: Sequence[LinearSet],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    context: RunContext,
) -> list[Moments | None]:
    """Take the moments of all sets in one walk through the model.

    Args:
        target: the model and its labels.
        sets: the sets.
        feeds: calibration batches.
        context: runtime, seed of the rows that are drawn, progress callback.

    Returns:
        None for a set whose places at the size of the batches are unknown.
    """
    model, coupling = target.model, target.coupling
    budget = BatchBudget(model.graph, coupling.facts.first, feeds, 1)
    walk = Walk(model, feeds[: budget.at_start], context.runtime)
    constants = ConstantValues(model, coupling.facts.constants)
    place = {id(node): number for number, node in enumerate(model.graph)}
    readers: dict[int, list[tuple[int, Regressor]]] = defaultdict(list)
    products: dict[int, list[tuple[int, Product]]] = defaultdict(list)
    for number, linear_set in enumerate(sets):
        for reader in linear_set.readers:
            readers[place[id(reader.layer.node)]].append((number, reader))
        for product in linear_set.products:
            products[place[id(product.node)]].append((number, product))
    moments: list[list[Moments]] = [[] for _ in sets]
    unknown: set[int] = set()
    nodes, opset = list(model.graph), model.opset_imports.get("", 1)
    stops = sorted({*readers, *products})
    for at in context.progress(stops, "finding components", len(stops)):
        walk.advance(nodes[at])
        seed = [context.seed, at]
        if at in readers:
            layer = readers[at][0][1].layer
            weight = layer.matrix(np.asarray(constants[layer.weight]))[0]
            table = _rows_of(layer, walk[layer.data], seed)
            for number, reader in readers[at]:
                moments[number].append(_of_reader(table, weight, reader))
        for number, product in products.get(at, ()):
            try:
                shifted = _ignored_by_softmax(product, coupling, opset)
                first, second = (
                    _moments(_rows_at(places, walk[name], seed), central=name == shifted)
                    for name, places in zip(product.names, product.places, strict=True)
                )
                moments[number].append(Moments(first, second))
            except ValueError:
                unknown.add(number)
    return [None if number in unknown else _total(each) for number, each in enumerate(moments)]


def _rows_of(
    layer: LinearLayer, data: Sequence[NDArray[Any]], seed: Sequence[int]
) -> NDArray[np.float32]:
    """What a layer reads in rows drawn from all batches, [rows, unknowns]."""
    counts = [layer.rows_of(x.shape) for x in data]
    drawn = drawn_rows(counts, min(_ROWS, _TABLE // layer.shape[2]), seed)
    return np.concatenate([layer.rows(x, ids)[:, 0] for x, ids in zip(data, drawn, strict=True)])


def _rows_at(
    places: Places, data: Sequence[NDArray[Any]], seed: Sequence[int]
) -> NDArray[np.float32]:
    """What an operand holds at the places of a set in rows drawn from all batches."""
    parts = [places.gathered(x) for x in data]
    drawn = drawn_rows([len(part) for part in parts], _ROWS, seed)
    taken = [part[ids].astype(np.float32) for part, ids in zip(parts, drawn, strict=True)]
    # a batch that was merged into the copies makes their number differ between batches
    return np.concatenate([part.reshape(-1, 1, part.shape[2]) for part in taken])


def _of_reader(
    table: NDArray[np.float32], weight: NDArray[np.float64], reader: Regressor
) -> Moments:
    """Covariance of the units, and how their errors count in what the layer computes.

    Copies of a set (places of a flattened map, taps of a kernel) have one T. Where several are
    read, M adds up their weights, pair by pair, in proportion to how much the copies vary alike.
    """
    x = table[:, reader.index].astype(np.float64)
    x -= x.mean(axis=0)
    copies, size = reader.index.shape
    flat = x.reshape(-1, size)
    spread = flat.T @ flat / len(flat)
    columns = weight[:, reader.index]
    if copies == 1:
        return Moments(spread, columns[:, 0].T @ columns[:, 0])
    across = x.transpose(1, 0, 2).reshape(copies, -1)
    alike = across @ across.T / len(x)
    values, vectors = np.linalg.eigh(alike)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    mixed = np.einsum("ocd,ck->okd", columns, factor, optimize=True).reshape(-1, size)
    return Moments(spread, mixed.T @ mixed / max(float(np.trace(spread)), 1e-300))


def _moments(x: NDArray[np.float32], *, central: bool) -> NDArray[np.float64]:
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    if central:
        flat -= flat.mean(axis=0)
    return flat.T @ flat / len(flat)


def _ignored_by_softmax(product: Product, coupling: Coupling, opset: int) -> str:
    """Which operand of a product may be shifted by any vector without a softmax behind noticing.

    Before operator set 13 a softmax runs over all axes from its own on; what adds the same to each
    row of the scores does then not add the same to all of them.

    Returns:
        the name of the operand that brings the axis of the softmax; "" when there is none.
    """
    output = product.node.outputs[0]
    rank = len(coupling.tensors[output.name or ""].shape)
    value, softmax = output, None
    for _ in range(_LONGEST):
        nodes = [use.node for use in value.uses() if use.node.graph is product.node.graph]
        if len(nodes) != 1 or nodes[0].domain or not nodes[0].outputs[0].name:
            return ""
        if nodes[0].op_type == "Softmax":
            softmax = nodes[0]
            break
        known = coupling.tensors.get(nodes[0].outputs[0].name)
        if nodes[0].op_type not in _MASKS or known is None or len(known.shape) != rank:
            return ""
        value = nodes[0].outputs[0]
    if softmax is None or product.node.op_type != "MatMul":
        return ""
    layout = ScoreLayout.of(softmax, opset)
    axis = layout.axis % rank
    if axis < rank - 2 or (layout.flattened and axis < rank - 1):
        return ""
    inputs = [value.name or "" for value in product.node.inputs if value is not None]
    return inputs[1 if axis == rank - 1 else 0]


def _total(moments: Sequence[Moments]) -> Moments:
    """One pair of moments for several readers, whose spreads are taken to be proportional."""
    spread = np.mean([each.spread for each in moments], axis=0)
    power = max(float(np.trace(spread)), 1e-300)
    weight = sum(float(np.trace(each.spread)) / power * each.weight for each in moments)
    return Moments(spread, np.asarray(weight))
