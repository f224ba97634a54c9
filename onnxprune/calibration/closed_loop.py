"""Samples of recurrent models: sequences that are fed with the model's own state.

A model of one step has its state among its inputs and outputs::

    y(t), h(t) = model(x(t), h(t - 1))        h(0) = initial

What is given is x alone; the states are those that the original itself computes, as in use. Each
step is one feed. A pruned model is compared on the same feeds, so with the original's states.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.audio import Audio
from onnxprune.calibration.feeds import Array, Feed, as_array, check_feed, check_names
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.scripts import FUNCTION, load_function
from onnxprune.calibration.streams import Samples, spool
from onnxprune.errors import CalibrationError, first_line, nearest, typed_line
from onnxprune.model.execution import open_session, run
from onnxprune.model.inputs import InputSpec, input_specs
from onnxprune.model.runtime import Runtime


@dataclass(frozen=True)
class ClosedLoop:
    """Sequences for a model of one step, whose state comes from its own step before.

    Can be given as `calibration` wherever samples can, and be what a script's function returns.

    Attributes:
        sequences: an iterable of sequences, each either {input: array} whose arrays run over the
            steps (along the axis of samples, or one axis more than the input; arrays without such
            an axis are the same at all steps), or an iterable of feeds; without the states. Or a
            path: a `.npz` file with one sequence, a folder of them, or "module.py:function".
            Or `Audio`, each file of which is a sequence of windows.
        state: name of the output -> name of the input that it is at the next step.
        initial: array by name of a state input, at the first step of every sequence; zeros for
            others.
    """

    sequences: Any
    state: Mapping[str, str]
    initial: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, model: ir.Model, runtime: Runtime) -> Samples:
        """Run the model over all sequences and keep what it was fed with in a temporary file.

        Args:
            model: the original.
            runtime: how to run it.

        Raises:
            CalibrationError: when states, sequences or initial values do not fit the model.
            RuntimeFailure: when onnxruntime cannot run it.
        """
        specs = input_specs(model)
        outputs = [value.name or "" for value in model.graph.outputs]
        state = _pairs(self.state, [spec.name for spec in specs], outputs)
        loop = _Loop(specs, state, self.initial)
        sequences = self.sequences
        if isinstance(sequences, Audio):
            sequences = sequences.sequences(loop.free)
        return spool(loop.feeds(_sequences(sequences), model, runtime), specs, "closed loop")


class _Loop:
    """Feeds of a model whose states are closed; `free` are the inputs that are no states."""

    def __init__(
        self, specs: tuple[InputSpec, ...], state: Mapping[str, str], initial: Mapping[str, Any]
    ) -> None:
        self._specs, self._state, self._initial = specs, state, initial
        self._axes = SampleAxes.of(specs)
        self.free = [spec for spec in specs if spec.name not in state.values()]
        for name in initial:
            if name not in state.values():
                states = ", ".join(map(repr, state.values()))
                raise CalibrationError(f"closed loop: initial names {name!r}; states are {states}")
        if not self.free:
            raise CalibrationError("closed loop: every input is a state; there is nothing to feed")

    def feeds(self, sequences: Iterable[Any], model: ir.Model, runtime: Runtime) -> Iterator[Feed]:
        """Run the model step by step."""
        session = open_session(model, runtime)
        done = 0
        for number, sequence in enumerate(sequences):
            where = f"closed loop: sequence {number}"
            state: dict[str, Array] = {}
            feed: Feed | None = None
            for step in self._steps(sequence, where):
                if not isinstance(step, Mapping):
                    raise CalibrationError(
                        f"{where}: a step is {{input: array}}, not {type(step).__name__}"
                    )
                state = state or self._first_state(step, where)
                feed = check_feed({**step, **state}, self._specs, self._axes, where, done, feed)
                got = run(session, feed, list(self._state))
                state = {name: got[output] for output, name in self._state.items()}
                yield feed
                done += 1

    def _steps(self, sequence: Any, where: str) -> Iterator[Any]:
        """What is fed at each step besides the states."""
        if not isinstance(sequence, Mapping):
            try:
                yield from sequence
            except CalibrationError:
                raise
            except Exception as error:  # third-party code
                raise CalibrationError(f"{where}: {typed_line(error)}") from error
            return
        shared = self._axes.shared(self._specs)
        check_names(sequence, self.free, where, shared)
        arrays = {spec.name: as_array(sequence[spec.name], spec, where) for spec in self.free}
        axes = {spec.name: self._axis(spec, arrays[spec.name]) for spec in self.free}
        lengths = {
            name: arrays[name].shape[axis] for name, (axis, _) in axes.items() if axis is not None
        }
        # what has one step beside others of many is the same at all of them
        steps = max(lengths.values(), default=0)
        if not steps:
            raise CalibrationError(f"{where}: no array of it runs over steps")
        for name, length in lengths.items():
            if length not in (1, steps):
                raise CalibrationError(f"{where}: {length} steps for {name!r}, others have {steps}")
        for step in range(steps):
            yield {
                name: _at(arrays[name], axis, step if lengths.get(name) == steps else 0, keep=keep)
                for name, (axis, keep) in axes.items()
            }

    def _axis(self, spec: InputSpec, array: Array) -> tuple[int | None, bool]:
        """Along which axis of an array steps lie, None for none, and whether a step keeps it."""
        rank = array.ndim if spec.shape is None else len(spec.shape)
        if array.ndim == rank + 1:
            return 0, False
        return (self._axes.axes.get(spec.name) if rank else None), True

    def _first_state(self, step: Mapping[str, Any], where: str) -> dict[str, Array]:
        """Initial values of all states."""
        specs = {spec.name: spec for spec in self._specs}
        sizes = {
            dim: size
            for spec in self.free
            for size, dim in zip(np.shape(step.get(spec.name, ())), spec.shape or (), strict=False)
            if isinstance(dim, str)
        }
        rows = self._axes.rows({n: np.asarray(a) for n, a in step.items()})
        return {
            name: as_array(self._initial[name], specs[name], where)
            if name in self._initial
            else self._zeros(specs[name], sizes, rows)
            for name in self._state.values()
        }

    def _zeros(self, spec: InputSpec, sizes: Mapping[str, int], rows: int | None) -> Array:
        """Zeros of the shape of a state."""
        shape = []
        for axis, dim in enumerate(spec.shape or ()):
            size = dim if isinstance(dim, int) else sizes.get(dim or "")
            if size is None and axis == self._axes.axes.get(spec.name):
                size = rows
            if size is None:
                break
            shape.append(size)
        if spec.shape is None or len(shape) < len(spec.shape):
            raise CalibrationError(
                f"closed loop: the shape of the state {spec.name!r} is open; give "
                f"initial={{{spec.name!r}: array}}"
            )
        return np.zeros(shape, spec.dtype)


def _at(array: Array, axis: int | None, step: int, *, keep: bool) -> Array:
    """An array at one step."""
    if axis is None:
        return array
    if not keep:
        return np.asarray(array[step])
    return array[(slice(None),) * axis + (slice(step, step + 1),)]


def _pairs(
    state: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, str]:
    """Output -> input of each state, whichever was named first.

    Raises:
        CalibrationError: for names that are none of an output and an input.
    """
    if not isinstance(state, Mapping) or not state:
        raise CalibrationError("closed loop: state is {output: input} with at least one entry")
    pairs = {}
    for first, second in state.items():
        if first not in outputs and second in outputs:
            first, second = second, first
        for name, known, kind in ((first, outputs, "output"), (second, inputs, "input")):
            if name not in known:
                raise CalibrationError(
                    f"closed loop: the model has no {kind} {name!r}{nearest(name, known)}"
                )
        pairs[first] = second
    return pairs


def _sequences(source: Any) -> Iterator[Any]:
    """Go through sequences wherever they are.

    Raises:
        CalibrationError: when they cannot be read.
    """
    where = "closed loop"
    if isinstance(source, (str, os.PathLike)):
        where = f"calibration {os.fspath(source)}"
        source = _from_path(Path(source), where)
    if callable(source) and not hasattr(source, "__iter__"):
        source = source()
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise CalibrationError(
            f"{where}: expected an iterable of sequences, each {{input: array}} or feeds, not "
            f"{type(source).__name__}"
        )
    empty = True
    for sequence in source:
        empty = False
        yield sequence
    if empty:
        raise CalibrationError(f"{where}: gives no sequences")


def _from_path(path: Path, where: str) -> Any:
    if FUNCTION.fullmatch(str(path)):
        return load_function(str(path))
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".npz" for file in files):
        raise CalibrationError(
            f"{where}: sequences are a .npz file, a folder of them, or module.py:function"
        )
    return (_loaded(file) for file in files)


def _loaded(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"calibration {path}: cannot be read: {first_line(error)}") from None
