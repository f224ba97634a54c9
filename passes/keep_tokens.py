"""Vocabulary removal: rows of the embedding and of the output layer for tokens that are not kept.

Formula, for token ids t, an embedding E, an output layer U and kept ids K in ascending order::

    E' = E[K]        U' = U[:, K]        new id of t = position of t in K

Before::

    t int64 [N,T] -> Gather(E [30000,384], t) -> ... -> h -> MatMul(U [384,30000]) -> logits

After (8000 ids are kept)::

    t int64 [N,T] -> Gather(E' [8000,384], t) -> ... -> h -> MatMul(U' [384,8000]) -> logits

Which ids the result takes:

* by default new ids, 0 to n - 1, in the old order. Constants that ids are compared with (padding)
  are renumbered; rows that a model reserves by looking up `id + 2` stay, and ids below 0 still
  count from the end; any other arithmetic on ids is refused;
* with `remap` the old ids: a Gather on one small table maps them to new ones where they are looked
  up, and removed ids to `unknown`. This costs one Gather and 8 bytes for each old id.

Outputs with an axis as long as the vocabulary (logits) lose the same entries, tied to the embedding
or not, and declare their new size. The kept ids, in the order of the new ones, are listed in the
model's metadata (`onnxprune.kept_tokens`, a JSON list) and in a file beside the model.

Conditions: tables are weights (also quantised ones) that only Gather and onnxruntime's
EmbedLayerNormalization look up along their first axis, with ids from an input; an output axis of
this length has to be cuttable. Anything else is refused with the reason.

The result is compared with the original on random kept ids: outputs have to agree within
the certificate's tolerance.

Source: Abdaoui et al. 2020 (Load What You Need).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.coupling.analysis import observe_model
from onnxprune.errors import CalibrationError, InputError, NothingPrunable
from onnxprune.model.inputs import list_initializers
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import write_text_atomic
from onnxprune.passes.interface.axis_cut import AxisCut, apply, check, find_cut
from onnxprune.passes.interface.interface_pass import (
    InterfacePass,
    note_kept,
    read_entries,
    resolve,
)
from onnxprune.passes.interface.lookups import IdInput, Lookup, find_id_inputs, map_ids, renumber
from onnxprune.passes.interface.parts import select_outputs, whole_axes

KEPT_TOKENS = "onnxprune.kept_tokens"
"""Metadata key: JSON list, the old id of every token there is."""

_MAP_SUFFIX = ".tokens.json"

Feed = Mapping[str, "NDArray[Any]"]


class KeepTokens(InterfacePass):
    """Cut a vocabulary down to some of its tokens.

    Args:
        keep: ids to keep: a list, "3,7,9", or the path of a file with one a line or a JSON list.
        remap: inputs stay old ids, which a table in the model maps to new ones.
        unknown: old id (a kept one) that stands for all removed ids.
        vocabulary: number of rows of the tables to cut; default: of the largest.
        map_file: where to write the kept ids, in the order of the new ones, as a JSON list;
            default: beside the model, where a command writes one.
        outputs: names of the outputs with an entry for each token; default: all that have an axis
            of this length.
        samples: calibration samples to compare on; None for randomly generated inputs.
        runtime: onnxruntime providers and threads.
        seed: of randomly generated inputs.

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
        super().__init__(keep, outputs, RunContext(samples, None, runtime or Runtime(), seed))
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
            VerificationError: when the outputs differ for kept tokens.
        """
        facts = observe_model(model, self.context)
        inputs, rows = self._chosen(find_id_inputs(model, facts))
        if not self.remap:
            _refuse_arithmetic(inputs, rows)
        shift = _shift_of(inputs, rows)
        size = rows - shift
        kept = resolve(read_entries(self.keep, "token"), size, None, "token")
        self._new_ids = self._numbering(kept, size)
        self._inputs = [ids.name for ids in inputs]
        rows_kept = np.concatenate([np.arange(shift), kept + shift])
        outputs = select_outputs(model, facts, self.outputs)
        parts = {value.name or "": whole_axes(value, facts, rows) for value in outputs}
        parts = {name: places for name, places in parts.items() if places}
        self.require_named(parts, facts, rows)
        axis_cut = find_cut(model, facts, rows_kept, rows, parts, _lookups(inputs, rows))
        result = model.clone()
        self._apply(result, axis_cut, facts, kept)
        feeds = self._feeds(facts, inputs, kept)
        error = check(model, result, axis_cut, feeds, self.context.runtime)
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
        """A feed of the original with the ids that the result takes.

        Raises:
            CalibrationError: when it has removed ids and nothing stands for them.
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
                    f"the samples have ids of {name!r} that are not kept; keep them, or set "
                    "unknown=ID, the id that stands for them"
                )
            result[name] = new.astype(ids.dtype)
        return result

    def _chosen(self, inputs: Sequence[IdInput]) -> tuple[list[IdInput], int]:
        """Inputs that are looked up in the tables to cut, and the rows of these.

        Raises:
            NothingPrunable: when there are none.
        """
        sizes = {lookup.rows for ids in inputs for lookup in ids.lookups}
        rows = self.vocabulary or max(sizes, default=0)
        chosen = [ids for ids in inputs if _lookups([ids], rows)]
        if not chosen:
            consumers = {ids.name: sorted(set(ids.others)) for ids in inputs}
            wanted = f" of {self.vocabulary} rows" if self.vocabulary else ""
            tables = f"tables have {sorted(sizes)} rows" if sizes else "there is no such table"
            raise NothingPrunable(
                f"no integer input is looked up in a table of weights{wanted}; {tables}, "
                f"and the other consumers of the inputs are {consumers}"
            )
        return chosen, rows

    def _numbering(self, kept: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """New id of every old one; -1 for removed ids without `unknown`.

        Raises:
            InputError: when `unknown` is not kept, or is needed and not given.
        """
        if self.unknown is not None and self.unknown not in kept:
            raise InputError(f"unknown={self.unknown} is not among the kept ids; keep it")
        if self.unknown is None and self.remap:
            raise InputError("remap needs unknown=ID: the kept id that stands for removed ones")
        unknown = -1 if self.unknown is None else int(np.searchsorted(kept, self.unknown))
        new = np.full(size, unknown, np.int64)
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
        list_initializers(model)

    def _feeds(
        self, facts: Facts, inputs: Sequence[IdInput], kept: NDArray[np.int64]
    ) -> list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """The observed feeds with random ids, for the original and for the result.

        Removed ids are among them where ids are used for nothing but looking up a row.
        """
        rng = np.random.default_rng(self.context.seed)
        stands_for = kept[self._new_ids]  # an old id -> the old id it is treated as
        pairs = []
        for run in (facts.first, facts.second):
            original, feed = dict(run.feed), dict(run.feed)
            for ids in inputs:
                name, shape, dtype = ids.name, run.feed[ids.name].shape, run.feed[ids.name].dtype
                only_looked_up = not (ids.others or ids.comparisons or ids.ordered)
                every = self.remap and only_looked_up
                drawn = rng.choice(np.arange(len(stands_for)) if every else kept, shape)
                original[name] = stands_for[drawn].astype(dtype)
                feed[name] = drawn.astype(dtype)
            pairs.append((original, self.convert(feed)))
        return pairs


def _lookups(inputs: Sequence[IdInput], rows: int) -> list[Lookup]:
    """Lookups of ids in tables of some size, each node once."""
    lookups = [lookup for ids in inputs for lookup in ids.lookups if lookup.rows == rows]
    return list({(lookup.node, lookup.index_slot): lookup for lookup in lookups}.values())


def _shift_of(inputs: Sequence[IdInput], rows: int) -> int:
    """The row of id 0; rows before it belong to no id and stay.

    Raises:
        NothingPrunable: when lookups differ in it.
    """
    shifts = {lookup.arithmetic.shift or 0 for lookup in _lookups(inputs, rows)}
    if len(shifts) > 1:
        raise NothingPrunable(
            f"id 0 leads to the rows {sorted(shifts)} in different lookups of the same ids; they "
            "cannot be cut together"
        )
    return shifts.pop()


def _refuse_arithmetic(inputs: Sequence[IdInput], rows: int) -> None:
    """Refuse new ids where the old ones are used for anything but looking them up.

    Raises:
        NothingPrunable: naming what.
    """
    for ids in inputs:
        others = [*ids.others]
        for lookup in ids.lookups:
            if lookup.rows != rows:
                others.append(f"{lookup.node.op_type} of {lookup.table!r} ({lookup.rows} rows)")
            elif lookup.arithmetic.shift is None:
                others.append(f"what comes before the lookup in {lookup.table!r}")
        if others:
            raise NothingPrunable(
                f"{others[0]} uses the ids of {ids.name!r} themselves, so they cannot be "
                "renumbered; use remap"
            )
