"""Shares of the original as people read them, in messages, tables and pages.

Four significant digits: a target that was computed has many more, which say nothing. Plans and JSON
keep all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["share_text", "target_text"]


def share_text(share: float) -> str:
    """A share, or another number, with at most four significant digits."""
    return f"{share:.4g}"


def target_text(target: Mapping[str, float]) -> str:
    """Shares by kind, as a target is given on the command line: `macs=0.5, params=0.7`."""
    return ", ".join(f"{kind}={share_text(share)}" for kind, share in target.items())
