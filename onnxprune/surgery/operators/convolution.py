"""Convolutions: the number of groups."""

from __future__ import annotations

from onnxprune.surgery.operators.site import Site, SizeTable

_WEIGHT_SLOT = {"QLinearConv": 3}


def _group(site: Site) -> None:
    """Convolutions: groups = channels on the flat side / channels of one group."""
    if site.get_int("group", 1) == 1:
        return
    weight = site.cut.shape(site.name(_WEIGHT_SLOT.get(site.node.op_type, 1)))
    flat = site.output_name() if site.node.op_type == "ConvTranspose" else site.name(0)
    group = site.cut.shape(flat)[1] // weight[1]
    site.put_attribute("group", group)


SIZE_RULES: SizeTable = {
    **{("", op): _group for op in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")},
    ("com.microsoft", "FusedConv"): _group,
}
