"""Timings on disk: whole or not there, whatever happens."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from helpers.oracle import ONE_THREAD

from onnxprune.cost.latency.cache import TimingCache, cache_folder, machine
from onnxprune.model.runtime import Runtime

KEY = {"operator": "::Conv", "threads": "1"}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_added_is_read_by_the_next_process(tmp_path: Path) -> None:
    TimingCache(tmp_path).add(KEY, {"1x2": 0.25})
    TimingCache(tmp_path).add(KEY, {"1x3": 0.5})
    assert TimingCache(tmp_path).read(KEY) == {"1x2": 0.25, "1x3": 0.5}
    assert len(files(tmp_path)) == 1


def test_another_key_has_other_timings(tmp_path: Path) -> None:
    TimingCache(tmp_path).add(KEY, {"1x2": 0.25})
    assert TimingCache(tmp_path).read({**KEY, "threads": "2"}) == {}
    assert TimingCache(tmp_path).read(dict(reversed(KEY.items()))) == {"1x2": 0.25}


def test_two_processes_at_once_keep_what_both_measured(tmp_path: Path) -> None:
    first, second = TimingCache(tmp_path), TimingCache(tmp_path)
    assert first.read(KEY) == second.read(KEY) == {}
    first.add(KEY, {"a": 1.0})
    second.add(KEY, {"b": 2.0})
    first.add(KEY, {"c": 3.0})
    assert TimingCache(tmp_path).read(KEY) == {"a": 1.0, "b": 2.0, "c": 3.0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format": "onnxprune-timings", "version": 1}',
        b'{"format": "onnxprune-timings", "version": 1, "key": {}, "timings": {"a": 1.0}}',
        pickle.dumps({"a": 1.0}),
    ],
)
def test_a_damaged_file_counts_as_none_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    TimingCache(tmp_path).add(KEY, {"a": 1.0})
    (file,) = files(tmp_path)
    file.write_bytes(content)
    assert TimingCache(tmp_path).read(KEY) == {}
    TimingCache(tmp_path).add(KEY, {"b": 2.0})
    assert TimingCache(tmp_path).read(KEY) == {"b": 2.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_no_time_is_left_out(tmp_path: Path, value: float) -> None:
    TimingCache(tmp_path).add(KEY, {"a": 1.0, "b": value})
    assert TimingCache(tmp_path).read(KEY) == {"a": 1.0}


def test_a_text_in_place_of_the_timings_counts_as_none(tmp_path: Path) -> None:
    TimingCache(tmp_path).add(KEY, {"a": 1.0})
    (file,) = files(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "timings": "fast"}))
    assert TimingCache(tmp_path).read(KEY) == {}


def test_an_interrupted_write_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TimingCache(tmp_path).add(KEY, {"a": 1.0})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TimingCache(tmp_path).add(KEY, {"b": 2.0})
    assert TimingCache(tmp_path).read(KEY) == {"a": 1.0}
    assert len(files(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = TimingCache(tmp_path / "file")
    cache.add(KEY, {"a": 1.0})
    assert cache.read(KEY) == {"a": 1.0}


def test_without_a_folder_timings_live_as_long_as_the_cache() -> None:
    cache = TimingCache(None)
    cache.add(KEY, {"a": 1.0})
    assert cache.read(KEY) == {"a": 1.0}
    assert TimingCache(None).read(KEY) == {}


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ONNXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "onnxprune" in cache_folder().parts


def test_a_machine_is_told_apart_by_its_threads() -> None:
    one = machine(ONE_THREAD)
    assert one == machine(ONE_THREAD)
    assert one != machine(Runtime(threads=2))
    assert all(isinstance(value, str) for value in one.values())
    assert {"onnxruntime", "cpu", "providers", "threads"} <= one.keys()
