"""The errors onnxprune raises on purpose; anything else that escapes is a bug.

Every message is one line that names the thing, says what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class OnnxPruneError(Exception):
    """Base of all errors of onnxprune.

    Attributes:
        exit_code: what the command line returns when this error ends a run.
    """

    exit_code = 1


class InputError(OnnxPruneError):
    """A model, plan, option or path that cannot be used (exit code 2)."""

    exit_code = 2


class CalibrationError(InputError):
    """Calibration samples that do not fit the model: names, shapes, dtypes, NaN, none at all."""


class NothingPrunable(OnnxPruneError):
    """No axis of the model can be cut; the refusals say why (exit code 3)."""

    exit_code = 3


class TargetUnreachable(NothingPrunable):
    """The asked reduction cannot be reached; the message names the best that can.

    Attributes:
        best: kind -> smallest fraction that can remain, as far as it is known.
    """

    def __init__(self, message: str, best: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.best = dict(best or {})


class VerificationError(OnnxPruneError):
    """The result does not compute what it must, so nothing was written (exit code 4)."""

    exit_code = 4


class CollapseError(VerificationError):
    """The answers of the result no longer follow the original's; nothing was written (exit 4).

    Attributes:
        best: kind -> fraction of a target that was found to hold; empty for none.
    """

    def __init__(self, message: str, best: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.best = dict(best or {})


class RuntimeFailure(OnnxPruneError):
    """onnxruntime cannot load or run a model; the message is the first line of what it said."""


def first_line(error: BaseException) -> str:
    """First line of what an exception says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def typed_line(error: BaseException) -> str:
    """Type of an exception and first line of what it says."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: what it may have been meant to be."""
    names = list(known)
    if not names:
        return "; there are none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (there are: {', '.join(names)})"
