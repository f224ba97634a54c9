"""Local functions: their bodies are put in the place of their calls, so that they can be pruned."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> bool:
    """Inline every call of a local function, in place; False when that is not possible.

    A function that imports another version of a domain than the model keeps its calls: its ops
    could mean something else there. Constants inside a body become Constants of the main graph,
    named after the call.
    """
    if not model.functions:
        return False
    own = {domain for domain, _, _ in model.functions}
    for function in model.functions.values():
        for domain in own & function.opset_imports.keys():
            # Functions have no versions of their own: what they declare here says nothing.
            function.opset_imports[domain] = model.opset_imports.setdefault(domain, 1)
        for domain, version in function.opset_imports.items():
            if model.opset_imports.setdefault(domain, version) != version:
                return False
    try:
        return bool(InlinePass()(model).modified)
    except (ValueError, ir.passes.InvariantError):  # recursion, references to no attribute
        return False
