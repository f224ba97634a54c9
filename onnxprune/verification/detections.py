"""Mean average precision of detectors, of raw outputs as well as of selected ones.

A detection is a box with a class and a score of at least 0.5, after non-maximum suppression per
class: of two boxes whose intersection over union is above 0.45 the one with the smaller score goes
(Liu et al. 2016, SSD). With the detections of all samples sorted by score, one counts as right if
it overlaps a box of the same class that no better one has taken, with an IoU of at least 0.5::

    precision(k) = right among the first k / k       recall(k) = right among the first k / boxes
    AP = sum over k of (recall(k) - recall(k - 1)) max over j >= k of precision(j)

averaged over the classes that have any box (Everingham et al. 2010, VOC from 2010 on). The boxes
are the original's detections, so that it scores 100 itself, or the labels.

Which outputs hold scores and boxes is found by their shapes and values:

* boxes float [samples, anchors, 4]: corners where the second point lies behind the first, else
  centre and size;
* scores between 0 and 1, [samples, anchors, classes] or [samples, classes, anchors]; of scores that
  add up to 1, the class with the largest mean is the background;
* or, after selection in the graph, scores [samples, boxes] with the classes [samples, boxes] as
  whole numbers (none for a single class), or all in one output [samples, boxes, 6]: box, score,
  class. Padded to one number of boxes, or as many as there are, sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import InputError
from onnxprune.verification.answers import Answers, Values
from onnxprune.verification.measures import BoxForm

_LEAST_SCORE = 0.5
"""Score from which something is a detection."""

_LEAST_WITH_LABELS = 0.05
"""Score from which detections are ranked against labels: precision at every recall counts."""

_SAME_OBJECT = 0.45
"""IoU above which two boxes of a class are one object (Liu et al. 2016)."""

_RIGHT = 0.5
"""IoU from which a detection is right (Everingham et al. 2010)."""

_MOST = 400
"""Boxes of a class and sample that are compared with each other (Liu et al. 2016)."""

_NEARLY_ALL = 0.99
_SUM_ERROR = 1e-2  # of scores that add up to 1, in half precision
_ROUNDING = 1e-3  # of scores, in half precision
_COORDINATES = 4
_SELECTED = 6  # columns: box, score, class
_EXPECTED = (
    "boxes [samples, anchors, 4] and scores between 0 and 1 [samples, anchors, classes] or "
    "[samples, anchors]; for anything else give a function of (outputs, reference, labels)"
)


@dataclass(frozen=True)
class Detections:
    """Boxes found in one sample.

    Attributes:
        boxes: corners, float64 [boxes, 4].
        scores: float64 [boxes].
        classes: int64 [boxes].
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class _Form:
    """How detections lie in the outputs.

    Attributes:
        boxes: name of the output.
        scores: name of the output; that of the boxes where they are columns of it.
        classes: name of the output; empty where scores have a column for each, or there is one.
        moved: whether scores are [classes, anchors].
        background: the class that is none; None without.
        centred: whether boxes are centre and size.
    """

    boxes: str
    scores: str
    classes: str = ""
    moved: bool = False
    background: int | None = None
    centred: bool = False

    def candidates(
        self, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """What one sample may hold.

        Args:
            arrays: outputs of the sample by name.

        Returns:
            corners of boxes [boxes, 4], scores [boxes, columns] and the class of each column,
            without the background.
        """
        boxes = arrays[self.boxes].astype(np.float64)
        if self.boxes == self.scores:
            score, classes = boxes[:, _COORDINATES], boxes[:, _COORDINATES + 1].astype(np.int64)
            return self._corners(boxes[:, :_COORDINATES]), *_by_class(score, classes)
        scores = arrays[self.scores].astype(np.float64)
        if scores.ndim == 1:
            named = arrays[self.classes] if self.classes else np.zeros(len(scores))
            return self._corners(boxes), *_by_class(scores, named.astype(np.int64))
        scores = scores.T if self.moved else scores
        numbers = np.array([n for n in range(scores.shape[1]) if n != self.background], np.int64)
        return self._corners(boxes), scores[:, numbers], numbers

    def found(self, arrays: Mapping[str, NDArray[Any]], least: float) -> Detections:
        """Detections of one sample with at least this score, after suppression per class."""
        boxes, scores, classes = self.candidates(arrays)
        rows, columns = [], []
        for column in range(scores.shape[1]):
            score = scores[:, column]
            sure = np.flatnonzero(score >= least)
            sure = sure[np.argsort(-score[sure], kind="stable")][:_MOST]
            rows.append(sure[_suppressed(boxes[sure])])
            columns.append(np.full(len(rows[-1]), column))
        none = np.zeros(0, np.int64)
        row, place = np.concatenate([none, *rows]), np.concatenate([none, *columns])
        return Detections(boxes[row], scores[row, place], classes[place])

    def _corners(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.centred:
            return boxes
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return np.concatenate([centre - half, centre + half], axis=1)


def mean_average_precision(answers: Answers) -> float:
    """Percent of mean average precision against the original's detections, or against labels.

    Labels are one object for each sample: {"boxes": [[x1, y1, x2, y2], ...], "classes": [...]}, or
    a list of [x1, y1, x2, y2] or [x1, y1, x2, y2, class], in the units of the model's boxes and
    with its numbers of classes; without classes where the model has only one.

    Raises:
        InputError: when no outputs are boxes and scores, there is nothing to find, or labels are
            something else.
    """
    wanted, got = _samples(answers, answers.reference), _samples(answers, answers.outputs)
    form = _form(answers, wanted)
    if answers.labels is not None:
        single = _only_class(form, wanted)
        truth = [_labelled(label, single) for label in answers.labels]
        least = _LEAST_WITH_LABELS
    else:
        truth = [form.found(arrays, _LEAST_SCORE) for arrays in wanted]
        least = _LEAST_SCORE
    classes = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.classes for each in truth)]))
    if not len(classes):
        source = "the labels hold" if answers.labels is not None else "the original finds"
        raise InputError(
            f"the metric map: {source} no box in {len(truth)} samples; give samples with objects"
        )
    found = [form.found(arrays, least) for arrays in got]
    return 100 * float(np.mean([_average_precision(truth, found, c) for c in classes]))


