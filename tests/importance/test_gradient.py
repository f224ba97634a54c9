"""Taylor and Fisher: formulas, and the options they come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS
from numpy.typing import NDArray

import onnxprune
from onnxprune.coupling.group_view import GroupView, MaskGradients
from onnxprune.errors import InputError
from onnxprune.importance.registry import find_criterion


def test_scores_are_the_first_and_the_second_order_change() -> None:
    gradients = MaskGradients(4, np.array([1.0, 3.0]), np.array([2.0, 10.0]))
    view = GroupView(group=None, constants=None, moments={}, gradients=gradients)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(find_criterion("taylor").score(view, rng), [1, 3])
    np.testing.assert_array_equal(find_criterion("fisher").score(view, rng), [1, 5])


def digits(count: int = 200) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    with np.load(MODELS / "digits_resnet_test.npz") as file:
        arrays = {key: file[key][:count] for key in file.files}
    return arrays, arrays.pop("labels").astype(np.int64)


def removed(**options: Any) -> Any:
    given = {"target": {"macs": 0.6}, "compensate": "none", "threads": 1, "force": True, **options}
    result = onnxprune.prune(MODELS / "digits_resnet.onnx", measure_latency=False, **given)
    return {group.id: group.removed for group in result.plan.groups}, result


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_labels_decide_when_they_are_given(criterion: str) -> None:
    samples, labels = digits()
    drawn, _ = removed(criterion=criterion, calibration=samples)
    again, _ = removed(criterion=criterion, calibration=samples)
    known, result = removed(criterion=criterion, calibration=samples, labels=labels)
    assert drawn == again
    assert known != drawn
    assert result.report.quality.measure == "accuracy"


def test_fisher_loses_less_than_norms() -> None:
    samples, labels = digits()
    drops = {}
    for criterion in ("l2", "fisher"):
        _, result = removed(criterion=criterion, calibration=samples, labels=labels)
        drops[criterion] = result.report.quality.drop
    assert drops["fisher"] < drops["l2"] - 5


def test_a_loss_of_the_users_own(tmp_path: Path) -> None:
    script = tmp_path / "my_loss.py"
    script.write_text(
        "def margin(outputs, labels):\n"
        "    (scores,) = outputs.values()\n"
        "    return -scores[range(len(labels)), labels]\n"
    )
    samples, labels = digits(64)
    found, result = removed(
        criterion="taylor", loss=f"{script}:margin", calibration=samples, labels=labels
    )
    known, _ = removed(criterion="taylor", calibration=samples, labels=labels)
    assert found != known
    assert result.plan.options["loss"] == "margin"


def test_targets_of_a_squared_error_need_not_be_whole() -> None:
    samples, _ = digits(64)
    targets = np.random.default_rng(0).standard_normal((64, 10))
    found, result = removed(criterion="fisher", loss="mse", calibration=samples, labels=targets)
    assert any(found.values())
    assert result.report.quality.measure != "accuracy"


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(InputError, match="unknown loss 'hinge'"):
        removed(criterion="fisher", loss="hinge", calibration=digits(8)[0])


def test_gradients_need_samples() -> None:
    with pytest.raises(InputError, match="give --calibration"):
        removed(criterion="fisher")


@pytest.mark.parametrize("compensate", ["mean", "least-squares"])
def test_with_compensation_and_in_steps(compensate: str) -> None:
    samples, labels = digits()
    _, result = removed(
        criterion="fisher", calibration=samples, labels=labels, compensate=compensate, steps=2
    )
    assert result.report.certificate.holds
    assert result.report.quality.drop < 20


def test_groups_without_gradients_stay_whole_and_the_report_says_so() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 4] input) => (float[N, 2, 4] y)
        { a = Conv(input, w1) h = Relu(a) c = Conv(h, w2)
          i = LpPool<kernel_shape = [1], p = 3>(c)
          e = Conv(i, w3) t = Relu(e) y = Conv(t, w4) }"""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 1), "w2": (4, 8, 1), "w3": (16, 4, 1), "w4": (2, 16, 1)}
    weights = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    samples = {"input": rng.standard_normal((12, 3, 4)).astype(np.float32)}
    result = onnxprune.prune(
        parse(text, weights),
        calibration=samples,
        target={"params": 0.8},
        criterion="taylor",
        compensate="none",
        threads=1,
        measure_latency=False,
    )
    assert {group.id for group in result.plan.groups if group.removed} <= {"w2[0]", "w3[0]"}
    assert "not pruned: w1[0]" in result.report.note
    assert "the gradient through LpPool node 'i' cannot be computed" in result.report.note
