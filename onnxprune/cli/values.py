"""Values of options, read from the words of the command line."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any


def whole(text: str) -> int:
    """Read a whole number from 0 on."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return number


def whole_or_auto(text: str) -> int | str:
    """Read a whole number, or the word auto."""
    return text if text == "auto" else whole(text)


def fractions(text: str) -> tuple[float, ...]:
    """Read fractions separated by commas."""
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of fractions such as 0.75,0.5"
        ) from None


def shard(text: str) -> tuple[int, int]:
    """Read I/N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 2/4")
    return int(number), int(count)


class Targets(argparse.Action):
    """Collects KIND=FRACTION; what the kinds and fractions may be is the API's to say."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one target."""
        kind, equals, fraction = str(values).partition("=")
        if not (kind and equals and fraction):
            raise argparse.ArgumentError(
                self, f"{values!r} is not of the form KIND=FRACTION, such as macs=0.5"
            )
        targets = dict(getattr(namespace, self.dest))
        if kind in targets:
            raise argparse.ArgumentError(self, f"{kind} is given twice")
        setattr(namespace, self.dest, targets | {kind: fraction})


class Budgets(argparse.Action):
    """Collects KIND=F,F,F as one target for each fraction."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one target for each fraction."""
        kind, _, fractions = str(values).partition("=")
        given = fractions.split(",")
        if not (kind and all(given)):
            raise argparse.ArgumentError(
                self, f"{values!r} is not of the form KIND=F,F, such as macs=0.7,0.5"
            )
        budgets = [{kind: fraction} for fraction in given]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *budgets])


class Names(argparse.Action):
    """Collects names separated by commas."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add the names."""
        names = [name.strip() for name in str(values).split(",") if name.strip()]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *names])
