"""What the kinds of target are called."""

from __future__ import annotations

__all__ = ["KIND_NAMES"]

KIND_NAMES = {
    "channels": "channels",
    "params": "parameters",
    "macs": "MACs",
    "size": "file size",
    "memory": "memory",
    "latency": "latency",
}
