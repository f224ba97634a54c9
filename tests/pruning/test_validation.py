"""How to prune is checked before any work, for all functions of the API alike."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import onnxprune
from onnxprune.errors import InputError
from onnxprune.pruning.validation import Method, check_method

TARGET = {"macs": 0.5}


def test_defaults_depend_on_samples() -> None:
    with_samples, without = (check_method(TARGET, calibrated=one) for one in (True, False))
    assert (with_samples.criterion, with_samples.compensate) == ("reconstruction", "least-squares")
    assert (without.criterion, without.compensate) == ("l2", "none")


def test_prune_takes_everything_a_study_takes_with_the_same_defaults() -> None:
    names = set(Method.__annotations__)
    prune, check = (inspect.signature(one).parameters for one in (onnxprune.prune, check_method))
    assert names == check.keys() - {"target", "calibrated", "max_drop"}
    assert {name: prune[name].default for name in names} == {
        name: check[name].default for name in names
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"round_to": 0}, "round_to"),
        ({"criterion": "nonsense"}, "nonsense"),
        ({"compensate": "nonsense"}, "unknown compensation 'nonsense'; there are none, mean"),
        ({"allocation": "nonsense"}, "unknown allocation 'nonsense'; there are auto"),
        ({"augment": ["turn"]}, "unknown augmentation 'turn'"),
        ({"providers": ["Nonsense"]}, "unknown execution provider"),
        ({"threads": -1}, "threads"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_method(TARGET, calibrated=True, **options)
