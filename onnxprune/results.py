"""What the functions of the API return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.model.save import check_writable, save, write_text_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx
    import onnx_graphsurgeon as gs
    import onnx_ir as ir

    from onnxprune.cost.nodes import NodeCost
    from onnxprune.coupling.groups import Group, Refused
    from onnxprune.plan import Plan
    from onnxprune.report.network import Network
    from onnxprune.report.summary import Report, Sizes
    from onnxprune.verification.comparison import OutputComparison

__all__ = ["Comparison", "Inspection", "PruneResult"]


@dataclass(frozen=True)
class PruneResult:
    """What `prune` and `apply` return.

    Attributes:
        model: the smaller model, of the kind that was given (an ir.Model for a path).
        plan: what was removed.
        report: numbers before and after, certificate, refusals.
    """

    model: onnx.ModelProto | ir.Model | gs.Graph
    plan: Plan
    report: Report
    _ir: ir.Model
    _source: Path | None = None

    def save(self, path: str | Path) -> None:
        """Write the smaller model atomically.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        save(self._ir, path, protect=self._source)

    def save_report(
        self,
        path: str | Path,
        *,
        command: Sequence[str] = (),
        model_file: str | Path | None = None,
    ) -> None:
        """Write the report as one self-contained HTML file, atomically.

        Args:
            path: the file to write.
            command: the words of the command line that made it; empty for none.
            model_file: where the model was saved; its digest is shown then.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        check_writable(path, self._source)
        page = self.report.to_html(command=command, model_file=model_file)
        write_text_atomic(path, page)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` returns.

    Attributes:
        sizes: what the model costs.
        batch: rows of the feed that `sizes.macs` refers to.
        nodes: cost of every node that multiplies or reads parameters.
        groups: groups of removable units.
        refused: axes that cannot be cut, and why.
        network: the layers and how they are connected.
    """

    sizes: Sizes
    batch: int
    nodes: tuple[NodeCost, ...]
    groups: tuple[Group, ...]
    refused: tuple[Refused, ...]
    network: Network

    def save_svg(self, path: str | Path, title: str = "") -> None:
        """Draw the network as an SVG file, written atomically.

        Args:
            path: the file to write.
            title: above the picture.

        Raises:
            InputError: when the path cannot be written, or pygraphviz is not installed.
        """
        from onnxprune.report.network_picture import network_svg

        write_text_atomic(path, network_svg(self.network, title=title))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "sizes": vars(self.sizes),
            "batch": self.batch,
            "nodes": [vars(node) for node in self.nodes],
            "groups": [
                {
                    "id": group.name,
                    "kind": group.kind,
                    "size": group.size,
                    "tensors": sorted({owned.tensor for owned in group.owned}),
                    "consumers": list(dict.fromkeys(r.consumer.node for r in group.readings)),
                }
                for group in self.groups
            ],
            "refused": [vars(one) for one in self.refused],
        }


@dataclass(frozen=True)
class Comparison:
    """What `verify` returns.

    Attributes:
        outputs: every output of the two models compared.
        original: costs of the first model.
        pruned: costs of the second.
    """

    outputs: tuple[OutputComparison, ...]
    original: Sizes
    pruned: Sizes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "outputs": [one.to_dict() for one in self.outputs],
            "original": vars(self.original),
            "pruned": vars(self.pruned),
        }
