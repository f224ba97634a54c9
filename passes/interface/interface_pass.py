"""What passes have in common that cut entries of the interface: classes, tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.streams import Samples
from onnxprune.errors import InputError
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime


class InterfacePass(ir.passes.InPlacePass):
    """A pass after which the model has other inputs or outputs.

    Args:
        keep: what to keep, as `read_entries` takes it.
        outputs: names of the outputs that have an entry for each; None for all that may have.
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

    Attributes:
        details: what was done, for people and JSON; filled by the call.
        files: suffix -> text of files that belong beside the model; filled by the call.
    """

    changes_interface: ClassVar[bool] = True

    def __init__(
        self,
        keep: str | Sequence[int | str],
        outputs: Sequence[str] | None,
        samples: Samples | None,
        runtime: Runtime | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.outputs = outputs
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.seed = seed
        self.details: dict[str, Any] = {}
        self.files: dict[str, str] = {}

    def require_named(self, found: Collection[str], facts: Facts, size: int) -> None:
        """Require that every output which the user has named has a place for the entries.

        Args:
            found: outputs that have one.
            facts: shapes.
            size: how many entries there are.

        Raises:
            InputError: naming the first that has none.
        """
        names = [self.outputs] if isinstance(self.outputs, str) else self.outputs
        for name in names or ():
            if name not in found:
                shape = facts.first.shapes.get(name, ())
                raise InputError(
                    f"output {name!r} has no axis with {size} entries; its shape is {shape}"
                )


def note_kept(model: ir.Model, key: str, kept: NDArray[np.int64], size: int) -> str:
    """List in a model's metadata which entries are kept, by the numbers they had at first.

    Args:
        model: changed in place.
        key: of the entry: a JSON list; what it has from an earlier cut is taken into account.
        kept: entries that stay of those there are.
        size: how many there are.

    Returns:
        The list as it is written.
    """
    before = json.loads(model.metadata_props.get(key, "null")) or list(range(size))
    model.metadata_props[key] = json.dumps([before[one] for one in kept])
    return model.metadata_props[key]
