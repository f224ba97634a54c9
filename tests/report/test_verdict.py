"""The certificate in words: agreement, and whether there was anything to see."""

from __future__ import annotations

import pytest

from onnxprune.report.sections import certificate_text, certificate_verdict
from onnxprune.verification.certificate import Certificate


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (Certificate(1e-7, 1e-4, 2, 0.9), "within 1e-07 (allowed 1e-04) on 2 inputs that react to"),
        (Certificate(0.0, 1e-4, 1, 0.9), "exactly (allowed 1e-04) on 1 input that reacts to what"),
        (Certificate(0.0, 1e-4, 2, 0.0), "on 2 inputs that react to nothing that was removed"),
    ],
)
def test_says_how_well_they_agree_and_on_what(certificate, words):
    assert words in certificate_text(certificate)
    assert certificate_verdict(certificate) == "holds"


def test_says_when_it_fails():
    assert certificate_verdict(Certificate(1e-3, 1e-4, 2, 0.9)) == "FAILS"
