"""Every option is declared once: the API, plans and messages keep to the declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.solving import images, mlp

import onnxprune
from onnxprune.calibration.augment import VIEWS
from onnxprune.compensation import compensate
from onnxprune.declaration import Option
from onnxprune.errors import InputError
from onnxprune.gradients.losses import LOSSES
from onnxprune.importance.registry import criterion_names, resolve_options
from onnxprune.model.runtime import Runtime
from onnxprune.options import (
    AUGMENTATIONS,
    BATCH,
    BEST_EFFORT,
    COMPENSATIONS,
    FINETUNE_OPTIONS,
    FORCE,
    LABELS,
    METRIC,
    OPTIONS,
    RUNTIME_OPTIONS,
    PruneOptions,
    share_text,
    target_text,
)
from onnxprune.passes.pipeline.options import documented
from onnxprune.verification.metrics import METRICS

DECLARED = (*OPTIONS, *RUNTIME_OPTIONS, LABELS, METRIC, BEST_EFFORT, BATCH, FORCE)
OTHERS = {"model", "calibration", "measure_latency", "progress"}
"""Parameters of `prune` that are no options."""

SET: dict[str, Any] = {
    "target": {"macs": 0.5, "params": 0.7},
    "criterion": "taylor",
    "compensate": "mean",
    "loss": "mse",
    "allocation": "global",
    "include": ("a*",),
    "exclude": ("b", "c"),
    "round_to": 8,
    "normalised_axes": True,
    "lossless": False,
    "components": False,
    "augment": ("flip",),
    "finetune": True,
    "effort": 3,
    "steps": 3,
    "blocks": True,
    "max_drop": 1.5,
    "seed": 7,
}
"""Every option with another value than its default."""


def test_prune_has_the_declared_options_and_defaults() -> None:
    parameters = inspect.signature(onnxprune.prune).parameters
    assert {name: one.default for name, one in parameters.items() if name not in OTHERS} == {
        option.name: option.default for option in DECLARED
    }


@pytest.mark.parametrize("option", DECLARED, ids=lambda option: option.name)
def test_prune_documents_options_as_declared(option: Option) -> None:
    assert documented(onnxprune.prune)[option.name] == f"{option.help}."


def test_finetune_has_the_declared_options_and_documents_them() -> None:
    parameters, helps = (
        inspect.signature(onnxprune.finetune).parameters,
        documented(onnxprune.finetune),
    )
    shared = [option for option in OPTIONS if option.name == "seed"]
    declared = (*FINETUNE_OPTIONS, *shared, *RUNTIME_OPTIONS, BATCH, FORCE)
    assert {name: one.default for name, one in parameters.items() if name not in OTHERS} == {
        option.name: option.default for option in declared
    }
    assert all(helps[option.name] == f"{option.help}." for option in declared)


@pytest.mark.parametrize("function", [onnxprune.apply, onnxprune.inspect])
def test_others_document_threads_and_providers_alike(function: Callable[..., Any]) -> None:
    for option in RUNTIME_OPTIONS:
        assert documented(function)[option.name] == f"{option.help}."
        assert inspect.signature(function).parameters[option.name].default == option.default


def test_help_names_what_there_is() -> None:
    helps = {option.name: option.help for option in OPTIONS}
    assert all(f"`{name}`" in helps["criterion"] for name in criterion_names())
    assert all(f"`{name}`" in helps["loss"] for name in LOSSES)
    assert all(f"`{name}`" in METRIC.help for name in METRICS)
    assert tuple(VIEWS) == AUGMENTATIONS
    assert tuple(each.name for each in compensate.COMPENSATIONS) == COMPENSATIONS
    for option in OPTIONS:
        assert all(f"`{name}`" in option.help for name in option.choices)


def test_plans_record_every_option() -> None:
    assert SET.keys() == {option.name for option in OPTIONS}
    options, runtime = PruneOptions(**SET), Runtime(threads=2)
    assert not [name for name, value in SET.items() if value == getattr(PruneOptions(), name)]
    assert PruneOptions.from_dict(options.to_dict()) == options
    changed = PruneOptions.from_dict(options.to_dict(), compensate="none", runtime=runtime)
    assert changed == PruneOptions(**SET | {"compensate": "none"}, runtime=runtime)


def test_apply_keeps_the_loss_of_the_plan() -> None:
    samples = {"x": images(48, 8)}
    options = {"criterion": "taylor", "loss": "mse", "threads": 1, "force": True}
    made = onnxprune.prune(mlp(), calibration=samples, **options)
    assert made.plan.options["loss"] == "mse"
    again = onnxprune.apply(mlp(), made.plan, calibration=samples, threads=1)
    assert again.plan.options == made.plan.options


def test_plans_record_the_name_of_a_function() -> None:
    def squared(outputs: Any, labels: Any) -> Any: ...

    assert PruneOptions(loss=squared).to_dict()["loss"] == "squared"


def test_plans_of_older_versions_lack_options() -> None:
    options = PruneOptions.from_dict({"target": {"macs": 0.5}, "unheard": 1})
    assert options == PruneOptions({"macs": 0.5}, round_to=1, normalised_axes=False)
    assert PruneOptions.from_dict({}).target == {"channels": 1.0}


def test_defaults_depend_on_samples() -> None:
    with_samples, without = (resolve_options({}, calibrated=each) for each in (True, False))
    assert (with_samples.criterion, with_samples.compensate) == ("reconstruction", "least-squares")
    assert (without.criterion, without.compensate) == ("l2", "none")
    assert with_samples.target == without.target == {"channels": 0.5}
    assert resolve_options({"criterion": None, "target": None}, calibrated=False) == without


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": "one"}, "seed must be a whole number of at least 0, not 'one'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"round_to": 0}, "round_to must be a whole number of at least 1 or auto, not 0"),
        ({"max_drop": float("inf")}, "max_drop must be a number of at least 0, not inf"),
        ({"max_drop": "much"}, "max_drop must be a number"),
        ({"target": 0.5}, r"target must be a mapping such as \{'macs': 0.5\}, not 0.5"),
        ({"target": {"mac": 0.5}}, "unknown target 'mac'; did you mean 'macs'"),
        ({"include": "w*"}, r"include must be a list \(each item text\), not 'w\*'"),
        ({"criterion": "nonsense"}, "unknown criterion 'nonsense'"),
        ({"compensate": "nonsense"}, "compensate must be one of none, mean, least-squares, not 'n"),
        ({"allocation": "nonsense"}, "allocation must be one of auto, uniform, global, not 'n"),
        (
            {"augment": ["turn"]},
            r"augment must be a list \(each item one of flip, shift, crop, splice\), not \['t",
        ),
        ({"loss": "nonsense"}, "unknown loss 'nonsense'; there are cross-entropy, mse, or"),
        ({"blocks": True, "compensate": "mean"}, "blocks requires calibration samples"),
        ({"blocks": True}, "blocks cannot help with a target of channels"),
        ({"providers": ["Nonsense"]}, "unknown execution provider"),
        ({"threads": -1}, "threads must be a whole number of at least 0, not -1"),
        ({"crit": "l1"}, "unknown option 'crit'; did you mean 'criterion'"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_options(options, calibrated=True)


@pytest.mark.parametrize("study", [onnxprune.sweep, onnxprune.sensitivity])
def test_studies_take_the_options_of_prune(study: Callable[..., Any]) -> None:
    for name in ("crit", "max_drop"):
        with pytest.raises(InputError, match=f"unknown option '{name}'"):
            study(mlp(), calibration={"x": images(48, 8)}, **{name: 1})


def test_numbers_of_numpy_are_numbers() -> None:
    options = resolve_options(
        {"seed": np.int64(3), "max_drop": np.float32(0.5), "include": np.array(["w*"])},
        calibrated=True,
    )
    assert (options.seed, options.max_drop, options.include) == (3, 0.5, ("w*",))
    assert type(options.seed) is int


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "0.5"), (1.0, "1"), (0.621301775147929, "0.6213"), (1 / 3, "0.3333"), (1e-4, "0.0001")],
)
def test_no_more_digits_than_say_something(share: float, text: str) -> None:
    assert share_text(share) == text


def test_a_target_reads_as_it_is_given() -> None:
    assert target_text({"macs": 0.5, "params": 2 / 3}) == "macs=0.5, params=0.6667"
