"""Prune damaged models for a long time and count what happens.

    python benchmarks/fuzz.py [--seconds 600] [--seed 0] [--keep FOLDER]

The damage is that of tests/test_fuzz.py. Each model goes to a worker process that is replaced when
it dies, so that a crash in native code is an outcome like any other. Every model that does not end
as promised (a valid result, or an error of onnxprune) is kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TIMEOUT = 120.0


def work(connection: Connection, folder: str) -> None:
    """Answer seeds with outcomes until the connection closes."""
    from helpers.fuzzing import judge, mutated

    while True:
        seed = connection.recv()
        description, data = mutated(seed)
        try:
            outcome, detail = judge(data, Path(folder)), ""
        except Exception as error:
            outcome, detail = type(error).__name__, traceback.format_exc()
        connection.send((description, outcome, detail))


class Worker:
    """A process that judges one seed at a time."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, folder), daemon=True)
        self.process.start()
        other.close()

    def judge(self, seed: int) -> tuple[str, str, str]:
        """What was done, the outcome and details.

        Raises:
            EOFError: when the process died.
            TimeoutError: when it did not answer.
        """
        self.connection.send(seed)
        if not self.connection.poll(TIMEOUT):
            raise TimeoutError
        answer: tuple[str, str, str] = self.connection.recv()
        return answer

    def stop(self) -> int | None:
        """End the process; returns its exit code."""
        self.process.join(1)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="default: endless")
    parser.add_argument("--seed", type=int, default=0, help="number of the first model")
    parser.add_argument("--keep", type=Path, default=None, help="where failing models go")
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="onnxprune-fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    failed, seed, started = 0, arguments.seed, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder)
        try:
            while time.monotonic() - started < arguments.seconds:
                outcome, detail = judged(worker, seed)
                if worker.process.exitcode is not None:
                    worker = Worker(folder)
                counts[outcome] += 1
                if not outcome.startswith(("pruned", "refused")):
                    failed += 1
                    print(f"seed {seed}: {outcome}\n{detail}", flush=True)
                    save(seed, keep)
                seed += 1
        except KeyboardInterrupt:
            pass
        worker.stop()
    print(f"{seed - arguments.seed} models, {failed} failures (kept in {keep})")
    for outcome, count in counts.most_common():
        print(f"{count:7} {outcome}")
    return 1 if failed else 0


def judged(worker: Worker, seed: int) -> tuple[str, str]:
    """The outcome of one seed, death and silence included."""
    try:
        description, outcome, detail = worker.judge(seed)
    except (EOFError, ConnectionError):
        return "crash", f"the process died with exit code {worker.stop()}"
    except TimeoutError:
        worker.stop()
        return "timeout", f"no answer within {TIMEOUT:.0f} s"
    return outcome, f"{description}\n{detail}"


def save(seed: int, keep: Path) -> None:
    """Keep a model that failed."""
    from helpers.fuzzing import mutated

    description, data = mutated(seed)
    (keep / f"{seed}.onnx").write_bytes(data)
    (keep / f"{seed}.txt").write_text(description + "\n")


if __name__ == "__main__":
    sys.exit(main())
