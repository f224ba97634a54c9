"""Vocabulary removal: rows of the embedding, and of the output layer, that no text needs.

Formula, for token ids t, an embedding E, an output layer U and kept ids K in ascending order::

    E' = E[K]        U' = U[:, K]        new id of t = position of t in K

Before::

    t int64 [N,T] -> Gather(E [30000,384], t) -> ... -> h -> MatMul(U [384,30000]) -> logits

After (8000 ids are kept)::

    t int64 [N,T] -> Gather(E' [8000,384], t) -> ... -> h -> MatMul(U' [384,8000]) -> logits

Two ways to say which row an id means:

* by default the model takes new ids, 0 to n - 1, in the old order. Constants that ids are compared
  with (padding) are renumbered; the rows that a model keeps for itself by looking up `id + 2` stay,
  and ids below 0 go on counting from the end; any other arithmetic on ids is refused;
* with `remap` callers go on giving old ids: a Gather on one small table turns them into new ones
  where they are looked up, and ids that are gone into `unknown`. This costs one Gather and 8 bytes
  for each old id.

Outputs with an axis as long as the vocabulary (logits) lose the same entries, tied to the embedding
or not, and declare their new size. The kept ids, in the order of the new ones, are listed in the
model's metadata (`onnxprune.kept_tokens`, a JSON list) and in a file beside the model.

Conditions: tables are weights (also quantised ones) that only Gather and onnxruntime's
EmbedLayerNormalization look up along their first axis, with ids from an input; an output axis of
this length has to be cuttable. Anything else is refused with the reason.

The result is compared with the original on random kept ids: outputs have to agree to the
certificate's tolerance.

Source: Abdaoui et al. 2020 (Load What You Need).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxprune.passes.interface.axis_cut import AxisCut, apply, check, find_cut
from onnxprune.passes.interface.interface_pass import InterfacePass, note_kept
from onnxprune.passes.interface.lookups import IdInput, Lookup, find_id_inputs, map_ids, renumber
from onnxprune.passes.interface.parts import select_outputs, whole_axes
from onnxprune.passes.interface.selection import read_entries, resolve

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import observe_model
from onnxprune.errors import CalibrationError, InputError, NothingPrunable
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import write_text_atomic

KEPT_TOKENS = "onnxprune.kept_tokens"
"""Metadata key: JSON list, the old id of every token there is."""

_MAP_SUFFIX = ".tokens.json"

Feed = Mapping[str, "NDArray[Any]"]


class KeepTokens(InterfacePass):
    """Cut a vocabulary down to some of its tokens.

    Args:
        keep: ids to keep: a list, "3,7,9", or the path of a file with one a line or a JSON list.
        remap: True: inputs stay old ids, which a table in the model turns into new ones.
        unknown: old id (a kept one) that stands for all ids that are gone.
        vocabulary: rows of the tables that are meant; default: of the largest.
        map_file: where to write the kept ids, in the order of the new ones, as a JSON list;
            default: beside the model, where a command writes one.
        outputs: names of the outputs with an entry for each token; default: all that have an axis
            of this length.
        samples: calibration samples; inputs to compare on, None for made-up ones.
        runtime: how to run the model.
        seed: of made-up inputs.

    Attributes:
        details: inputs and outputs that are cut, sizes, and how far outputs are from the
            original's; filled by the call.
        files: the kept ids as a JSON list, unless `map_file` has them; filled by the call.
    """

    def __init__(
        self,
        keep: str | Sequence[int | str],
        remap: bool = False,
        unknown: int | None = None,
        vocabulary: int | None = None,
        map_file: str | None = None,
        outputs: Sequence[str] | None = None,
        *,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(keep, outputs, samples, runtime, seed)
        self.remap = remap
        self.unknown = unknown
        self.vocabulary = vocabulary
        self.map_file = map_file
        self._new_ids: NDArray[np.int64] = np.zeros(0, np.int64)
        self._inputs: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the vocabulary.

        Raises:
            InputError: for ids or outputs that do not exist, or an output without such an axis.
            NothingPrunable: when no table can be cut, or an output cannot; says why.
            VerificationError: when the result computes something else for kept tokens.
        """
        facts = observe_model(model, RunContext(self.samples, None, self.runtime, self.seed))
        inputs, rows = self._chosen(find_id_inputs(model, facts))
        if not self.remap:
            _refuse_arithmetic(inputs, rows)
        shift = _shift_of(inputs, rows)
        size = rows - shift
        kept = resolve(read_entries(self.keep, "token"), size, None, "token")
        self._new_ids = self._numbering(kept, size)
        self._inputs = [one.name for one in inputs]
        rows_kept = np.concatenate([np.arange(shift), kept + shift])
        outputs = select_outputs(model, facts, self.outputs)
        parts = {value.name or "": whole_axes(value, facts, rows) for value in outputs}
        parts = {name: some for name, some in parts.items() if some}
        self.require_named(parts, facts, rows)
        axis_cut = find_cut(model, facts, rows_kept, rows, parts, _lookups(inputs, rows))
        result = model.clone()
        self._apply(result, axis_cut, facts, kept)
        feeds = self._feeds(facts, inputs, kept)
        error = check(model, result, axis_cut, feeds, self.runtime)
        self._apply(model, axis_cut, facts, kept)
        written = note_kept(model, KEPT_TOKENS, kept, size) + "\n"
        self.files = {_MAP_SUFFIX: written} if self.map_file is None else {}
        if self.map_file is not None:
            write_text_atomic(os.fspath(self.map_file), written)
        self.details = {
            "kept": len(kept),
            "vocabulary": size,
            "inputs": self._inputs,
            "outputs": axis_cut.describe(),
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
            ids = np.asarray(feed[name])
            known = (ids >= 0) & (ids < len(self._new_ids))
            new = np.where(known, self._new_ids[np.where(known, ids, 0)], ids)
            if (new[known] < 0).any():
                raise CalibrationError(
                    f"the samples have ids of {name!r} that are not kept; give unknown=ID, which "
                    "stands for them, or keep them"
                )
            result[name] = new.astype(ids.dtype)
        return result

    def _chosen(self, inputs: Sequence[IdInput]) -> tuple[list[IdInput], int]:
        """Inputs that are looked up in tables of the size that is meant, and this size.

        Raises:
            NothingPrunable: when there are none.
        """
        sizes = {lookup.rows for one in inputs for lookup in one.lookups}
        rows = self.vocabulary or max(sizes, default=0)
        chosen = [one for one in inputs if _lookups([one], rows)]
        if not chosen:
            readers = {one.name: sorted(set(one.others)) for one in inputs}
            what = f" of {self.vocabulary} rows" if self.vocabulary else ""
            found = f"tables of {sorted(sizes)} rows" if sizes else "no such table"
            raise NothingPrunable(
                f"no integer input is looked up in a table of weights{what}; there is {found}, "
                f"and what else reads the inputs is {readers}"
            )
        return chosen, rows

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

    def _apply(
        self, model: ir.Model, axis_cut: AxisCut, facts: Facts, kept: NDArray[np.int64]
    ) -> None:
        inputs, rows = self._chosen(find_id_inputs(model, facts))
        apply(model, axis_cut)
        if self.remap:
            shift = _shift_of(inputs, rows)
            table = np.concatenate([np.arange(shift), self._new_ids + shift])
            map_ids(model.graph, _lookups(inputs, rows), table)
        else:
            renumber(model.graph, inputs, kept, len(self._new_ids))

    def _feeds(
        self, facts: Facts, inputs: Sequence[IdInput], kept: NDArray[np.int64]
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
                alone = self.remap and not (one.others or one.comparisons or one.ordered)
                drawn = rng.choice(np.arange(len(stands_for)) if alone else kept, shape)
                original[name] = stands_for[drawn].astype(dtype)
                given[name] = drawn.astype(dtype)
            pairs.append((original, self.convert(given)))
        return pairs


def _lookups(inputs: Sequence[IdInput], rows: int) -> list[Lookup]:
    """What looks ids up in tables of some size, each node once."""
    found = [lookup for one in inputs for lookup in one.lookups if lookup.rows == rows]
    return list({(lookup.node, lookup.index_slot): lookup for lookup in found}.values())


def _shift_of(inputs: Sequence[IdInput], rows: int) -> int:
    """The row of id 0: those before it belong to no id and stay.

    Raises:
        NothingPrunable: when it is not the same in every lookup.
    """
    shifts = {one.arithmetic.shift or 0 for one in _lookups(inputs, rows)}
    if len(shifts) > 1:
        raise NothingPrunable(
            f"id 0 leads to the rows {sorted(shifts)} in different lookups of the same ids; they "
            "cannot be cut together"
        )
    return shifts.pop()


def _refuse_arithmetic(inputs: Sequence[IdInput], rows: int) -> None:
    """Refuse new ids where something else is done with the old ones than to look them up.

    Raises:
        NothingPrunable: naming what.
    """
    for one in inputs:
        others = [*one.others]
        for lookup in one.lookups:
            if lookup.rows != rows:
                others.append(f"{lookup.node.op_type} of {lookup.table!r} ({lookup.rows} rows)")
            elif lookup.arithmetic.shift is None:
                others.append(f"what is in front of the lookup in {lookup.table!r}")
        if others:
            raise NothingPrunable(
                f"{others[0]} works with the ids of {one.name!r} themselves, so that they cannot "
                "be renumbered; use remap"
            )
