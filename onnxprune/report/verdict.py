"""What was checked of a result before it was handed out, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune.verification.certificate import Certificate

__all__ = ["GATES", "certificate_text", "certificate_verdict"]

GATES = (
    "inputs and outputs have the names, types and declared shapes of the original's",
    "onnx.checker accepts the file, or refused the original as well",
    "onnxruntime loads and runs it, with its usual optimisations, to the same outputs",
)
"""What every result passes besides the certificate; see `verification.gates`."""


def certificate_verdict(one: Certificate) -> str:
    """Return "holds" or "FAILS"."""
    return "holds" if one.holds else "FAILS"


def certificate_text(one: Certificate) -> str:
    """Return how well the cut model agrees with the masked one, in one clause.

    Inputs that do not react to what was removed would make an empty proof, so it says which it is.
    """
    inputs = "1 input" if one.runs == 1 else f"{one.runs} inputs"
    agreement = "exactly" if one.error == 0 else f"within {one.error:.2g}"
    reacts = "reacts" if one.runs == 1 else "react"
    what = "what was removed" if one.effect > one.tolerance else "nothing that was removed"
    return (
        f"cut and masked model agree {agreement} (allowed {one.tolerance:.0e}) on {inputs} that "
        f"{reacts} to {what}"
    )
