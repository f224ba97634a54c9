"""Metrics of tasks other than detection: decisions, segmentation, language models, embeddings.

Each is a function of `Answers` that gives a number, higher for better answers, and says in an
InputError what it needs where the outputs do not have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels, class_labels
from onnxprune.errors import InputError
from onnxprune.verification.answers import Answers, Values
from onnxprune.verification.box_errors import boxes_followed
from onnxprune.verification.measures import OutputKind
from onnxprune.verification.row_weights import row_weights
from onnxprune.verification.scores import kappa, r_squared

_BEST = 5
"""Answers of which the right one has to be among, for `top_answers`."""

_WORST = -1e6
"""Percent that R squared is taken for where outputs are not finite, or far beyond the scale."""

_MOST_NATS = 700.0
"""Cross-entropy that a perplexity is computed of at most: more would overflow."""

_MOST_SIMILARITIES = 2**22
"""Entries of a matrix of similarities held at a time."""


def agreement(answers: Answers) -> float:
    """Percent of equal decisions: 100 mean(c == c'), averaged over outputs.

    c is the class with the largest score of the original, per row of class scores [..., classes],
    of a probability whether it is at least one half, of whole numbers the number itself.
    """
    equal = [float((wanted == got).mean()) for wanted, got in _decisions(answers)]
    if not equal:
        raise InputError(
            "the metric agreement compares class scores, probabilities or whole numbers, and no "
            f"output holds any ({_shapes(answers)}); for other outputs take r2"
        )
    return 100 * float(np.mean(equal))


def agreement_beyond_chance(answers: Answers) -> float:
    """Percent of Cohen's kappa of the decisions of `agreement`, averaged over outputs.

    100 for equal decisions, 0 for those of a model that always decides the same. Source: Cohen 1960
    (`scores.kappa`).
    """
    values = [kappa(wanted, got) for wanted, got in _decisions(answers)]
    known = [value for value in values if value is not None]
    if not known:
        reason = "the original decides the same everywhere" if values else "no output decides"
        raise InputError(
            f"the metric kappa compares decisions between classes, but {reason} "
            f"({_shapes(answers)}); give other samples, or for other outputs r2"
        )
    return 100 * float(np.mean(known))


def followed_variation(answers: Answers) -> float:
    """Percent of R squared, 100 (1 - error / variance around the original's mean), over outputs.

    The mean is that at each place of an output [samples, ...], so that 0 is what a model scores
    that always gives it. Quantities beside class scores count by the balanced weights of these
    (`row_weights.row_weights`), of boxes those that hold an object (`box_errors`). Needs two
    samples whose outputs have one shape (`scores.r_squared`).
    """
    values = []
    for name, measure in answers.measures.items():
        wanted, got = answers.reference[name], answers.outputs[name]
        if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray):
            continue
        weights = None
        if measure.rows_of and isinstance(answers.reference[measure.rows_of], np.ndarray):
            rows = row_weights({**answers.measures}, [_arrays(answers)])[name][0]
            weights = rows.reshape(*wanted.shape[:-1], 1)
        value = r_squared(wanted, got, weights) if wanted.shape == got.shape else -np.inf
        if measure.boxes is not None and wanted.shape == got.shape:
            value = boxes_followed(measure, answers.measures, answers.reference, answers.outputs)
        if value is not None:
            values.append(max(100 * value, _WORST))
    if not values:
        raise InputError(
            "the metric r2 compares how float outputs of one shape vary over two samples or more, "
            f"and none does ({_shapes(answers)})"
        )
    return float(np.mean(values))


def top_answers(answers: Answers) -> float:
    """Percent of rows whose right class is among the five largest scores.

    Right is the label, where labels are given (whole numbers, one for each row of class scores),
    else the class with the original's largest score. Averaged over outputs with more than five
    classes.
    """
    shares = []
    labels = None if answers.labels is None else class_labels(answers.labels)
    if answers.labels is not None and labels is None:
        raise InputError("the metric topk takes classes as labels: whole numbers")
    for name, measure in answers.measures.items():
        if measure.kind is not OutputKind.SCORES:
            continue
        found: list[NDArray[np.bool_]] = []
        for wanted, got, own in answers.pairs(name):
            first, second = measure.plain_rows(wanted), measure.plain_rows(got)
            if first.shape[1] <= _BEST:
                continue
            right = first.argmax(axis=1)
            if labels is not None:
                classes = None if own is None else class_labels(own)
                if classes is None or classes.size != len(first):
                    continue
                right = classes.reshape(-1)
            if first.shape != second.shape:
                found.append(np.zeros(len(right), bool))
                continue
            best = np.argpartition(-second, _BEST - 1, axis=1)[:, :_BEST]
            found.append((best == right[:, None]).any(axis=1))
        if found:
            shares.append(float(np.concatenate(found).mean()))
    if not shares:
        fitting = " with a row for each label" if labels is not None else ""
        raise InputError(
            f"the metric topk needs scores of more than {_BEST} classes{fitting}; the outputs are "
            f"{_shapes(answers)}"
        )
    return 100 * float(np.mean(shares))


def overlap_of_maps(answers: Answers) -> float:
    """Percent of mean intersection over union of segmentation maps, averaged over outputs.

    Per class c, over the pixels of all samples: |A and B| / |A or B| with A the pixels that the
    original (or the labels) gives c, B those of the model; averaged over the classes that the
    original (or the labels) gives any pixel. A map is the class with the largest score
    [samples, classes, height, width] or [samples, height, width, classes], for a single channel
    whether it is above 0.5 (0 for scores that leave the range of probabilities), or whole numbers
    as they are. Labels are maps of classes [samples, height, width]; pixels whose label is no
    class do not count. Source: Everingham et al. 2010 (PASCAL VOC).
    """
    values = []
    for name in answers.reference:
        counts: dict[int, NDArray[np.int64]] = {}
        for wanted, got, labels in answers.pairs(name):
            maps = _class_maps(answers, name, wanted, got)
            if maps is None:
                continue
            first, second, classes = maps
            if answers.labels is not None:
                given = _map_labels(labels, first.shape)
                if given is None:
                    continue
                first = given
            known = (first >= 0) & (first < classes)
            for number in map(int, np.unique(first[known])):
                right, answered = first == number, (second == number) & known
                both = np.array([(right & answered).sum(), (right | answered).sum()])
                counts[number] = counts.get(number, np.zeros(2, np.int64)) + both
        if counts:
            values.append(float(np.mean([both / either for both, either in counts.values()])))
    if not values:
        fitting = " of the size of the labels" if answers.labels is not None else ""
        raise InputError(
            f"the metric iou needs maps [samples, classes, height, width]{fitting}; the outputs "
            f"are {_shapes(answers)}"
        )
    return 100 * float(np.mean(values))


def negative_perplexity(answers: Answers) -> float:
    """Minus the perplexity of a language model, -exp(-mean log p(token)), so that higher is better.

    Scores are an output [samples, positions, vocabulary], logits or probabilities. With labels
    [samples, positions] the token that each position has to predict is its label; negative labels
    do not count. Without labels they are the model's own inputs, shifted by one: the output at
    position t has to predict the input at t + 1; that input is the one of integers [samples,
    positions] below the size of the vocabulary with the most different values.
    """
    for name, measure in answers.measures.items():
        if measure.kind is OutputKind.PROBABILITIES or measure.layout.axis not in (-1, 2):
            continue
        tokens = answers.labels if answers.labels is not None else _token_ids(answers, name)
        nats: list[NDArray[np.float64]] = []
        pairs = list(answers.pairs(name))
        for place, (wanted, got, own) in enumerate(pairs):
            targets = own if answers.labels is not None else _part(tokens, place, len(pairs))
            known = None if targets is None else class_labels(targets)
            if wanted.ndim != 3 or known is None or known.shape != wanted.shape[:2]:
                nats = []
                break
            logits: NDArray[Any] = measure.rows(got).reshape(got.shape)
            if answers.labels is None:
                logits, known = logits[:, :-1], known[:, 1:]
            counted = (known >= 0) & (known < wanted.shape[2])
            nats.append(_cross_entropy(logits[counted], known[counted]))
        total = np.concatenate(nats) if nats else np.zeros(0)
        if total.size:
            mean = float(np.nan_to_num(total, nan=_MOST_NATS, posinf=_MOST_NATS).mean())
            return -float(np.exp(min(mean, _MOST_NATS)))
    what = "labels" if answers.labels is not None else "an integer input"
    raise InputError(
        "the metric perplexity needs logits [samples, positions, vocabulary] and token ids "
        f"[samples, positions] ({what}); the outputs are {_shapes(answers)}"
    )


def same_neighbour(answers: Answers) -> float:
    """Percent of samples whose nearest other sample is the same as with the original.

    Nearest by the cosine of embeddings [samples, width]; of [samples, positions, width] the mean
    over positions. With labels (whole numbers) it is the percentage of samples whose nearest other
    sample has the same label. Averaged over outputs; needs three samples.
    """
    shares = []
    for name in answers.measures:
        pairs = [(_pooled(wanted), _pooled(got)) for wanted, got, _ in answers.pairs(name)]
        known = [(wanted, got) for wanted, got in pairs if wanted is not None and got is not None]
        if not known or len(known) < len(pairs):
            continue
        first, second = (np.concatenate(vectors) for vectors in zip(*known, strict=True))
        if first.shape != second.shape or len(first) < 3 or first.shape[1] < 2:
            continue
        nearest = _nearest(second)
        if answers.labels is None:
            shares.append(float((nearest == _nearest(first)).mean()))
            continue
        labels = class_labels(answers.labels)
        if labels is None or labels.shape != (len(first),):
            raise InputError("the metric retrieval takes one whole number as label of each sample")
        shares.append(float((labels[nearest] == labels).mean()))
    if not shares:
        raise InputError(
            "the metric retrieval needs embeddings [samples, width] or [samples, positions, width] "
            f"of three samples or more; the outputs are {_shapes(answers)}"
        )
    return 100 * float(np.mean(shares))


def _decisions(answers: Answers) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Decisions of original and model, flat, output by output."""
    for name in answers.reference:
        measure = answers.measures.get(name)
        first, second = [], []
        for wanted, got, _ in answers.pairs(name):
            if measure is not None:
                if measure.kind is OutputKind.QUANTITIES:
                    continue
                if measure.kind is OutputKind.SCORES and measure.plain_rows(wanted).shape[1] < 2:
                    continue
                before = measure.decisions(wanted)
                after = measure.decisions(got) if got.shape == wanted.shape else None
            elif wanted.dtype.kind in "iub":
                before = wanted.reshape(-1).astype(np.int64)
                after = got.reshape(-1).astype(np.int64) if got.shape == wanted.shape else None
            else:
                continue
            if before is not None:
                first.append(before)
                # what came out in another shape agrees nowhere
                second.append(after if after is not None else before - 1)
        if sum(map(len, first)):
            yield np.concatenate(first), np.concatenate(second)


def _arrays(answers: Answers) -> dict[str, NDArray[Any]]:
    return {n: value for n, value in answers.reference.items() if isinstance(value, np.ndarray)}


def _class_maps(
    answers: Answers, name: str, wanted: NDArray[Any], got: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int] | None:
    """Maps of classes of original and model [samples, height, width], and how many classes."""
    if wanted.shape != got.shape:
        return None
    if wanted.dtype.kind in "iub":
        maps = [_flat_map(array.astype(np.int64)) for array in (wanted, got)]
        if maps[0] is None or maps[1] is None:
            return None
        return maps[0], maps[1], int(max(maps[0].max(initial=0), maps[1].max(initial=0))) + 1
    measure = answers.measures.get(name)
    if measure is None:
        return None
    single = [_flat_map(array) for array in (wanted, got)]
    if single[0] is not None and single[1] is not None:
        limit = 0.5 if wanted.min(initial=0) >= 0 and wanted.max(initial=0) <= 1 else 0.0
        return (single[0] > limit).astype(np.int64), (single[1] > limit).astype(np.int64), 2
    if wanted.ndim != 4:
        return None
    axis = measure.layout.axis if measure.kind is OutputKind.SCORES else _smaller_axis(wanted)
    return wanted.argmax(axis), got.argmax(axis), wanted.shape[axis]


def _smaller_axis(array: NDArray[Any]) -> int:
    """The axis of classes of a map: there are fewer of them than pixels in a row."""
    return 1 if array.shape[1] <= array.shape[-1] else -1


def _flat_map(array: NDArray[Any]) -> NDArray[Any] | None:
    """A map of one channel, [samples, height, width]; None for another shape."""
    if array.ndim == 4 and 1 in (array.shape[1], array.shape[-1]):
        return array.squeeze(1 if array.shape[1] == 1 else -1)
    return array if array.ndim == 3 else None


def _map_labels(labels: Labels | None, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Labels as maps of this shape; None where they are none."""
    classes = None if labels is None else class_labels(labels)
    return (
        classes.reshape(shape) if classes is not None and classes.size == np.prod(shape) else None
    )


def _token_ids(answers: Answers, name: str) -> Values | None:
    """The input that holds the tokens which an output gives scores for; None without."""
    known = []
    for values in answers.inputs.values():
        outputs = [wanted for wanted, _, _ in answers.pairs(name)]
        parts = [_part(values, place, len(outputs)) for place in range(len(outputs))]
        shapes = [output.shape for output in outputs]
        if any(len(shape) != 3 for shape in shapes) or not shapes:
            continue
        fits = all(part.shape == shape[:2] for part, shape in zip(parts, shapes, strict=True))
        ids = np.concatenate([part.reshape(-1) for part in parts])
        if fits and ids.size and ids.max() < shapes[0][2]:
            known.append((len(np.unique(ids)), values))
    return max(known, key=lambda entry: entry[0])[1] if known else None


def _part(values: Any, place: int, count: int) -> Any:
    """What belongs to one of `count` pairs."""
    if values is None or (isinstance(values, np.ndarray) and count == 1):
        return values
    return np.asarray(values[place])[None]


def _cross_entropy(logits: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p of each token, [tokens], from logits [tokens, vocabulary]."""
    if not len(tokens):
        return np.zeros(0)
    with np.errstate(invalid="ignore", over="ignore"):
        highest = logits.max(axis=1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        return np.asarray(total - logits[np.arange(len(tokens)), tokens])


def _pooled(array: NDArray[Any]) -> NDArray[np.float64] | None:
    """Embeddings [samples, width]; None for what is none."""
    if array.ndim == 2:
        return array.astype(np.float64)
    return array.astype(np.float64).mean(axis=1) if array.ndim == 3 else None


def _nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest other row of each row, by cosine, int64 [rows]."""
    vectors = np.nan_to_num(vectors, posinf=0.0, neginf=0.0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.where(lengths > 0, lengths, 1.0)
    block = max(1, _MOST_SIMILARITIES // len(directions))
    nearest = []
    for start in range(0, len(directions), block):
        similar = directions[start : start + block] @ directions.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        nearest.append(similar.argmax(axis=1))
    return np.concatenate(nearest)


def _shapes(answers: Answers) -> str:
    """Names and shapes of the outputs, for messages."""
    return ", ".join(
        f"{name} {list(value.shape) if isinstance(value, np.ndarray) else 'of different shapes'}"
        for name, value in answers.reference.items()
    )
