"""Packed 4-bit weights: the number of rows."""

from __future__ import annotations

from onnxprune.surgery.operators.site import Site, SizeTable


def _rows(site: Site) -> None:
    """MatMulNBits: N is the number of packed rows."""
    site.put_attribute("N", site.new_shape(1)[0])


SIZE_RULES: SizeTable = {("com.microsoft", "MatMulNBits"): _rows}
