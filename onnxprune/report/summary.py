"""The account of a run: numbers before and after, certificate, refusals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.cost.latency import Latency
    from onnxprune.coupling.groups import Refused
    from onnxprune.passes.least_squares import Repair
    from onnxprune.verification.certificate import Certificate
    from onnxprune.verification.comparison import OutputComparison

__all__ = ["Report", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """What a model costs.

    Attributes:
        params: elements of its floating-point constants.
        macs: multiply-accumulates for one run at the traced size.
        bytes: size of the serialised model, external data included.
    """

    params: int
    macs: int
    bytes: int


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
        widths: per group name its size before and after.
        inexact: names of cut groups whose normalisation statistics run over fewer entries now.
        refused: axes that cannot be cut.
        dropped: groups left whole because the graph could not follow, with the reason.
        repairs: what became of the layers that were to be solved anew.
        allocation: name of the way the removal was spread over the groups.
        trials: divergence of the outputs for each way that was tried.
        note: what was done differently from what was asked, empty for nothing.
        seconds: duration of the run.
    """

    original: Sizes
    result: Sizes
    batch: int
    certificate: Certificate
    outputs: tuple[OutputComparison, ...]
    latency: Latency | None
    widths: dict[str, tuple[int, int]]
    inexact: tuple[str, ...]
    refused: tuple[Refused, ...]
    dropped: dict[str, str]
    repairs: tuple[Repair, ...]
    allocation: str
    trials: dict[str, float]
    note: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(self)
        data["certificate"]["holds"] = self.certificate.holds
        return data
