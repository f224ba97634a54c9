"""What is known of a model before anything is chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.bodies import SeenBody, Values, seen_bodies
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH, Moments, Tap, collect
from onnxprune.coupling.groups import Group, Reading, Refused, find_groups, find_refusals
from onnxprune.coupling.hidden_axes import trace_hidden
from onnxprune.coupling.idle_bodies import without_idle
from onnxprune.coupling.step import Consumer
from onnxprune.coupling.trace import Coupling, display_name, trace
from onnxprune.errors import CalibrationError, InputError, RuntimeFailure
from onnxprune.model.bodies import node_id, places, subgraphs
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import input_specs
from onnxprune.model.observe import Facts, Observation, observe
from onnxprune.options import HIDDEN, PruneOptions

_OBSERVED_ROWS = 2
"""Samples that a model is observed on: more than one, so that the batch axis shows."""

_FEWEST = 2
"""Samples that run a body, below which nothing is known of it: one shows no variation."""

_ENOUGH = 16
"""Samples that run a body, below which there is a warning."""


@dataclass(frozen=True)
class Analysis:
    """What is known of a model before anything is chosen.

    Attributes:
        model: the original.
        coupling: its labels.
        groups: all groups of removable units.
        refused: axes that cannot be cut, and why.
        file_bytes: size of the original's file, external data included; 0 where that is unknown.
        reference: the model whose outputs are to be kept, where `model` has lost something already.
        altered: sums of the model that have a constant where the reference has a residual branch.
        more_runs: runs in which samples run bodies that the observed runs do not.
        unseen: keys of bodies that run in none of all these runs.
        passing: names of groups that pass through a body which no sample runs.
        warnings: what is odd about the samples of bodies, each with the next step.
    """

    model: ir.Model
    coupling: Coupling
    groups: tuple[Group, ...]
    refused: tuple[Refused, ...]
    reference: ir.Model | None = None
    file_bytes: int = 0
    altered: tuple[str, ...] = ()
    more_runs: tuple[Observation, ...] = ()
    unseen: frozenset[str] = frozenset()
    passing: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    @property
    def original(self) -> ir.Model:
        """The model whose outputs are to be kept, and whose costs targets are fractions of."""
        return self.reference or self.model

    def runs(self) -> list[Observation]:
        """The runs the model was observed in, one for each distinct size, and `more_runs`."""
        facts = self.coupling.facts
        second = [facts.second] if facts.second is not facts.first else []
        return [facts.first, *second, *self.more_runs]

    def selected(self, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
        """Groups that the include and exclude patterns leave.

        Raises:
            InputError: when a pattern matches nothing in the model.
        """
        readers: dict[str, set[str]] = defaultdict(set)
        called: dict[str, Set[str]] = {}
        for entry in _node_names(self.original.graph):
            called[entry.node] = entry.names
            for tensor in entry.reads:
                readers[tensor] |= entry.names
        everything = readers.keys() | set().union(*called.values())
        everything |= {group.name for group in self.groups}
        everything |= {refused.axis for refused in self.refused}
        for pattern in (*include, *exclude):
            if not is_selected(everything, [pattern], ()):
                raise InputError(f"the pattern {pattern!r} matches no node or tensor of the model")

        def names_of(group: Group) -> set[str]:
            tensors = {owned.tensor for owned in group.owned}
            nodes = {reading.consumer.node for reading in group.readings}
            named: list[Set[str]] = [*(readers.get(tensor, set()) for tensor in tensors)]
            named += [called.get(node, set()) for node in nodes]
            return {group.name}.union(tensors, *named)

        return [group for group in self.groups if is_selected(names_of(group), include, exclude)]

    def names_at(self, tensor: str, classes: Mapping[str, Sequence[int]]) -> list[str]:
        """Names of the groups that remove something of a tensor."""
        labels = self.coupling.tensors.get(tensor)
        if labels is None:
            return []
        of_atom = self.coupling.unit_of
        found = {
            int(unit) for label in labels.axis_labels for unit in np.unique(of_atom[label.atoms])
        }
        return [name for name, removed in classes.items() if found & set(removed)]


def analyse(
    model: ir.Model,
    context: RunContext,
    *,
    normalised_axes: bool | str = False,
    file_bytes: int = 0,
) -> Analysis:
    """Observe a model, trace its coupling and find what can be removed.

    Args:
        model: unchanged.
        context: runtime and seed; the first of the samples, if any, set the traced size.
        normalised_axes: whether axes that normalisation statistics run over may be cut: all,
            none, or those of hidden layers.
        file_bytes: size of the model's file, external data included; 0 where it is unknown.

    Raises:
        InputError: when the model does not run on randomly generated inputs and there are no
            samples.
        CalibrationError: when the model does not run on the samples.
    """
    facts = observe_model(model, context)
    coupling = _traced(model, facts, normalised_axes)
    seen = _seen_bodies(model, context)
    if coupling.closed and seen:
        given = _given_to_bodies(model, seen, context)
        coupling = _traced(model, facts, normalised_axes, given)
    known = places(model.graph, coupling.closed)
    readers = {consumer.body for consumer in coupling.consumers}
    total = max((body.samples for body in seen.values()), default=0)
    if context.samples is not None:
        idle = {key: why for key in known if (why := _why_idle(seen.get(key)))}
        coupling = replace(coupling, idle=idle)
    groups, idle_axes, passing = without_idle(model.graph, coupling, find_groups(coupling))
    few = [
        f"only {body.samples} samples run {known[key]}: too few to tell what matters; give more"
        for key, body in seen.items()
        if key in readers and key not in coupling.idle and body.samples < min(_ENOUGH, total)
    ]
    more_runs, unseen = _more_runs(model, facts, seen, context)
    return Analysis(
        model,
        coupling,
        tuple(groups),
        (*find_refusals(coupling), *idle_axes),
        file_bytes=file_bytes,
        more_runs=more_runs,
        unseen=unseen & known.keys(),
        passing=passing,
        warnings=(*dict.fromkeys(axis.reason for axis in idle_axes), *few),
    )


def _traced(
    model: ir.Model,
    facts: Facts,
    normalised_axes: bool | str,
    given: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Coupling:
    """Label every tensor, with the normalised axes that may be cut."""
    if normalised_axes == HIDDEN:
        return trace_hidden(model, facts, given)
    return trace(model, facts, normalised=bool(normalised_axes), given=given)


def _seen_bodies(model: ir.Model, context: RunContext) -> Mapping[str, SeenBody]:
    """What the samples run of bodies; nothing where there are no samples.

    Raises:
        CalibrationError: when the model does not run on the samples.
    """
    samples = context.samples
    if samples is None or not places(model.graph):
        return {}
    feeds = ((samples.axes.rows(feed) or 1, feed) for feed in samples.batches(BATCH))
    try:
        return seen_bodies(model, feeds, context.runtime, enough=_ENOUGH)
    except RuntimeFailure as error:
        raise CalibrationError(f"the model does not run on the samples: {error}") from error


def _given_to_bodies(
    model: ir.Model, seen: Mapping[str, SeenBody], context: RunContext
) -> dict[str, list[Values]]:
    """What bodies are given by as few samples as the model is observed on, and by more."""
    assert context.samples is not None
    axes = context.samples.axes
    feeds = {id(body.feed): dict(body.feed) for body in seen.values()}
    given: dict[str, list[Values]] = defaultdict(list)
    for rows in (_OBSERVED_ROWS, _OBSERVED_ROWS + 1):
        few = [(1, axes.cut(feed, slice(rows))) for feed in feeds.values()]
        for key, body in seen_bodies(model, few, context.runtime).items():
            given[key].append(body.given)
    return given


def _why_idle(seen: SeenBody | None) -> str:
    """Why nothing is known of a body; empty where something is."""
    if seen is None:
        return "no sample runs"
    return "only one sample runs" if seen.samples < _FEWEST else ""


def _more_runs(
    model: ir.Model, facts: Facts, seen: Mapping[str, SeenBody], context: RunContext
) -> tuple[tuple[Observation, ...], frozenset[str]]:
    """Runs of bodies that the observed runs leave out, and bodies that run in neither."""
    known = places(model.graph).keys()
    if not known:
        return (), frozenset()
    feeds = [(1, facts.first.feed), (1, facts.second.feed)]
    try:
        observed = seen_bodies(model, feeds, context.runtime)
    except RuntimeFailure:  # a body that onnxruntime does not run apart from its node
        return (), frozenset()
    unseen = frozenset(known - observed.keys() - seen.keys())
    more = {id(body.feed): body.feed for key, body in seen.items() if key not in observed}
    if not more:
        return (), unseen
    execution = Execution(model, context.runtime, optimise=False)
    runs = tuple(Observation(feed, outputs=execution.run(feed)) for feed in more.values())
    return runs, unseen


def _node_names(graph: ir.Graph, around: Set[str] = frozenset()) -> Iterator[_NodeNames]:
    """What each node of a graph and of the bodies in it is called.

    Args:
        graph: the main graph, or a body.
        around: names of the nodes it is in.
    """
    for node in graph:
        outputs = {value.name or "" for value in node.outputs}
        names = frozenset({node.name or "", display_name(node), *outputs, *around} - {""})
        for body in subgraphs(node):
            yield from _node_names(body, names)
        reads = [value.name for value in node.inputs if value is not None and value.name]
        yield _NodeNames(node_id(node), reads, names)


@dataclass(frozen=True)
class _NodeNames:
    """What a node is called.

    Attributes:
        node: its id.
        reads: names of the tensors it reads.
        names: of the node, of what it makes, and of the nodes in whose bodies it is.
    """

    node: str
    reads: Sequence[str]
    names: Set[str]


def observe_model(model: ir.Model, context: RunContext) -> Facts:
    """Run a model at two sizes and note its shapes.

    Args:
        model: unchanged.
        context: runtime and seed; the first of the samples, if any, set the first size.

    Raises:
        InputError: when the model does not run on randomly generated inputs and there are no
            samples.
        CalibrationError: when the model does not run on the samples.
    """
    sample = None
    if context.samples is not None:
        sample = context.samples.take(_OBSERVED_ROWS)
        for spec in input_specs(model):
            if spec.name not in sample:
                raise CalibrationError(f"the samples lack input {spec.name!r}")
    try:
        return observe(model, context.runtime, np.random.default_rng(context.seed), sample)
    except RuntimeFailure as error:
        if sample is None:
            raise InputError(f"the model does not run: {error}") from error
        raise CalibrationError(f"the model does not run on the samples: {error}") from error


def is_selected(names: Collection[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether name patterns leave something: any name is included, and none is excluded.

    Args:
        names: of its tensors and nodes.
        include: names, or patterns as in `fnmatch`; empty for everything.
        exclude: names, or patterns as in `fnmatch`.
    """

    def match(patterns: Sequence[str]) -> bool:
        return any(
            name == pattern or fnmatchcase(name, pattern) for name in names for pattern in patterns
        )

    return (not include or match(include)) and not match(exclude)


