"""How arrays divide into samples: rows along the axes of samples, or whole feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from onnxprune.calibration.array_files import ArrayPart
from onnxprune.calibration.feeds import Array, describe, fits, is_single
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import CalibrationError
from onnxprune.model.inputs import InputSpec

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shape of each array, by the name of its input."""


class _NotTied(CalibrationError):
    """Arrays of different first sizes, which the model does not tie to each other."""


@dataclass(frozen=True)
class Layout:
    """How the arrays of a part divide into samples.

    Attributes:
        samples: number of rows, or of whole feeds when `joins_with` is None.
        joins_with: parts with the same value may share a batch; None when each sample is a whole
            feed.
        axes: where rows lie; inputs without an axis are the same in each batch.
        strides: rows per whole feed and input; 0 where a feed is one index of the first axis.
    """

    samples: int
    joins_with: tuple[tuple[int, ...], ...] | None = None
    axes: SampleAxes = field(default_factory=SampleAxes)
    strides: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, part: ArrayPart, specs: Sequence[InputSpec]) -> Layout:
        """Work the layout out.

        Raises:
            CalibrationError: when shapes do not fit the inputs, or the inputs each other.
        """
        shapes, declared = dict(part.shapes), {spec.name: spec.shape for spec in specs}
        for name, shape in shapes.items():
            if 0 in shape[:1]:
                raise CalibrationError(f"{part.where}: no samples for the input {name!r}")
        # the same for all samples, unless there is one for each
        single = {spec.name for spec in specs if is_single(shapes[spec.name], spec.shape)}
        single |= {
            name
            for name, shape in declared.items()
            if shape is not None and _is_fixed(shape) and shapes[name] == shape
        }
        stacked = {spec.name for spec in specs if spec.name not in single and _is_stack(part, spec)}
        axes = _rows(SampleAxes.of(specs), shapes, declared, single, part.where)
        if axes is not None and not stacked:
            return cls._of_rows(axes, shapes)
        rows = [spec for spec in specs if spec.name not in stacked and shapes[spec.name]]
        sizes = {_first_dim(spec) for spec in rows} - {0}
        lengths = {spec.name: shapes[spec.name][0] for spec in rows}
        if rows and not stacked and len(sizes) <= 1 and len(set(lengths.values())) == 1:
            fixed = max(sizes, default=0)
            return cls._of_rows(SampleAxes(dict.fromkeys(lengths, 0), fixed), shapes)
        strides = dict.fromkeys(stacked, 0)
        strides |= {spec.name: _first_dim(spec) or 1 for spec in rows if spec.name not in single}
        feeds = {name: shapes[name][0] // (strides[name] or 1) for name in strides}
        _check_equal(feeds, part.where)
        return cls(next(iter(feeds.values()), 1), strides=strides)

    @classmethod
    def _of_rows(cls, axes: SampleAxes, shapes: Shapes) -> Layout:
        lengths = {shapes[name][axis] for name, axis in axes.axes.items()}
        others = tuple(
            shape[: axes.axes[name]] + shape[axes.axes[name] + 1 :]
            for name, shape in shapes.items()
            if name in axes.axes
        )
        return cls(lengths.pop(), others, axes)

    def rows(self, arrays: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Cut rows out of every input that has some."""
        return self.axes.cut(arrays, slice(start, stop))

    def feed(self, arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
        """Cut one whole feed out."""
        cut = dict(arrays)
        for name, stride in self.strides.items():
            array = arrays[name]
            cut[name] = array[index * stride : (index + 1) * stride] if stride else array[index]
        return cut


def layouts_of(
    parts: Sequence[ArrayPart], specs: Sequence[InputSpec], *, folder: bool
) -> list[Layout]:
    """Layouts of several parts.

    Args:
        parts: in their order.
        specs: the inputs of the model.
        folder: each part is a file of a folder. Where first sizes differ and the model does not
            tie them to each other, each file then is one whole feed.

    Raises:
        CalibrationError: when shapes do not fit the inputs, or the inputs each other.
    """
    try:
        return [Layout.of(part, specs) for part in parts]
    except _NotTied as error:
        if not folder:
            raise CalibrationError(
                f"{error}, or, where a run takes several of them together, a folder with one .npz "
                "for each run"
            ) from None
    for part in parts:
        for spec in specs:
            shape = part.shapes[spec.name]
            fitting = spec.shape is None or fits(shape, spec.shape)
            if not fitting and not is_single(shape, spec.shape):
                raise CalibrationError(
                    f"{part.where}: the input {spec.name!r} got the shape {list(shape)}, expected "
                    f"{describe(spec.shape or ())}: the first sizes of the inputs differ, so each "
                    "file is one run"
                )
    return [Layout(1) for _ in parts]


def _rows(
    axes: SampleAxes,
    shapes: Shapes,
    declared: Mapping[str, tuple[int | str | None, ...] | None],
    single: set[str],
    where: str,
) -> SampleAxes | None:
    """The axes that the model declares, where the arrays are rows along these.

    Raises:
        CalibrationError: when inputs that the model ties to each other have different lengths.
    """
    if not axes.axes or any(name not in axes.axes and name not in single for name in shapes):
        return None
    lengths = {}
    for name, axis in axes.axes.items():
        shape, expected = shapes[name], declared[name]
        if expected is not None:
            rest = (*expected[:axis], None, *expected[axis + 1 :])
            if not fits(shape, rest):
                return None
        lengths[name] = shape[axis]
    if len(set(lengths.values())) > 1:
        if axes.fixed == 1 and len({lengths[name] for name in lengths if name not in single}) <= 1:
            return None
        _check_equal(lengths, where, tied=True)
    return axes


def _is_stack(part: ArrayPart, spec: InputSpec) -> bool:
    """Say whether an array stacks whole feeds (one axis more than the input) rather than rows."""
    shape = part.shapes[spec.name]
    declared = spec.shape
    if declared is None:
        return False
    if not declared:
        if len(shape) <= 1:
            return len(shape) == 1
    elif len(shape) == len(declared) and fits(shape[1:], declared[1:]):
        return False
    elif len(shape) == len(declared) + 1 and fits(shape[1:], declared):
        return True
    remedy = ""
    if len(shape) == len(declared) - 1:
        remedy = "; add the axis of samples in front"
    raise CalibrationError(
        f"{part.where}: the input {spec.name!r} got the shape {list(shape)}, expected "
        f"{describe(declared)} with samples along the first axis{remedy}"
    )


def _is_fixed(shape: Sequence[int | str | None]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _first_dim(spec: InputSpec) -> int:
    """Return the size of the first axis when the model fixes it, else 0."""
    first = spec.shape[0] if spec.shape else None
    return first if isinstance(first, int) else 0


def _check_equal(counts: Mapping[str, int], where: str, *, tied: bool = False) -> None:
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        message = f"{where}: different numbers of samples: {listing}; give each input as many"
        raise CalibrationError(message) if tied else _NotTied(message)
