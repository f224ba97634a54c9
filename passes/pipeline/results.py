"""What a pipeline came to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.model.save import check_writable, save, write_text_atomic
from onnxprune.pruning.plan import Plan
from onnxprune.report.records import PipelineRecord
from onnxprune.report.run_page import run_page

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class PipelineResult(PipelineRecord):
    """What `run_pipeline` returns.

    Attributes:
        model: after the last pass, of the kind that was given (an ir.Model for a path).
        original: what the model cost at first.
        steps: one report for each pass.
        plan: from which the pipeline can be run again.
        provenance: versions, machine, seed and the original's digest.
    """

    model: onnx.ModelProto | ir.Model | gs.Graph
    plan: Plan
    _ir: ir.Model
    _source: Path | None = None

    def save(self, path: str | Path) -> None:
        """Write the model atomically, and beside it the files that belong to it.

        A file of the suffix `.tokens.json` is `small.tokens.json` beside `small.onnx`.

        Raises:
            InputError: when a path is that of an input, or cannot be written; then nothing is.
        """
        beside = self.files_beside(path)
        for file in beside:
            for protected in self._read():
                check_writable(file, protected)
        written: list[Path] = []
        try:
            for file, text in beside.items():
                write_text_atomic(file, text)
                written.append(file)
            save(self._ir, path, protect=self._source)
        except BaseException:
            for file in written:
                with contextlib.suppress(OSError):
                    os.unlink(file)
            raise

    def files_beside(self, path: str | Path) -> dict[Path, str]:
        """Files that belong beside the model, with their texts.

        Args:
            path: of the model.
        """
        found: dict[Path, str] = {}
        for number, step in enumerate(self.steps, 1):
            for suffix, text in step.files.items():
                if os.path.basename(suffix) != suffix:
                    raise InputError(f"{step.name}: {suffix!r} is no ending of a file name")
                file = Path(path).with_name(f"{Path(path).stem}{suffix}")
                if file in found:
                    file = file.with_name(f"{Path(path).stem}.{number}{suffix}")
                found[file] = text
        return found

    def _read(self) -> Iterator[Path]:
        """Files that the pipeline may have read."""
        if self._source is not None:
            yield self._source
        for step in self.steps:
            yield from (Path(one) for one in step.options.values() if isinstance(one, (str, Path)))

    def to_html(self, *, command: Sequence[str] = (), model_file: str | Path | None = None) -> str:
        """Return one self-contained HTML page.

        Args:
            command: the words of the command line that made it; empty for none.
            model_file: where the result was saved; its digest is shown then.

        Raises:
            OSError: when that file cannot be read.
        """
        try:
            passes, no_passes = self.plan.to_dict().get("steps", []), ""
        except InputError as error:
            passes, no_passes = [], str(error)
        beside = self.files_beside(model_file) if model_file is not None else ()
        return run_page(
            self,
            passes,
            no_passes,
            command=command,
            model_file=model_file,
            beside=list(map(str, beside)),
        )

    def save_report(
        self,
        path: str | Path,
        *,
        command: Sequence[str] = (),
        model_file: str | Path | None = None,
    ) -> None:
        """Write the page as one self-contained HTML file, atomically.

        Args:
            path: the file to write.
            command: the words of the command line that made it; empty for none.
            model_file: where the model was saved; its digest is shown then.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        check_writable(path, self._source)
        write_text_atomic(path, self.to_html(command=command, model_file=model_file))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "original": vars(self.original),
            "steps": [one.to_dict() for one in self.steps],
        }
