"""LSTM, GRU and RNN: the hidden size."""

from __future__ import annotations

from onnxprune.surgery.operators.site import Site, SizeTable


def _hidden_size(site: Site) -> None:
    """LSTM, GRU, RNN: the hidden size is the last axis of R."""
    hidden = site.new_shape(2)[2]
    site.put_attribute("hidden_size", hidden, default=hidden)


SIZE_RULES: SizeTable = {("", op): _hidden_size for op in ("LSTM", "GRU", "RNN")}