def _samples(answers: Answers, outputs: Mapping[str, Values]) -> list[dict[str, NDArray[Any]]]:
    """Float and integer outputs sample by sample, without axes of extent 1 in the middle."""
    count = len(answers.numbers)
    single: list[dict[str, NDArray[Any]]] = [{} for _ in range(count)]
    for name, values in outputs.items():
        if len(values) != count:
            continue
        for arrays, value in zip(single, values, strict=True):
            array = np.asarray(value)
            if array.ndim == 3 and 1 in array.shape[:2]:
                array = array.reshape(-1, array.shape[2])
            if array.dtype.kind in "iufV":
                arrays[name] = array
    return single


def _form(answers: Answers, samples: Sequence[Mapping[str, NDArray[Any]]]) -> _Form:
    """Find what holds scores and boxes in the outputs of the original."""
    names = [name for name in answers.reference if all(name in arrays for arrays in samples)]
    columns = {name: [arrays[name] for arrays in samples] for name in names}
    boxes = [name for name in names if _are(columns[name], 2, _COORDINATES)]
    reasons = []
    pairs = [(box, score) for box in boxes for score in names if score != box]
    for box, score in sorted(pairs, key=lambda pair: columns[pair[1]][0].ndim, reverse=True):
        form = _paired(columns, box, score, boxes)
        if isinstance(form, str):
            reasons += [form] if form else []
            continue
        if not form.scores:
            continue
        classes = ""
        if columns[score][0].ndim == 1:
            others = [n for n in names if n not in (box, score) and _are_classes(columns, n, box)]
            classes = others[0] if others else ""
        chosen = _Form(form.boxes, form.scores, classes, form.moved, form.background)
        return _with_centres(chosen, samples)
    for name in names:
        if _are(columns[name], 2, _SELECTED) and _is_selection(columns[name]):
            return _with_centres(_Form(name, name), samples)
    shapes = ", ".join(f"{name} {list(np.shape(columns[name][0]))}" for name in names)
    reason = reasons[0] if reasons else f"for each sample the outputs are {shapes or 'none'}"
    raise InputError(f"the metric map needs {_EXPECTED}; {reason}")


