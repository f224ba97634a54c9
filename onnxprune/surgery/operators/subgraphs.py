"""Loop: how often it runs."""

from __future__ import annotations

import numpy as np

from onnxprune.surgery.operators.site import Site, SizeTable


def _trip_count(site: Site) -> None:
    """Loop: as many iterations as before, also if they are counted along an axis that is cut."""
    name, facts = site.name(0), site.cut.coupling.facts
    if name and site.integers.changed(name):
        site.overrule(0, *(np.asarray(run.integers[name]) for run in (facts.first, facts.second)))


SIZE_RULES: SizeTable = {("", "Loop"): _trip_count}
