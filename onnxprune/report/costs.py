"""The kinds of cost that every account of a model lists, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.report.figures import count, percent, printable, share, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxprune.report.summary import Sizes

__all__ = ["COSTS", "CostKind", "CostRow", "cost_rows", "traced_size"]


@dataclass(frozen=True)
class CostKind:
    """A kind of cost as it is shown.

    Attributes:
        name: what people call it.
        figure: takes it from the costs of a model.
        text: writes it.
        traced: it depends on the traced size.
    """

    name: str
    figure: Callable[[Sizes], int]
    text: Callable[[int], str]
    traced: bool

    def shown(self, sizes: Sizes) -> str:
        """The figure as text."""
        return self.text(self.figure(sizes))


COSTS = (
    CostKind("MACs", lambda sizes: sizes.macs, count, True),
    CostKind("parameters", lambda sizes: sizes.params, count, False),
    CostKind("file size", lambda sizes: sizes.bytes, size, False),
    CostKind("peak activations", lambda sizes: sizes.activations, size, True),
    CostKind("memory", lambda sizes: sizes.memory, size, True),
)


@dataclass(frozen=True)
class CostRow:
    """One kind of cost of two models.

    Attributes:
        kind: what is counted.
        before: of the original, as text.
        after: of the result, as text.
        ratio: what remains, as a fraction.
    """

    kind: CostKind
    before: str
    after: str
    ratio: float

    def cells(self) -> tuple[str, str, str, str]:
        """Name, both figures and what remains, as text."""
        return self.kind.name, self.before, self.after, percent(self.ratio)


def cost_rows(before: Sizes, after: Sizes) -> Iterator[CostRow]:
    """One row for each kind of cost."""
    for kind in COSTS:
        ratio = share(kind.figure(after), kind.figure(before))
        yield CostRow(kind, kind.shown(before), kind.shown(after), ratio)


def traced_size(sizes: Sizes) -> str:
    """The size that traced costs refer to, in words."""
    return ", ".join(f"{printable(name)} {extent}" for name, extent in sizes.extents.items())