def why_nothing(
    analysis: Analysis, options: PruneOptions, dropped: Mapping[str, str] | None = None
) -> str:
    """Say why no group is left to prune."""
    if dropped:
        name, reason = next(iter(dropped.items()))
        return f"nothing can be pruned: {name} cannot be cut: {reason}"
    if analysis.groups and (options.include or options.exclude):
        return "nothing can be pruned: include and exclude leave no group"
    if analysis.groups:
        return "nothing can be pruned: the target leaves every unit where it is"
    if not analysis.refused:
        return "nothing can be pruned: the model has no weights with a cuttable axis"
    worst = max(analysis.refused, key=lambda refused: refused.parameters)
    remedy = ""
    if options.normalised_axes is not True and "takes statistics" in worst.reason:
        remedy = "; --normalised-axes cuts it nevertheless"
    return (
        f"nothing can be pruned: {len(analysis.refused)} axes are refused, the largest is "
        f"{worst.axis}: {worst.reason} (at {worst.node}){remedy}"
    )


def statistics_of(analysis: Analysis, context: RunContext) -> dict[Tap, Moments]:
    """Moments, over the samples, of every activation that a consumer reads a group from.

    Args:
        analysis: the model and its groups.
        context: samples, which have to be there, runtime and progress callback.
    """
    assert context.samples is not None
    taps = [
        tap_of(analysis.coupling, reading)
        for group in analysis.groups
        for reading in group.readings
    ]
    return collect(analysis.model, taps, context.samples, context.runtime, context.progress)


def tap_of(coupling: Coupling, reading: Reading) -> Tap:
    """Where the statistics of a reading are taken: at the consumer's own input."""
    consumer = reading.consumer
    plain = tap_at(coupling, consumer, reading.axes)
    if 0 not in reading.axes:
        return plain
    lines = np.moveaxis(reading.units, reading.axes.index(0), 0)
    return replace(plain, extent=len(lines), period=_period(lines))


def tap_at(coupling: Coupling, consumer: Consumer, axes: tuple[int, ...]) -> Tap:
    """Where the statistics of some axes of what a consumer reads are taken."""
    rank = len(coupling.tensors[consumer.tensor].shape)
    return Tap(consumer.tensor, axes, rank, body=consumer.body)


def _period(lines: NDArray[np.int64]) -> int:
    """After how many entries of axis 0 the same come again."""
    count = len(lines)
    divisors = (length for length in range(1, count + 1) if count % length == 0)
    return next(d for d in divisors if np.array_equal(np.resize(lines[:d], lines.shape), lines))
