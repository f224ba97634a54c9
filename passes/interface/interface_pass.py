"""What keep-classes and keep-tokens share: their base class, and how the kept entries are read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import InputError
from onnxprune.model.execution import Execution
from onnxprune.model.observe import Facts
from onnxprune.passes.pipeline.protocol import Pass

_LEAST_SAMPLES = 64
"""Fewest samples of the kept classes for later passes to see these alone."""


class InterfacePass(Pass, ir.passes.InPlacePass):
    """A pass that changes the inputs or outputs of a model.

    Args:
        keep: what to keep, as `read_entries` takes it.
        outputs: names of the outputs that have an entry for each; None for all that may have.
        context: samples to compare on, None for randomly generated inputs; runtime and seed.

    Attributes:
        details: what was done, for people and JSON; filled by the call.
        files: suffix -> text of files that belong beside the model; filled by the call.
    """

    changes_interface = True

    def __init__(
        self, keep: str | Sequence[int | str], outputs: Sequence[str] | None, context: RunContext
    ) -> None:
        super().__init__()
        self.keep = keep
        self.outputs = outputs
        self.context = context

    def require_named(self, cuttable: Collection[str], facts: Facts, size: int) -> None:
        """Require that every output which the user has named has an axis of the entries.

        Args:
            cuttable: outputs that have one.
            facts: shapes.
            size: how many entries there are.

        Raises:
            InputError: naming the first that has none.
        """
        names = [self.outputs] if isinstance(self.outputs, str) else self.outputs
        for name in names or ():
            if name not in cuttable:
                shape = facts.first.shapes.get(name, ())
                raise InputError(
                    f"output {name!r} has no axis with {size} entries; its shape is {shape}"
                )


def note_kept(model: ir.Model, key: str, kept: NDArray[np.int64], size: int) -> str:
    """List in a model's metadata which entries are kept, by their numbers in the original.

    Args:
        model: changed in place.
        key: of the entry, a JSON list; one from an earlier cut is taken into account.
        kept: entries that stay.
        size: how many there were.

    Returns:
        The list as written.
    """
    before = json.loads(model.metadata_props.get(key, "null")) or list(range(size))
    model.metadata_props[key] = json.dumps([before[number] for number in kept])
    return model.metadata_props[key]


def read_entries(source: str | os.PathLike[str] | Sequence[int | str], what: str) -> list[str]:
    """Read numbers or names.

    Args:
        source: a sequence of them; text such as "3,7,9"; or the path of a file: one a line, or a
            JSON list.
        what: what they are, for messages.

    Raises:
        InputError: when there are none, or the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        entries = _from_file(Path(text)) if _names_file(text) else text.split(",")
    else:
        entries = [str(entry) for entry in source]
    entries = [entry.strip() for entry in entries if entry.strip()]
    if not entries:
        raise InputError(f"{what}: none are given; name those to keep, such as 3,7,9")
    return entries


def resolve(
    entries: Sequence[str], size: int, names: Sequence[str] | None, what: str
) -> NDArray[np.int64]:
    """Turn numbers and names into numbers.

    Args:
        entries: as `read_entries` gives them.
        size: how many there are.
        names: their names in order, where they have any.
        what: what they are, for messages.

    Returns:
        ascending, each once, int64 [kept].

    Raises:
        InputError: for an unknown name, a number that does not exist, or when all are kept.
    """
    number_of = {name: number for number, name in enumerate(names or ())}
    numbers = set()
    for entry in entries:
        if entry in number_of:
            numbers.add(number_of[entry])
        elif entry.isdecimal():
            numbers.add(int(entry))
        else:
            reason = "names are not known here; give `names`" if names is None else "no such name"
            raise InputError(f"{what} {entry!r}: {reason}")
    if max(numbers) >= size:
        raise InputError(f"{what} {max(numbers)}: there are {size}, numbered from 0")
    if len(numbers) == size:
        raise InputError(f"{what}: all {size} are kept; leave some out")
    return np.array(sorted(numbers), np.int64)


def _names_file(text: str) -> bool:
    """Whether a text is a path: such a file exists, or it can be nothing else."""
    return Path(text).is_file() or os.sep in text or text.endswith((".txt", ".json"))


def _from_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if path.suffix != ".json":
        return text.splitlines()
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: is not a JSON list")
    return [str(entry) for entry in entries]


@dataclass(frozen=True)
class KeptSamples:
    """A classifier that picks the samples of the kept classes.

    Attributes:
        classifier: the model, ready to run.
        output: name of its scores [samples, classes].
        kept: the classes whose samples are wanted.
        axes: where samples lie in a feed.
    """

    classifier: Execution
    output: str
    kept: NDArray[np.int64]
    axes: SampleAxes

    def of(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The samples of a feed whose best class is a kept one; arrays may have no rows."""
        best = self.classifier.run(feed)[self.output].argmax(axis=1)
        return self.axes.cut(feed, np.flatnonzero(np.isin(best, self.kept)))


def samples_of(
    model: ir.Model, output: str, kept: NDArray[np.int64], context: RunContext
) -> KeptSamples | None:
    """Pick samples by a classifier.

    Args:
        model: the classifier; must not change afterwards.
        output: its scores [samples, classes].
        kept: classes whose samples are wanted.
        context: samples and runtime.

    Returns:
        None without samples, where too few would be left, or where the model or a feed fixes the
        size of the batch.
    """
    samples = context.samples
    if samples is None or samples.axes.fixed:
        return None
    picked = KeptSamples(Execution(model, context.runtime), output, kept, samples.axes)
    count = 0
    for feed in samples.batches(BATCH):
        if samples.axes.rows(feed) is None:
            return None
        count += samples.axes.rows(picked.of(feed)) or 0
    return picked if count >= _LEAST_SAMPLES else None