def _paired(
    columns: Mapping[str, Sequence[NDArray[Any]]], box: str, score: str, boxes: Sequence[str]
) -> _Form | str:
    """How boxes and scores belong together; else why not, empty where their shapes do not fit."""
    arrays = columns[score]
    counts = [len(array) for array in columns[box]]
    if any(array.dtype.kind not in "fV" or array.ndim not in (1, 2) for array in arrays):
        return ""
    moved = False
    if [len(array) for array in arrays] != counts:
        moved = all(array.ndim == 2 for array in arrays)
        if not moved or [array.shape[1] for array in arrays] != counts:
            return ""
    values = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
    known = values[np.isfinite(values)]
    if known.size and (known.min() < -_ROUNDING or known.max() > 1 + _ROUNDING):
        if score in boxes:
            return ""
        return (
            f"{score} has the shape of scores beside {box}, but lies between {known.min():.3g} and "
            f"{known.max():.3g}"
        )
    if arrays[0].ndim == 1:
        whole = known.size and bool((known == known.round()).all())
        return "" if whole else _Form(box, score)
    rows = np.concatenate([array.T if moved else array for array in arrays]).astype(np.float64)
    shared = rows.shape[1] > 1 and bool(
        (np.abs(rows.sum(axis=1) - 1) < _SUM_ERROR).mean() >= _NEARLY_ALL
    )
    if score in boxes and not shared:
        return f"{box} and {score} both have four columns, and no row of them adds up to 1"
    background = int(rows.mean(axis=0).argmax()) if shared else None
    return _Form(box, score, moved=moved, background=background)


