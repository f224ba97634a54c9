"""Looking into the bodies of If, Loop and Scan while a model runs.

onnxruntime shows nothing of what happens inside a body. So each body is a model of its own here: an
If says which of its branches runs, a Loop or Scan is gone through iteration by iteration, and the
body is run on what it would read then. Every run of a body counts, and only those there were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.model.bodies import Body, Place, body_of, places, read_from_outside
from onnxprune.model.execution import (
    KnownValues,
    node_reads,
    open_piece,
    open_session,
    piece_of,
    run,
)
from onnxprune.model.runtime import Runtime

Values: TypeAlias = "Mapping[str, Any]"
"""Values of tensors by name: arrays, or what onnxruntime gives for sequences."""

_MOST_ITERATIONS = 100_000
"""Iterations after which a Loop is taken for endless."""


class BodyRuns:
    """On what the bodies of one node run.

    Args:
        model: the model the node is in.
        node: an If, Loop or Scan.
        runtime: how to run a body to its next iteration.
    """

    def __init__(self, model: ir.Model, node: ir.Node, runtime: Runtime) -> None:
        self._model = model
        self._node = node
        self._runtime = runtime
        self._types: dict[str, ir.TypeProtocol | None] = {}
        self._step: tuple[Any, list[str], list[str]] | None = None

    def of(self, values: Values) -> Iterator[tuple[str, dict[str, Any]]]:
        """Go through the runs of the bodies in one run of the node.

        Args:
            values: what the node and its bodies read, constants of the model left out.

        Yields:
            the attribute of the body that runs, and its formal inputs by name.
        """
        if self._node.op_type == "If":
            condition = bool(np.asarray(_value(self._node.inputs[0], values)).item())
            yield "then_branch" if condition else "else_branch", {}
        elif self._node.op_type == "Loop":
            yield from (("body", formals) for formals in self._iterations(values))
        elif self._node.op_type == "Scan" and self._has_no_lengths():
            yield from (("body", formals) for formals in self._slices(values))

    def _has_no_lengths(self) -> bool:
        """Whether a Scan is of opset 9 or newer; before that its first input is of lengths."""
        return len(self._node.inputs) == len(body_of(self._node).graph.inputs)

    def _iterations(self, values: Values) -> Iterator[dict[str, Any]]:
        body, node = body_of(self._node), self._node
        limit = _value(node.inputs[0], values)
        trips = _MOST_ITERATIONS if limit is None else int(np.asarray(limit).item())
        condition = _value(node.inputs[1], values)
        goes_on = condition is None or bool(np.asarray(condition).item())
        states = [_value(node.inputs[slot], values) for slot, *_ in body.states]
        number = 0
        while goes_on and number < min(trips, _MOST_ITERATIONS):
            formals = {
                _name(body.graph.inputs[0]): _shaped(number, np.int64, body.graph.inputs[0]),
                _name(body.graph.inputs[1]): _shaped(True, np.bool_, body.graph.inputs[1]),
            }
            for (_, formal, _, _), state in zip(body.states, states, strict=True):
                formals[_name(body.graph.inputs[formal])] = state
            yield formals
            number += 1
            wanted = [0, *(result for _, _, result, _ in body.states)]
            goes_on_now, *states = self._results(body, wanted, formals, values)
            goes_on = bool(np.asarray(goes_on_now).item())

    def _slices(self, values: Values) -> Iterator[dict[str, Any]]:
        body, node = body_of(self._node), self._node
        states = [_value(node.inputs[slot], values) for slot, *_ in body.states]
        walked = [(_value(node.inputs[slot], values), axis) for slot, _, axis in body.slices]
        directions = node.attributes.get_ints("scan_input_directions") or [0] * len(walked)
        length = walked[0][0].shape[walked[0][1]]
        for number in range(length):
            formals = {}
            for (_, formal, _, _), state in zip(body.states, states, strict=True):
                formals[_name(body.graph.inputs[formal])] = state
            parts = zip(body.slices, walked, directions, strict=True)
            for (_, formal, _), (array, axis), backwards in parts:
                place = length - 1 - number if backwards else number
                formals[_name(body.graph.inputs[formal])] = array.take(place, axis=axis)
            yield formals
            if number < length - 1:
                wanted = [result for _, _, result, _ in body.states]
                states = self._results(body, wanted, formals, values)

    def _results(
        self, body: Body, wanted: Sequence[int], formals: Values, values: Values
    ) -> list[Any]:
        """Some outputs of the body in one run."""
        outputs = [body.graph.outputs[result] for result in wanted]
        around = {name: values[name] for name in outside_values(body.graph) if name in values}
        known = {**around, **formals}
        nodes = nodes_for(body.graph, outputs)
        if nodes:
            if self._step is None:
                made = {value for node in nodes for value in node.outputs}
                names = list(dict.fromkeys(_name(value) for value in outputs if value in made))
                note_types(self._types, known)
                kinds = KnownValues(self._types)
                session, reads = open_piece(self._model, nodes, names, kinds, self._runtime)
                self._step = session, reads, names
            session, reads, names = self._step
            known |= run(session, {name: in_order(known[name]) for name in reads}, names)
        return [_value(value, known) for value in outputs]


class BodyObserver:
    """Runs a model, and its bodies as often as they run.

    Args:
        model: unchanged.
        wanted: key of a graph -> adds what is to be fetched to a copy of the model, or of the body
            as a model of its own, and returns its names. A body without an entry is only entered
            for the sake of those within.
        runtime: how to run everything.
        closed: ids of nodes whose bodies are left out.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Mapping[str, Callable[[ir.Model], list[str]]],
        runtime: Runtime,
        closed: Collection[str] = (),
    ) -> None:
        self._model = model
        self._wanted = wanted
        self._runtime = runtime
        self._places = places(model.graph, closed)
        self._needed = _with_those_around(wanted, self._places)
        self._runs = {
            id(place.node): BodyRuns(model, place.node, runtime)
            for key, place in self._places.items()
            if key in self._needed
        }
        self._opened: dict[str, tuple[Any, list[str] | None, list[str]]] = {}

    def run(self, feed: Values) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run once.

        Args:
            feed: inputs of the model.

        Yields:
            for every run of every graph with something wanted its key, and by name what was fetched
            and what the run was given.

        Raises:
            RuntimeFailure: when onnxruntime refuses the model or the feed. A body that cannot be
                run by itself counts as one that does not run.
        """
        yield from self._run("", feed)

    def _run(self, key: str, given: Values) -> Iterator[tuple[str, dict[str, Any]]]:
        entered = [
            (inner, place)
            for inner, place in self._places.items()
            if place.around == key and inner in self._needed
        ]
        if key in self._wanted or entered:
            if key not in self._opened:
                self._opened[key] = self._open(key, [place for _, place in entered], given)
            session, reads, fetched = self._opened[key]
            feed = given if reads is None else {name: in_order(given[name]) for name in reads}
            results = {**given, **(run(session, feed, fetched) if fetched else {})}
        else:
            results = dict(given)
        if key in self._wanted:
            yield key, results
        nodes = {id(place.node): place.node for _, place in entered}
        for node in nodes.values():
            bodies = {place.attribute: inner for inner, place in entered if place.node is node}
            with contextlib.suppress(RuntimeFailure):
                for attribute, formals in self._runs[id(node)].of(results):
                    inner = bodies.get(attribute)
                    if inner is not None:
                        reads_of = outside_values(self._places[inner].graph)
                        around = {name: results[name] for name in reads_of if name in results}
                        yield from self._run(inner, {**around, **formals})

    def _open(
        self, key: str, entered: Sequence[Place], given: Values
    ) -> tuple[Any, list[str] | None, list[str]]:
        """A session that gives what is wanted of a graph, and what the bodies in it read."""
        nodes = {id(place.node): place.node for place in entered}
        read = {_name(value) for node in nodes.values() for value in node_reads(node)}
        if not key:
            probe, reads = self._model.clone(), None
        else:
            types: dict[str, ir.TypeProtocol | None] = {}
            note_types(types, given)
            inner = list(self._places[key].graph)
            probe, reads = piece_of(self._model, inner, [], KnownValues(types))
        fetched = self._wanted[key](probe) if key in self._wanted else []
        returned = {value.name for value in probe.graph.outputs}
        for node in probe.graph:
            for value in node.outputs:
                if value.name in read:
                    if value.name not in returned:
                        probe.graph.outputs.append(value)
                    fetched.append(value.name)
        fetched = list(dict.fromkeys(fetched))
        if not fetched:
            return None, reads, fetched
        return open_session(probe, self._runtime, arena=False), reads, fetched


def fetch(names: Collection[str]) -> Callable[[ir.Model], list[str]]:
    """What `BodyObserver` takes to fetch tensors as they are."""

    def add(probe: ir.Model) -> list[str]:
        known = {value.name for value in (*probe.graph.outputs, *probe.graph.inputs)}
        made = [value for node in probe.graph for value in node.outputs if value.name in names]
        probe.graph.outputs.extend(value for value in made if value.name not in known)
        return [value.name or "" for value in made]

    return add


def values_in_bodies(
    model: ir.Model,
    names: Mapping[str, Collection[str]],
    feeds: Iterable[Values],
    runtime: Runtime,
    closed: Collection[str] = (),
) -> dict[tuple[str, str], NDArray[Any]]:
    """Values of tensors in the first run of their graph.

    Args:
        model: unchanged.
        names: key of a graph -> tensors that are read in it.
        feeds: inputs of the model; they are gone through until every graph has run.
        runtime: how to run it.
        closed: ids of nodes whose bodies are left out.

    Returns:
        value by key of the graph and name; of graphs that ran.
    """
    wanted = {key: fetch(set(some)) for key, some in names.items() if some}
    observer = BodyObserver(model, wanted, runtime, closed)
    found: dict[tuple[str, str], NDArray[Any]] = {}
    left = set(wanted)
    for feed in feeds:
        if not left:
            break
        for key, values in observer.run(feed):
            if key in left:
                left.discard(key)
                found |= {(key, name): values[name] for name in names[key] if name in values}
    return found


@dataclass(frozen=True)
class SeenBody:
    """What samples run of a body.

    Attributes:
        feed: inputs of the model on which it runs.
        given: what it reads from around it and its formal inputs in its first run.
        samples: how many samples run it, as far as they were counted.
    """

    feed: Values
    given: Values
    samples: int


def seen_bodies(
    model: ir.Model,
    feeds: Iterable[tuple[int, Values]],
    runtime: Runtime,
    closed: Collection[str] = (),
    enough: int = 1,
) -> dict[str, SeenBody]:
    """Bodies that run, by key; those that never do are left out.

    Args:
        model: unchanged.
        feeds: numbers of samples and inputs of the model; they are gone through until every body
            has run on enough samples.
        runtime: how to run it.
        closed: ids of nodes whose bodies are left out.
        enough: number of samples.
    """
    left = set(places(model.graph, closed))
    observer = BodyObserver(model, dict.fromkeys(left, fetch(())), runtime, closed)
    found: dict[str, SeenBody] = {}
    for samples, feed in feeds:
        if not left:
            break
        for key, given in dict(observer.run(feed)).items():
            seen = found.get(key, SeenBody(feed, given, 0))
            found[key] = replace(seen, samples=seen.samples + samples)
            if found[key].samples >= enough:
                left.discard(key)
    return found


def outside_values(graph: ir.Graph) -> list[str]:
    """Names of what a body reads from around it, constants of the model left out."""
    read = read_from_outside(graph)
    return [name for name, value in read.items() if not value.is_initializer()]


def nodes_for(graph: ir.Graph, wanted: Iterable[ir.Value]) -> list[ir.Node]:
    """Nodes of a graph that some values depend on, in graph order."""
    needed: set[ir.Node] = set()
    waiting = [value.producer() for value in wanted]
    while waiting:
        node = waiting.pop()
        if node is not None and node.graph is graph and node not in needed:
            needed.add(node)
            waiting += [value.producer() for value in node_reads(node)]
    return [node for node in graph if node in needed]


def note_types(types: dict[str, ir.TypeProtocol | None], values: Values) -> None:
    """Note the element types of arrays."""
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            types[name] = ir.TensorType(ir.DataType.from_numpy(value.dtype))


def in_order(value: Any) -> Any:
    """An array in C order, of rank 0 too; a sequence as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value, order="C")
    return value


def _with_those_around(wanted: Iterable[str], known: Mapping[str, Place]) -> set[str]:
    """Keys of bodies, and of those they are in."""
    needed = set()
    for key in wanted:
        while key in known and key not in needed:
            needed.add(key)
            key = known[key].around
    return needed


def _value(value: ir.Value | None, known: Values) -> Any:
    """Value of a tensor, be it a constant; None for an input that is left out."""
    if value is None:
        return None
    if _name(value) in known:
        return known[_name(value)]
    constant = ir.convenience.get_const_tensor(value)
    if constant is None:
        raise RuntimeFailure(f"the value of {value.name!r}, which a body needs, is unknown")
    return constant.numpy()


def _shaped(value: Any, dtype: Any, formal: ir.Value) -> NDArray[Any]:
    """A number as a scalar, or as a vector where the body declares one."""
    rank = len(formal.shape) if formal.shape is not None else 0
    return np.full((1,) * rank, value, dtype)


def _name(value: ir.Value) -> str:
    return value.name or ""
