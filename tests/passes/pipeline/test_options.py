"""Options of a pass are the keyword parameters of its constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import pytest

from onnxprune.declaration import Option, read_options
from onnxprune.errors import InputError
from onnxprune.model.runtime import Runtime
from onnxprune.passes.pipeline.options import options_of
from onnxprune.passes.prune import Prune


class Example(ir.passes.InPlacePass):
    """An example.

    Args:
        amount: how much,
            in all.
        mode: which way (there are two): choose.
        names: of what.

    Raises:
        InputError: never.
    """

    def __init__(
        self,
        amount: float,
        mode: Literal["a", "b"] = "a",
        names: Sequence[str] = (),
        count: int | None = None,
        on: bool = False,
        shares: Mapping[str, float] | None = None,
        samples: Any = None,
        unknown: NoSuchType = 1,  # type: ignore[name-defined] # noqa: F821
    ) -> None:
        super().__init__()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


def checked(**given: Any) -> dict[str, Any]:
    return read_options(options_of(Example), {"amount": 1.0, **given}, "here")


def test_names_defaults_and_help_come_from_the_constructor() -> None:
    amount, mode, names, *_ = options_of(Example)
    assert (amount.name, amount.required, amount.help) == ("amount", True, "how much, in all.")
    assert (mode.default, mode.expects) == ("a", "one of a, b")
    assert mode.help == "which way (there are two): choose."
    assert names.expects == "a list (each item text)"
    assert "samples" not in [one.name for one in options_of(Example)]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"amount": 1}, 1.0),
        ({"mode": "b"}, "b"),
        ({"names": ["x"]}, ["x"]),
        ({"count": None}, None),
        ({"count": 3}, 3),
        ({"on": True}, True),
        ({"shares": {"macs": 1}}, {"macs": 1.0}),
        ({"unknown": "anything"}, "anything"),
    ],
)
def test_values_of_the_right_type(given: dict[str, Any], taken: Any) -> None:
    (name,) = given
    assert checked(**given)[name] == taken


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"amount": "much"}, "amount must be a number, not 'much'"),
        ({"amount": True}, "amount must be a number"),
        ({"mode": "c"}, "mode must be one of a, b, not 'c'"),
        ({"names": "x"}, "names must be a list (each item text)"),
        ({"names": [1]}, "names must be a list (each item text)"),
        ({"count": 1.5}, "count must be a whole number"),
        ({"count": True}, "count must be a whole number"),
        ({"on": 1}, "on must be true or false"),
        ({"shares": {"macs": "x"}}, "shares must be a mapping (each value a number)"),
    ],
)
def test_values_of_another_type_say_what_was_expected(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=r"^here: ") as error:
        checked(**given)
    assert expected in str(error.value)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown option 'ammount'; did you mean 'amount'"):
        checked(ammount=1)


def test_a_missing_option_says_what_it_is() -> None:
    with pytest.raises(InputError, match=r"needs the option 'amount' \(a number\)"):
        read_options(options_of(Example), {}, "here")


def test_a_hyphen_is_as_good_as_an_underscore() -> None:
    found = read_options(options_of(Prune), {"max-drop": 1}, "here")
    assert found == {"max_drop": 1.0}
    with pytest.raises(InputError, match="given twice"):
        read_options(options_of(Prune), {"max-drop": 1, "max_drop": 2}, "here")


def test_the_pass_prune_has_the_options_of_prune() -> None:
    names = {one.name for one in options_of(Prune)}
    assert {"target", "criterion", "compensate", "steps"} <= names
    assert not {"model", "calibration", "threads", "seed", "progress", "samples"} & names


@pytest.mark.parametrize("option", options_of(Prune), ids=lambda one: one.name)
def test_the_pass_prune_takes_every_option_of_prune(option: Option) -> None:
    assert Prune(None, Runtime(), **{option.name: option.default}).plan is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"criterion": "nonsense"}, "criterion"),
        ({"round_to": 0}, "round_to"),
        ({"target": {"mac": 0.5}}, "did you mean 'macs'"),
        ({"plan": {"format": "other"}}, "no plan of onnxprune"),
    ],
)
def test_mistakes_in_options_of_prune_are_found_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Prune(None, Runtime(), **given)