def _by_class(
    scores: NDArray[np.float64], classes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores [boxes] as columns of the classes that there are, and these."""
    numbers = np.unique(classes)
    return np.where(classes[:, None] == numbers, scores[:, None], 0.0), numbers


def _are(arrays: Sequence[NDArray[Any]], rank: int, columns: int) -> bool:
    """Whether all are floats of this rank with so many columns."""
    return bool(arrays) and all(
        a.dtype.kind in "fV" and a.ndim == rank and a.shape[-1] == columns for a in arrays
    )


def _are_classes(columns: Mapping[str, Sequence[NDArray[Any]]], name: str, box: str) -> bool:
    """Whether an output holds a whole number for each box."""
    pairs = list(zip(columns[name], columns[box], strict=True))
    return all(
        array.ndim == 1 and len(array) == len(boxes) and bool((array == np.round(array)).all())
        for array, boxes in pairs
    )


def _is_selection(arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether columns are box, score and class."""
    rows = np.concatenate(arrays).astype(np.float64)
    if not len(rows):
        return False
    score, number = rows[:, _COORDINATES], rows[:, _COORDINATES + 1]
    return bool(((score >= 0) & (score <= 1)).all() and (number == number.round()).all())


def _with_centres(form: _Form, samples: Sequence[Mapping[str, NDArray[Any]]]) -> _Form:
    """Tell corners from centre and size by the boxes with the largest scores."""
    boxes, best = [], []
    for arrays in samples:
        corners, scores, _ = form.candidates(arrays)
        boxes.append(corners)
        best.append(scores.max(axis=1, initial=0.0))
    rows, score = np.concatenate(boxes), np.concatenate(best)
    sure = rows[score >= _LEAST_SCORE]
    if not len(sure):
        raise InputError(
            f"the metric map: the original finds nothing in {len(samples)} samples (the largest "
            f"score in {form.scores} is {score.max(initial=0):.3g}, {_LEAST_SCORE} is a "
            "detection); give samples with objects"
        )
    found = BoxForm.of(sure)
    if found is not None:
        return replace(form, centred=found is BoxForm.CENTRED)
    raise InputError(
        f"the metric map: {form.boxes} holds neither corners nor centres and sizes; boxes that are "
        "offsets from anchors have to be decoded: give a function of (outputs, reference, labels)"
    )


def _suppressed(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Boxes that stay of those sorted by score, by greedy non-maximum suppression."""
    overlaps = _overlaps(boxes, boxes) > _SAME_OBJECT
    alive = np.ones(len(boxes), bool)
    for number in range(len(boxes)):
        if alive[number]:
            alive[number + 1 :] &= ~overlaps[number, number + 1 :]
    return np.flatnonzero(alive)


def _overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union, [first, second]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [
        np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)
    ]
    either = areas[0][:, None] + areas[1][None] - both
    return np.asarray(both / np.where(either > 0, either, 1.0))


def _average_precision(
    truth: Sequence[Detections], found: Sequence[Detections], number: int
) -> float:
    """Average precision of one class."""
    hits: list[tuple[float, bool]] = []
    total = 0
    for wanted, got in zip(truth, found, strict=True):
        boxes = wanted.boxes[wanted.classes == number]
        mine = got.classes == number
        overlaps, scores = _overlaps(got.boxes[mine], boxes), got.scores[mine]
        total += len(boxes)
        for place in np.argsort(-scores, kind="stable"):
            best = int(overlaps[place].argmax()) if len(boxes) else 0
            right = bool(len(boxes)) and overlaps[place, best] >= _RIGHT
            if right:
                overlaps[:, best] = -1.0
            hits.append((float(scores[place]), right))
    # of equal scores, as quantised models have them, the wrong ones first
    hits.sort(key=lambda hit: (-hit[0], hit[1]))
    right = np.array([hit for _, hit in hits], np.float64)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / total)


def _only_class(form: _Form, samples: Sequence[Mapping[str, NDArray[Any]]]) -> int | None:
    """The only class of a detector; None where there are several."""
    if form.classes or form.boxes == form.scores:
        return None
    _, _, classes = form.candidates(samples[0])
    return int(classes[0]) if len(classes) == 1 else None


def _labelled(label: Any, single: int | None) -> Detections:
    """The boxes of a sample as its label has them.

    Raises:
        InputError: when it is something else.
    """
    boxes, classes = label, None
    if isinstance(label, Mapping):
        boxes = label.get("boxes")
        classes = label.get("classes", label.get("labels"))
    try:
        array = np.asarray([] if boxes is None else boxes, np.float64)
    except (TypeError, ValueError):
        array = np.zeros((1, 1))
    if boxes is None or (array.size and (array.ndim != 2 or array.shape[1] not in (4, 5))):
        raise InputError(
            'the metric map takes one label for each sample: {"boxes": [[x1, y1, x2, y2], ...], '
            f'"classes": [...]}} or a list of boxes, not {str(label)[:60]}'
        )
    array = array.reshape(-1, array.shape[1] if array.ndim == 2 else _COORDINATES)
    if classes is None and array.shape[1] == 5:
        classes = array[:, _COORDINATES]
    elif classes is None and single is not None:
        classes = np.full(len(array), single)
    if len(array) and (classes is None or len(classes) != len(array)):
        raise InputError("the metric map: labels need a class for each box, as several are known")
    numbers = np.asarray(classes if len(array) else [], np.float64).astype(np.int64)
    return Detections(array[:, :_COORDINATES], np.ones(len(array)), numbers)
