"""Along which axis of each input samples lie.

The model's declared shapes say it. Where all inputs begin with the same size or symbol, samples lie
along the first axis. Else the batch is the symbol that every input has exactly once, whatever the
axis (a recurrent state [layers, batch, width] has it second); inputs of fixed shape, scalars among
them, are then the same for all samples. Where nothing is named, it is the first open axis. Inputs
whose batches have different symbols (texts and images of CLIP) are not tied: each feed is then one
sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model.inputs import InputSpec


@dataclass(frozen=True)
class SampleAxes:
    """Where samples lie in a feed.

    Attributes:
        axes: by input name; an input without an entry is the same for all samples. Empty when each
            feed is one sample.
        fixed: samples that every feed must have; 0 where the model leaves that open.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    fixed: int = 0

    @classmethod
    def of(cls, specs: Sequence[InputSpec]) -> SampleAxes:
        """Find the axes by the declared shapes."""
        ranked = [_with_given_names(spec) for spec in specs if spec.shape != ()]
        firsts = {spec.shape[0] if spec.shape else None for spec in ranked}
        if len(firsts) == 1:
            (first,) = firsts
            return cls({spec.name: 0 for spec in ranked}, first if isinstance(first, int) else 0)
        shapes = {spec.name: spec.shape for spec in ranked if spec.shape is not None}
        if len(shapes) < len(ranked):
            return cls()
        symbols = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
        tied = [axes for symbol in sorted(symbols) if (axes := _along(symbol, shapes))]
        # a side input of fixed shape leaves several symbols: the batch stands in front
        return cls(min(tied, key=lambda axes: sum(axes.values()), default=_unnamed(shapes)))

    def shared(self, specs: Sequence[InputSpec]) -> frozenset[str]:
        """Names of the inputs that are the same for all samples."""
        return frozenset(
            spec.name
            for spec in specs
            if spec.shape == () or (self.axes and spec.name not in self.axes)
        )

    def rows(self, feed: Mapping[str, NDArray[Any]]) -> int | None:
        """Number of samples in a feed; None when the feed is one sample as a whole."""
        lengths = {
            feed[name].shape[axis] if axis < feed[name].ndim else None
            for name, axis in self.axes.items()
            if name in feed
        }
        return lengths.pop() if len(lengths) == 1 else None

    def cut(
        self, feed: Mapping[str, NDArray[Any]], rows: slice | NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Take some samples of a feed; arrays without an axis of samples stay whole."""
        return {
            name: array[(slice(None),) * self.axes[name] + (rows,)] if name in self.axes else array
            for name, array in feed.items()
        }

    def joined(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Put feeds behind one another; see `can_join`."""
        return {
            name: np.concatenate([feed[name] for feed in feeds], axis=self.axes[name])
            if name in self.axes
            else array
            for name, array in feeds[0].items()
        }

    def can_join(self, feed: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether two feeds differ in nothing but samples."""
        return all(
            _without(array.shape, self.axes[name]) == _without(other[name].shape, self.axes[name])
            if name in self.axes
            else np.array_equal(array, other[name])
            for name, array in feed.items()
        )


def _with_given_names(spec: InputSpec) -> InputSpec:
    """An input without the names that exporters make up for open axes."""
    made_up = re.compile(rf"unk__\d+|{re.escape(spec.name)}_dynamic_axes_\d+")
    if spec.shape is None:
        return spec
    shape = [None if isinstance(n, str) and made_up.fullmatch(n) else n for n in spec.shape]
    return replace(spec, shape=tuple(shape))


def _along(
    symbol: str, shapes: Mapping[str, tuple[int | str | None, ...]]
) -> dict[str, int] | None:
    """Axes with a symbol, if every shape that is not fixed has it once.

    Behind a batch of one, fixed in all of them, it is something else, such as time.
    """
    axes: dict[str, int] = {}
    if all(shape[:1] == (1,) for shape in shapes.values() if symbol in shape):
        return None
    for name, shape in shapes.items():
        if shape.count(symbol) == 1:
            axes[name] = shape.index(symbol)
        elif not all(isinstance(size, int) for size in shape):
            return None
    return axes


def _unnamed(shapes: Mapping[str, tuple[int | str | None, ...]]) -> dict[str, int]:
    """The first axis, where it is open, else the only one that is; none where one has a name."""
    axes: dict[str, int] = {}
    if not any(shape[:1] == (None,) for shape in shapes.values()):
        return axes
    for name, shape in shapes.items():
        open_axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if not open_axes:
            continue
        if shape[open_axes[0]] is not None or (open_axes[0] and len(open_axes) > 1):
            return {}
        axes[name] = open_axes[0]
    return axes


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
