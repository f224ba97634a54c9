"""Order of removal and error curve of a group, or of its parts.

Readers that are plain regressions are eliminated on paper (`elimination.py`). Where a reader is
none (a recurrent or quantised node, a weight too wide) its error is that of replacing the unit by
its mean, var(x_j) ||W_j||^2. Where two activations are multiplied (queries and keys) it is the part
of the product that the unit makes, E[q_j^2] E[k_j^2]; as a share of the whole product it counts
like an error of the same share in what the group's other readers give.

A constrained group has *parts* that can go independently of each other: the units on one axis
(value dimensions of all heads; query and key dimensions), and whole composites (heads).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.compensation.regression.elimination import SMALLEST, Elimination, Reader, eliminate
from onnxprune.coupling.group_view import GroupView
from onnxprune.coupling.groups import Group, Reading
from onnxprune.importance.removal_order import RemovalStep, removal_order

_RIDGE = 1e-3


@dataclass(frozen=True)
class Curve:
    """What a group costs, step by step.

    Attributes:
        steps: the order of removal; the score of a step is its error relative to the outputs.
        errors: error of each reader after each step, float [steps, readers].
        stream: variance of the sum that each reader's output enters, [readers].
        loss: increase of the divergence for each unit of error of a reader, [readers]; None where
            that of one is not known.
    """

    steps: tuple[RemovalStep, ...]
    errors: NDArray[np.float64]
    stream: NDArray[np.float64]
    loss: NDArray[np.float64] | None = None

    def scalings(self) -> dict[str, NDArray[np.float64]]:
        """Error after each step, looked at in several ways; see `allocate.candidates`."""
        errors = np.maximum(self.errors, 0)  # rounding makes small negative ones
        raw = errors.sum(axis=1)
        stream = (errors / np.maximum(self.stream, SMALLEST)).sum(axis=1)
        scalings = {
            "balanced": np.sqrt(raw * stream),
            "raw": raw,
            "root": np.sqrt(raw),
            "towards raw": raw**0.75 * stream**0.25,
            "towards stream": raw**0.25 * stream**0.75,
            "stream": stream,
        }
        if self.loss is None:
            return scalings
        loss = errors @ self.loss
        return scalings | {"loss": loss, "towards loss": np.sqrt(loss * scalings["balanced"])}


def whole_curve(
    view: GroupView, regressions: Mapping[Reading, Sequence[Reader]], goal: float | None
) -> Curve:
    """Curve of a group as one.

    Args:
        view: the group with the moments of its readings.
        regressions: of each reading; none where it is no plain regression.
        goal: fraction of every axis at which the order of a constrained group ends.
    """
    readers = [reader for each in regressions.values() for reader in each]
    plain = _plain_errors(view, regressions)
    group = view.group
    if readers and not plain and not len(group.constraints) and len(group.axes) == 1:
        order, rises = eliminate(readers, group.size, int(group.closed[0]), _RIDGE)
        removed = np.cumsum([len(units) for units in order]) / group.size
        classes = [tuple(int(group.units[unit]) for unit in units) for units in order]
        return _curve(classes, removed.tolist(), rises, readers, plain)
    steps = removal_order(group, _scores(group, readers, plain), goal)
    return _along(group, steps, readers, plain)


def part_curves(view: GroupView, regressions: Mapping[Reading, Sequence[Reader]]) -> list[Curve]:
    """Curves of the parts of a constrained group; none when there is only one part."""
    group = view.group
    parts = _parts(group)
    if len(parts) < 2:
        return []
    readers = [reader for each in regressions.values() for reader in each]
    plain = _plain_errors(view, regressions)
    scores = _scores(group, readers, plain)
    curves = []
    for seeds in parts:
        steps = []
        units = set(group.units.tolist())
        for step in removal_order(group, scores, seeds=seeds):
            if units.issuperset(seeds) and not seeds.issuperset(step.units):
                break
            steps.append(step)
        if steps:
            curves.append(_along(group, steps, readers, plain))
    return curves


@dataclass(frozen=True)
class _Plain:
    """Errors of a reader that is no regression.

    Attributes:
        errors: of each unit, [size].
        variance: what they are shares of.
        stream: variance of the sum the reader's output enters.
        of_product: they vanish when the whole product goes.
    """

    errors: NDArray[np.float64]
    variance: float
    stream: float
    of_product: bool


def _parts(group: Group) -> list[set[int]]:
    """Classes that start the removals of each part: units by axis, and composites."""
    if not len(group.constraints):
        return []
    axes: list[set[int]] = []
    for axis in group.axes:
        mine = set(group.units[list(axis)].tolist())
        touching = [part for part in axes if part & mine]
        axes = [part for part in axes if not part & mine] + [mine.union(*touching)]
    composites = {int(c) for c, _ in group.constraints.definitions if c}
    composites -= set(group.units.tolist())
    return [*axes, composites] if composites else axes


def _scores(
    group: Group, readers: Sequence[Reader], plain: Sequence[_Plain]
) -> NDArray[np.float64]:
    """Relative error of each unit alone."""
    scores = np.zeros(group.size)
    for reader in readers:
        scores += Elimination.of(reader, _RIDGE).scores(group.size) / max(reader.variance, SMALLEST)
    for reader_errors in plain:
        scores += reader_errors.errors / max(reader_errors.variance, SMALLEST)
    return scores


def _along(
    group: Group, steps: Sequence[RemovalStep], readers: Sequence[Reader], plain: Sequence[_Plain]
) -> Curve:
    """Errors along a given order."""
    running = [Elimination.of(reader, _RIDGE) for reader in readers]
    number_of = {int(unit): number for number, unit in enumerate(group.units)}
    rises = np.zeros((len(steps), len(readers) + len(plain)))
    for place, step in enumerate(steps):
        units = [number_of[unit] for unit in step.units if unit in number_of]
        whole = len(units) < len(step.units)
        rises[place] = [part.remove(units) for part in running] + [
            0.0 if part.of_product and whole else float(part.errors[units].sum()) for part in plain
        ]
    classes, fractions = [step.units for step in steps], [step.fraction for step in steps]
    return _curve(classes, fractions, rises, readers, plain)


def _curve(
    classes: Sequence[Collection[int]],
    fractions: Sequence[float],
    rises: NDArray[np.float64],
    readers: Sequence[Reader],
    plain: Sequence[_Plain],
) -> Curve:
    every: list[Reader | _Plain] = [*readers, *plain]
    variance = np.array([reader.variance for reader in every])
    relative = (rises / np.maximum(variance, SMALLEST)).sum(axis=1)
    steps = zip(classes, fractions, relative.tolist(), strict=True)
    return Curve(
        tuple(RemovalStep(tuple(removed), fraction, score) for removed, fraction, score in steps),
        np.cumsum(rises, axis=0),
        np.array([reader.stream for reader in every]),
        _losses(readers, plain),
    )


def _losses(readers: Sequence[Reader], plain: Sequence[_Plain]) -> NDArray[np.float64] | None:
    """Of each reader; those that are no regressions count like the average of the others."""
    known = [reader.loss for reader in readers if reader.loss is not None]
    if not known or len(known) < len(readers):
        return None
    return np.array([*known, *[float(np.mean(known))] * len(plain)])


def _plain_errors(view: GroupView, regressions: Mapping[Reading, Sequence[Reader]]) -> list[_Plain]:
    result = []
    products: dict[str, list[Reading]] = {}
    for reading in view.group.readings:
        if regressions.get(reading):
            continue
        moments = view.moments.get(reading)
        if reading.consumer.weight is None:
            products.setdefault(reading.consumer.node, []).append(reading)
        elif moments is not None:
            errors = view.per_unit(reading.units, moments.variance * view.reader_power(reading))
            result.append(_Plain(errors, float(errors.sum()), float(errors.sum()), False))
    readers = [reader for each in regressions.values() for reader in each]
    variance = float(np.mean([reader.variance for reader in readers])) if readers else 1.0
    stream = float(np.mean([reader.stream for reader in readers])) if readers else 1.0
    for readings in products.values():
        errors = np.ones(view.group.size)
        for reading in readings:
            moments = view.moments.get(reading)
            power = np.ones(reading.units.shape) if moments is None else moments.mean_square
            errors = errors * view.per_unit(reading.units, power)
        share = errors / max(float(errors.sum()), SMALLEST)
        result.append(_Plain(share * variance, variance, stream, True))
    if not result and not readers:
        # nothing is seen of a group inside a Loop or If but its weights
        result.append(_Plain(view.weight_share(), 1.0, 1.0, False))
    return result
