"""What the kinds of target are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KIND_NAMES", "target_text"]

KIND_NAMES = {
    "channels": "channels",
    "params": "parameters",
    "macs": "MACs",
    "size": "file size",
    "memory": "memory",
    "latency": "latency",
}


def target_text(target: Mapping[str, float]) -> str:
    """A target as it is given on the command line."""
    return ", ".join(f"{kind}={fraction:g}" for kind, fraction in target.items())
