"""Size rules: what a node says about sizes follows the cut; files by family, as in coupling."""

from onnxprune.surgery.operators import (
    attention,
    convolution,
    movement,
    normalisation,
    quantisation,
    recurrent,
    subgraphs,
)
from onnxprune.surgery.operators.site import SizeTable

SIZE_RULES: SizeTable = {
    **attention.SIZE_RULES,
    **convolution.SIZE_RULES,
    **movement.SIZE_RULES,
    **normalisation.SIZE_RULES,
    **quantisation.SIZE_RULES,
    **recurrent.SIZE_RULES,
    **subgraphs.SIZE_RULES,
}
"""(domain, op type) -> rule; the default domain is the empty string."""
