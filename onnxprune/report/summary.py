"""The account of a run: numbers before and after, certificate, refusals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxprune.cost.latency import Latency
    from onnxprune.coupling.groups import Refused
    from onnxprune.passes.least_squares import Repair
    from onnxprune.report.accounts import GroupAccount
    from onnxprune.report.network import Network
    from onnxprune.report.provenance import Provenance
    from onnxprune.verification.certificate import Certificate
    from onnxprune.verification.comparison import OutputComparison
    from onnxprune.verification.quality import Quality

__all__ = ["Report", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """What a model costs.

    Attributes:
        params: elements of floating-point constants and of quantised weights.
        macs: multiply-accumulates for one run at the traced size.
        bytes: size of the serialised model, external data included.
        weights: bytes of its constants.
        activations: most bytes of activations alive at one time, at the traced size.
        memory: weights + activations.
        extents: the traced size: rows of the first input as "batch", then by name the extent of
            every other axis of an input that the model leaves open.
    """

    params: int
    macs: int
    bytes: int
    weights: int
    activations: int
    memory: int
    extents: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        original: costs before.
        result: costs after.
        batch: rows of the feed that `macs` and `latency` refer to.
        certificate: the proof of the surgery.
        outputs: outputs of result and original compared on the calibration samples; empty without.
        latency: measured in alternation; None when it was not.
        padding: channels that a kernel computes together -> MACs of the cut convolutions with
            widths rounded up to whole blocks over those without; empty where none was cut.
        widths: per group name its size before and after.
        groups: every group of the model with its error curve, those left whole too.
        inexact: names of cut groups whose normalisation statistics run over fewer entries now.
        refused: axes that cannot be cut.
        dropped: groups left whole because the graph could not follow, with the reason.
        repairs: what became of the layers that were to be solved anew.
        allocation: name of the way the removal was spread over the groups.
        trials: divergence of the outputs for each way that was tried.
        blocks: sums that lost their residual branch.
        depths: number of blocks gone -> divergence of the outputs, for each number that was tried.
        quality: of original and result on samples, when labels, a metric or a limit were given.
        note: what was done differently from what was asked, empty for nothing.
        seconds: duration of the run.
        provenance: versions, machine, options and the original's digest.
        network: the layers and their widths, for the picture; not part of the JSON.
    """

    original: Sizes
    result: Sizes
    batch: int
    certificate: Certificate
    outputs: tuple[OutputComparison, ...]
    latency: Latency | None
    padding: dict[int, float]
    widths: dict[str, tuple[int, int]]
    inexact: tuple[str, ...]
    refused: tuple[Refused, ...]
    dropped: dict[str, str]
    repairs: tuple[Repair, ...]
    allocation: str
    trials: dict[str, float]
    quality: Quality | None
    note: str
    seconds: float
    groups: tuple[GroupAccount, ...] = ()
    provenance: Provenance | None = None
    network: Network | None = None
    blocks: tuple[str, ...] = ()
    depths: dict[int, float] = field(default_factory=dict)

    def to_html(self, *, command: Sequence[str] = (), model_file: str | Path | None = None) -> str:
        """Return one self-contained HTML page.

        Args:
            command: the words of the command line that made it; empty for none.
            model_file: where the result was saved; its digest is shown then.

        Raises:
            OSError: when that file cannot be read.
        """
        from onnxprune.report.run_page import run_page

        return run_page(self, command=command, model_file=model_file)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(replace(self, network=None))
        del data["network"]
        data["certificate"]["holds"] = self.certificate.holds
        data["quality"] = None if self.quality is None else self.quality.to_dict()
        return data
