"""Prune every graph of a folder and check each result from outside.

    python benchmarks/zoo.py FOLDER [--json FILE] [--only TEXT] [--every N] [--normalised-axes]
                                    [--calibrated | --finetuned] [--listed]
                                    [--against onnxsim [--environment FOLDER]]

FOLDER holds `index.json` (`{"models": [{"path": ..., "feed": ...}, ...]}`) and `feed.py` with
`feed_from(feed, seed)`. Every graph is pruned with target channels=0.5, criterion l2 and no
compensation. The check does not trust onnxprune: it sets the slices that the plan does not keep to
zero in the original file, with onnx and numpy alone, and compares both files in onnxruntime on
inputs onnxprune has not seen (what divides and follows from constants alone is left as it is).
Plans that say themselves that a group is inexact (statistics over a cut axis, only with
--normalised-axes) rest on the certificate alone.

With --calibrated, every graph is pruned as by default instead, to 0.7 of its MACs, with 48 feeds of
random numbers as samples. The column `solved` then says how many of the layers that were cut, and
lost something, least squares has re-fitted, and a table their share by exporter with what stood
against the others. Certificates and checks are those of the run itself.

With --finetuned, means make up for what is removed, and the result is fine-tuned for one pass over
the samples. A result whose held-out divergence were larger than before is invalid.

With --listed, every file is first turned into one of IR version 3, whose weights are inputs too.

With --against, the same table for a peer (`peers/peer.py` says how its results are judged).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from peers.peer import PEERS, Peer

import onnxprune
from onnxprune.compensation.least_squares import NOTHING_LOST
from onnxprune.model.load import convert as convert_to_proto
from onnxprune.model.load import load

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIET = ort.SessionOptions()
QUIET.log_severity_level = 4
QUIET.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
DIVIDING = {"Div", "Mod", "Pow"}
RANDOM = {"RandomNormal", "RandomUniform"}
SAMPLES = 48
NO_BETTER = "tried, and no better on held-out samples"


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Bodies of Loop, If and Scan, innermost first, then the graph itself."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs_of(inner)
    yield graph


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and Constant outputs by name, those of bodies included."""
    found = {}
    for graph in graphs_of(model.graph):
        found |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def zeroed(path: Path, plan: onnxprune.Plan) -> onnx.ModelProto:
    """The original with everything the plan does not keep set to zero."""
    model = inlined(onnx.load(path))
    hold_divisors(model)
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    divisors = {node.input[1] for node in nodes if node.op_type in DIVIDING}
    known = constants(model)
    for name, axes in plan.initializers.items():
        if name in divisors:
            continue
        value = np.array(numpy_helper.to_array(known[name]))
        for axis, kept in axes.items():
            gone = np.setdiff1d(np.arange(value.shape[axis]), kept)
            value[(slice(None),) * axis + (gone,)] = 0
        known[name].CopyFrom(numpy_helper.from_array(value, known[name].name))
    return model


def hold_divisors(model: onnx.ModelProto) -> None:
    """Fix divisors that are worked out from constants, such as the norm of a weight: 0/0 is NaN."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    computed: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type not in RANDOM and all(name in fixed for name in node.input if name):
            fixed.update(node.output)
            computed.append(node)
    made = {name for node in computed if node.op_type != "Constant" for name in node.output}
    dividing = [n for n in model.graph.node if n.op_type in DIVIDING and n.input[1] in made]
    if not dividing:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for field in (probe.graph.node, probe.graph.input, probe.graph.output):
        del field[:]
    probe.graph.node.extend(computed)
    names = list(dict.fromkeys(node.input[1] for node in dividing))
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = dict(zip(names, run(probe, {}), strict=True))
    for node in dividing:
        held = f"{node.input[1]}/held"
        if all(tensor.name != held for tensor in model.graph.initializer):
            tensor = numpy_helper.from_array(values[node.input[1]], held)
            model.graph.initializer.append(tensor)
        node.input[1] = held


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions, as onnxprune sees it (constants get the same names)."""
    if not model.functions:
        return model
    return convert_to_proto(load(model).model, "proto")


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[Any]:
    """Outputs of a model, optimisations off."""
    return ort.InferenceSession(model.SerializeToString(), QUIET).run(None, feed)


def difference(wanted: list[Any], got: list[Any]) -> float:
    """Largest difference relative to the largest value of each output.

    Infinite where shapes, strings, or the places of NaN and infinity differ, or nothing is finite.
    """
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind in "OSU" or not a.size:
            worst = max(worst, 0.0 if str(a) == str(b) else np.inf)
            continue
        first, second = a.astype(np.float64), b.astype(np.float64)
        if first.shape != second.shape:
            return np.inf
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.any() or not np.array_equal(first[~finite], second[~finite], equal_nan=True):
            return np.inf
        error = np.abs(first[finite] - second[finite]).max()
        worst = max(worst, float(error / max(np.abs(first[finite]).max(), 1e-30)))
    return worst


