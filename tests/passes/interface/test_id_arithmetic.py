"""Which row of a table an id leads to is worked out, not guessed from the ops on the way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.reducing import graph

from onnxprune.model.load import load
from onnxprune.passes.interface.lookups import Arithmetic, arithmetic_of

ROWS = 12


def worked_out(body: str, **numbers: int) -> Arithmetic | None:
    """What `body` makes of `ids`, for a table of twelve rows."""
    values = {name: np.array(number, np.int64) for name, number in numbers.items()}
    proto = graph("(int64[N, T] ids, int64[N, T] more) => (int64[N, T] i)", body, values)
    model: ir.Model = load(proto).model
    return arithmetic_of(model.graph.outputs[0], model.graph.inputs[0], ROWS)


@pytest.mark.parametrize(
    ("body", "numbers", "shift"),
    [
        ("i = Identity (ids)", {}, 0),
        ("a = Add (ids, two) i = Sub (a, two)", {"two": 2}, 0),
        ("i = Add (ids, two)", {"two": 2}, 2),
        ("t = Transpose (ids) a = Add (t, two) i = Transpose (a)", {"two": 2}, 2),
        ("c = Cast <to = 1> (ids) i = Cast <to = 7> (c)", {}, 0),
        ("i = Clip (ids, none, most)", {"none": 0, "most": 11}, None),
        ("i = Sub (ids, two)", {"two": 2}, None),
        ("i = Mul (ids, two)", {"two": 2}, None),
        ("i = Mul (ids, none)", {"none": 0}, None),
        ("b = Equal (ids, far) i = Where (b, none, ids)", {"far": 999, "none": 0}, None),
    ],
)
def test_shift(body: str, numbers: dict[str, int], shift: int | None) -> None:
    found = worked_out(body, **numbers)
    assert found is not None
    assert found.shift == shift
    assert not found.sizes


def test_number_of_rows_is_found_where_ids_count_from_the_end() -> None:
    body = "b = Less (ids, none) a = Add (ids, size) i = Where (b, a, ids)"
    found = worked_out(body, none=0, size=ROWS)
    assert found is not None
    assert (found.shift, [(node.op_type, slot) for node, slot in found.sizes]) == (0, [("Add", 1)])


@pytest.mark.parametrize(
    "body",
    [
        "i = Add (ids, more)",
        "i = Max (ids)",
        "t = Transpose (ids) i = Add (ids, t)",
        "one = Constant <value_int = 1> () i = CumSum (ids, one)",
        "two = Constant <value_int = 2> () i = Identity (two)",
    ],
)
def test_nothing_is_said_of_what_other_things_go_into(body: str) -> None:
    assert worked_out(body) is None
