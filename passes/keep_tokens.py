"""Vocabulary removal: rows of the embedding, and of the output layer, that no text needs.

Formula, for token ids t, an embedding E, an output layer U and kept ids K in ascending order::

    E' = E[K]        U' = U[:, K]        new id of t = position of t in K

Before::

    t int64 [N,T] -> Gather(E [30000,384], t) -> ... -> h -> MatMul(U [384,30000]) -> logits

After (8000 ids are kept)::

    t int64 [N,T] -> Gather(E' [8000,384], t) -> ... -> h -> MatMul(U' [384,8000]) -> logits

Two ways to say which row an id means:

* by default the model takes new ids, 0 to n - 1. Constants that ids are compared with (padding) are
  renumbered; any other arithmetic on ids is refused;
* with `remap` callers go on giving old ids: a Gather on one small table turns them into new ones
  where they are looked up, and ids that are gone into `unknown`. This costs one Gather and 8 bytes
  for each old id.

Outputs with an axis as long as the vocabulary (logits) lose the same entries, tied to the embedding
or not, and declare their new size. The kept ids, in the order of the new ones, are listed in the
model's metadata (`onnxprune.kept_tokens`, a JSON list) and, where asked for, in a file.

Conditions: tables are weights (also quantised ones) that only Gather nodes with ids from an input
look up along their first axis; an output axis of this length has to be cuttable. Anything else is
refused with the reason.

The result is compared with the original on random kept ids: outputs have to agree to the
certificate's tolerance.

Source: Abdaoui et al. 2020 (Load What You Need).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.errors import CalibrationError, InputError, NothingPrunable
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import write_text_atomic
from onnxprune.reduction.lookups import IdInput, find_id_inputs, map_ids, renumber_comparisons
from onnxprune.reduction.narrowing import apply, check, narrow
from onnxprune.reduction.observing import observed
from onnxprune.reduction.selection import read_entries, resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.observe import Facts
    from onnxprune.reduction.narrowing import Narrowing

__all__ = ["KEPT_TOKENS", "KeepTokens"]

KEPT_TOKENS = "onnxprune.kept_tokens"
"""Metadata key: JSON list, the old id of every token there is."""

Feed = Mapping[str, "NDArray[Any]"]


class KeepTokens(ir.passes.InPlacePass):
    """Cut a vocabulary down to some of its tokens.

    Args:
        keep: ids to keep: a list, "3,7,9", or the path of a file with one a line or a JSON list.
        remap: True: inputs stay old ids, which a table in the model turns into new ones.
        unknown: old id (a kept one) that stands for all ids that are gone.
        vocabulary: rows of the tables that are meant; default: of the largest.
        map_file: where to write the kept ids, in the order of the new ones, as a JSON list.
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

    Attributes:
        details: inputs and outputs that are cut, sizes, and how far outputs are from the
            original's; filled by the call.
    """

    changes_interface: ClassVar[bool] = True

    def __init__(
        self,
        keep: str | Sequence[int | str],
        remap: bool = False,
        unknown: int | None = None,
        vocabulary: int | None = None,
        map_file: str | None = None,
        *,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.remap = remap
        self.unknown = unknown
        self.vocabulary = vocabulary
        self.map_file = map_file
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.seed = seed
        self.details: dict[str, Any] = {}
        self._new_ids: NDArray[np.int64] = np.zeros(0, np.int64)
        self._inputs: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the vocabulary.

        Raises:
            InputError: for ids that do not exist.
            NothingPrunable: when no table can be cut, or an output cannot; says why.
            VerificationError: when the result computes something else for kept tokens.
        """
        facts = observed(model, self.runtime, self.seed, self.samples)
        inputs, size = self._chosen(find_id_inputs(model, facts))
        kept = resolve(read_entries(self.keep, "token"), size, None, "token")
        self._new_ids = self._numbering(kept, size)
        self._inputs = [one.name for one in inputs]
        if not self.remap:
            _refuse_arithmetic(inputs)
        lookups = [node for one in inputs for node, rows in one.lookups if rows == size]
        lookups = list(dict.fromkeys(lookups))
        narrowing = narrow(model, facts, kept, size, _axes_of_size(model, facts, size), lookups)
        result = model.clone()
        self._apply(result, narrowing, facts)
        feeds = self._feeds(facts, inputs, kept, size)
        error = check(model, result, narrowing, feeds, self.runtime)
        self._apply(model, narrowing, facts)
        self._describe(model, kept, size)
        self.details = {
            "kept": len(kept),
            "vocabulary": size,
            "inputs": self._inputs,
            "outputs": dict(narrowing.axes),
            "error": error,
        }
        return ir.passes.PassResult(model, modified=True)

    def convert(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """What a feed of the original is for the result.

        Raises:
            CalibrationError: when it has ids that are gone and nothing stands for them.
        """
        if self.remap:
            return dict(feed)
        result = dict(feed)
        for name in self._inputs:
            new = self._new_ids[feed[name]]
            if (new < 0).any():
                raise CalibrationError(
                    f"the samples have ids of {name!r} that are not kept; give unknown=ID, which "
                    "stands for them, or keep them"
                )
            result[name] = new.astype(feed[name].dtype)
        return result

    def _chosen(self, inputs: Sequence[IdInput]) -> tuple[list[IdInput], int]:
        """Inputs that are looked up in tables of the size that is meant, and this size.

        Raises:
            NothingPrunable: when there are none.
        """
        sizes = {rows for one in inputs for _, rows in one.lookups}
        size = self.vocabulary or max(sizes, default=0)
        chosen = [one for one in inputs if any(rows == size for _, rows in one.lookups)]
        if not chosen:
            readers = {one.name: sorted({n.op_type for n in one.others}) for one in inputs}
            what = f"of {self.vocabulary} rows " if self.vocabulary else ""
            raise NothingPrunable(
                f"no integer input is looked up in a table of weights {what}by Gather; tables "
                f"found have {sorted(sizes)} rows, other readers of the inputs are {readers}"
            )
        return chosen, size

    def _numbering(self, kept: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """New id of every old one; -1 for those that are gone without `unknown`.

        Raises:
            InputError: when `unknown` is not kept, or is needed and not given.
        """
        if self.unknown is not None and self.unknown not in kept:
            raise InputError(f"unknown={self.unknown} is not among the kept ids; keep it")
        if self.unknown is None and self.remap:
            raise InputError("remap needs unknown=ID: the kept id that stands for those gone")
        gone = -1 if self.unknown is None else int(np.searchsorted(kept, self.unknown))
        new = np.full(size, gone, np.int64)
        new[kept] = np.arange(len(kept))
        return new

    def _apply(self, model: ir.Model, narrowing: Narrowing, facts: Facts) -> None:
        inputs, size = self._chosen(find_id_inputs(model, facts))
        lookups = dict.fromkeys(n for one in inputs for n, rows in one.lookups if rows == size)
        apply(model, narrowing)
        if self.remap:
            map_ids(model.graph, lookups, self._new_ids)
        else:
            compared = [pair for one in inputs for pair in one.comparisons]
            renumber_comparisons(model.graph, compared, narrowing.kept)

    def _feeds(
        self, facts: Facts, inputs: Sequence[IdInput], kept: NDArray[np.int64], size: int
    ) -> list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """The observed feeds with random ids, for the original and for the result.

        Ids that are gone are among them where they do nothing but look up a row.
        """
        rng = np.random.default_rng(self.seed)
        stands_for = kept[self._new_ids]  # an old id -> the old id it is treated as
        pairs = []
        for run in (facts.first, facts.second):
            original, given = dict(run.feed), dict(run.feed)
            for one in inputs:
                name, shape, dtype = one.name, run.feed[one.name].shape, run.feed[one.name].dtype
                alone = self.remap and not (one.others or one.comparisons)
                drawn = rng.choice(np.arange(size) if alone else kept, shape)
                original[name] = stands_for[drawn].astype(dtype)
                given[name] = drawn.astype(dtype)
            pairs.append((original, self.convert(given)))
        return pairs

    def _describe(self, model: ir.Model, kept: NDArray[np.int64], size: int) -> None:
        """Say in metadata, and in the file where one is asked for, which ids there are."""
        before = json.loads(model.metadata_props.get(KEPT_TOKENS, "null")) or list(range(size))
        text = json.dumps([before[one] for one in kept])
        model.metadata_props[KEPT_TOKENS] = text
        if self.map_file is not None:
            write_text_atomic(os.fspath(self.map_file), text + "\n")


def _refuse_arithmetic(inputs: Sequence[IdInput]) -> None:
    """Refuse new ids where something else is done with the old ones than to look them up.

    Raises:
        NothingPrunable: naming what.
    """
    for one in inputs:
        if one.others:
            node = one.others[0]
            raise NothingPrunable(
                f"{node.op_type} {node.name or node.outputs[0].name} works with the ids of "
                f"{one.name!r} themselves, so that they cannot be renumbered; use remap"
            )


def _axes_of_size(model: ir.Model, facts: Facts, size: int) -> dict[str, list[int]]:
    """Axes as long as the vocabulary, of every output that has any."""
    found = {}
    for value in model.graph.outputs:
        shapes = [run.shapes.get(value.name or "", ()) for run in (facts.first, facts.second)]
        axes = [a for a in range(1, len(shapes[0])) if all(one[a] == size for one in shapes)]
        if axes and value.name:
            found[value.name] = axes
    return found