def other_batch(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry's feed with one more row where the batch is dynamic."""
    feed = json.loads(json.dumps(entry["feed"]))
    for name, spec in feed.items():
        declared = entry["inputs"][name]["shape"]
        symbols = [spec["shape"][0] for spec in entry["inputs"].values() if spec["shape"]]
        for axis, extent in enumerate(declared):
            if extent in symbols and not isinstance(extent, int):
                spec["shape"][axis] += 1
    return feed


def feeds_of(entry: dict[str, Any], feed_from: Any) -> list[dict[str, np.ndarray]]:
    """What both graphs are run on: the entry's feed, and another batch if the original takes it."""
    feeds = [feed_from(entry["feed"], 11)]
    if entry.get("ok_other_batch"):
        feeds.append(feed_from(other_batch(entry), 12))
    return feeds


def examine(
    folder: Path, entry: dict[str, Any], feed_from: Any, normalised_axes: bool | str
) -> dict[str, Any]:
    """Prune one graph and check the result; never raises."""
    row: dict[str, Any] = {"path": entry["path"]}
    path, started = folder / entry["path"], time.perf_counter()
    try:
        result = onnxprune.prune(
            path,
            target={"channels": 0.5},
            criterion="l2",
            compensate="none",
            measure_latency=False,
            normalised_axes=normalised_axes,
        )
    except onnxprune.OnnxPruneError as error:
        row |= {"outcome": "refused", "code": error.exit_code, "reason": str(error)}
        return row | {"seconds": time.perf_counter() - started}
    except Exception as error:
        row |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
        return row | {"seconds": time.perf_counter() - started}
    row["seconds"] = time.perf_counter() - started
    report = result.report
    row["removed"] = 1 - report.result.params / max(report.original.params, 1)
    row["certificate"] = report.certificate.error
    row["tolerance"] = report.certificate.tolerance
    row["dropped"] = report.dropped
    try:
        pruned, masked = convert_to_proto(result.model, "proto"), zeroed(path, result.plan)
        feeds = feeds_of(entry, feed_from)
        row["outside"] = max(difference(run(masked, f), run(pruned, f)) for f in feeds)
        row["batches"] = len(feeds)
        row["inexact"] = any(group.inexact for group in result.plan.groups)
        good = row["inexact"] or row["outside"] <= report.certificate.tolerance
        row["outcome"] = "pruned" if good else "invalid"
    except Exception as error:
        row |= {"outcome": "invalid", "reason": f"{type(error).__name__}: {error}"}
    return row


BRIEF = {"criterion": "variance", "compensate": "mean", "finetune": True, "effort": 1}
"""Options with which every graph is fine-tuned in seconds."""


def examine_calibrated(
    folder: Path, entry: dict[str, Any], feed_from: Any, *, as_listed: bool, finetuned: bool = False
) -> dict[str, Any]:
    """Prune one graph on random samples, and count the layers re-fitted; never raises."""
    row: dict[str, Any] = {"path": entry["path"], "exporter": exporter_of(entry)}
    started = time.perf_counter()
    try:
        model = onnx.load(folder / entry["path"])
        feeds = [feed_from(entry["feed"], seed) for seed in range(SAMPLES)]
        result = onnxprune.prune(
            listed(model) if as_listed else model,
            target={"macs": 0.7} if has_macs(folder / entry["path"]) else {"params": 0.7},
            calibration=feeds,
            measure_latency=False,
            force=True,  # weights are random: answers may hang by little
            **(BRIEF if finetuned else {}),
        )
    except onnxprune.OnnxPruneError as error:
        row |= {"outcome": "refused", "code": error.exit_code, "reason": str(error)}
        row["kind"] = type(error).__name__
        return row | {"seconds": time.perf_counter() - started}
    except Exception as error:
        row |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
        row["kind"] = type(error).__name__
        return row | {"seconds": time.perf_counter() - started}
    report = result.report
    lost = [fit for fit in report.repairs if fit.cut and fit.reason != NOTHING_LOST]
    reasons = Counter(fit.reason or NO_BETTER for fit in lost if not fit.solved)
    tuning = report.tuning
    if tuning is not None:
        row |= {"before": tuning.before, "after": tuning.after, "frozen": dict(tuning.frozen)}
    row["note"] = report.note
    return row | {
        "outcome": "invalid" if tuning is not None and tuning.after > tuning.before else "pruned",
        "seconds": time.perf_counter() - started,
        "removed": 1 - report.result.params / max(report.original.params, 1),
        "certificate": report.certificate.error,
        "dropped": report.dropped,
        "cut": len(lost),
        "solved": sum(fit.solved for fit in lost),
        "cut_macs": sum(fit.macs for fit in lost),
        "solved_macs": sum(fit.macs for fit in lost if fit.solved),
        "reasons": dict(reasons),
        "unfolded": dict(report.unfolded),
        "warnings": list(report.warnings),
    }


def exporter_of(entry: dict[str, Any]) -> str:
    """What wrote a graph: framework and exporter in a few words."""
    if entry["framework"] == "variants":
        return "variants"
    return f"{entry['framework']}: {entry['exporter'].split(',')[0]}"[:52]


def has_macs(path: Path) -> bool:
    """Whether a graph multiplies at all by onnxprune's count; a tree or a table does not."""
    return bool(onnxprune.inspect(path).sizes.macs)


def listed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as a file of IR version 3: all initializers are inputs too."""
    known = {value.name for value in model.graph.input}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in known
    )
    model.ir_version = 3
    return model


def solved_by_exporter(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table: cut layers that were solved, in numbers and MACs, and the reasons."""
    groups = defaultdict(list)
    for row in rows:
        if row["outcome"] == "pruned":
            groups[row["exporter"]].append(row)
    lines = [f"{'exporter':54} graphs  layers cut  solved  of the MACs  or tried"]
    for name, members in sorted(groups.items()):
        cut, solved, macs, done = (
            sum(row[key] for row in members) for key in ("cut", "solved", "cut_macs", "solved_macs")
        )
        tried = solved + sum(row["reasons"].get(NO_BETTER, 0) for row in members)
        lines.append(
            f"{name:54} {len(members):6} {cut:11} {solved / max(cut, 1):7.1%} "
            f"{done / max(macs, 1):12.1%} {tried / max(cut, 1):9.1%}"
        )
    reasons: Counter[str] = Counter()
    for members in groups.values():
        for row in members:
            reasons.update(row["reasons"])
    return [*lines, *(f"  {count:5} {reason}" for reason, count in reasons.most_common())]


def rows_of(arguments: argparse.Namespace, peer: Peer | None) -> Iterator[dict[str, Any]]:
    """Examine every graph of the folder that was asked for."""
    spec = importlib.util.spec_from_file_location("feed", arguments.folder / "feed.py")
    assert spec is not None
    assert spec.loader is not None
    feed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(feed)
    entries = json.loads((arguments.folder / "index.json").read_text())["models"]
    for entry in [e for e in entries if arguments.only in e["path"]][:: arguments.every]:
        path = entry["path"]
        if arguments.calibrated or arguments.finetuned:
            yield examine_calibrated(
                arguments.folder,
                entry,
                feed.feed_from,
                as_listed=arguments.listed,
                finetuned=arguments.finetuned,
            )
        elif peer is None:
            yield examine(arguments.folder, entry, feed.feed_from, arguments.normalised_axes)
        else:
            feeds = feeds_of(entry, feed.feed_from)
            yield {"path": path, **peer.examine(arguments.folder / path, feeds)}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--normalised-axes", action=argparse.BooleanOptionalAction, default="hidden"
    )
    parser.add_argument("--every", type=int, default=1, help="only every N-th graph")
    parser.add_argument("--calibrated", action="store_true", help="default options with samples")
    parser.add_argument("--finetuned", action="store_true", help="fine-tune what was pruned")
    parser.add_argument("--listed", action="store_true", help="with --calibrated: IR version 3")
    parser.add_argument("--against", choices=PEERS, help="examine a peer instead of onnxprune")
    parser.add_argument("--environment", type=Path, help="the peer's; default: in the user's cache")
    arguments = parser.parse_args()
    peer = Peer(arguments.against, arguments.environment) if arguments.against else None
    rows = []
    for row in rows_of(arguments, peer):
        rows.append(row)
        outside = f"{row['outside']:.1e}" if "outside" in row else "-"
        note = row.get("reason", "") or ", ".join(row.get("dropped", {}))
        solved = f"{row['solved']}/{row['cut']} " if "solved" in row else ""
        if arguments.finetuned:
            solved = f"{row['before']:.3g} -> {row['after']:.3g} " if "before" in row else ""
            note = note or row.get("note", "")
        print(
            f"{row['path']:58} {row['outcome']:9} {row.get('removed', 0):6.1%} "
            f"{outside:>8} {solved}{row['seconds']:6.2f} s  {note[:120]}",
            flush=True,
        )
    outcomes = [row["outcome"] for row in rows]
    removed = [row.get("removed", 0) for row in rows if row["outcome"] == "pruned"]
    without = "refused" if peer is None else "unchanged"
    summary = {kind: outcomes.count(kind) for kind in ("pruned", without, "invalid", "failed")}
    summary |= {f">={bar}%": sum(r >= bar / 100 for r in removed) for bar in (25, 40)}
    print(json.dumps(summary))
    if arguments.calibrated:
        print("\n".join(solved_by_exporter(rows)))
    if arguments.json:
        packages = {"peer": peer.name, "packages": peer.packages} if peer else {}
        report = {**packages, "summary": summary, "models": rows}
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if not peer and (summary["invalid"] or summary["failed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
