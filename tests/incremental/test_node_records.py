"""What a node depends on outside of the catalog: sources, files and factories that its parameters name; digests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.incremental.file_states import FileStates
from pu_kd_pipeline.incremental.node_records import (
    NodeRecord,
    NodeRecords,
    damaged_outputs,
    differences,
    flat_parameters,
    external_states,
)
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import InputSpec


def outside(tmp_path: Path, value: Any) -> dict[str, str]:
    return external_states("block", value, FileStates(tmp_path / "states.json"))


def source(**changes: Any) -> ImageSource:
    return ImageSource.model_validate({"type": "folder", "path": "images", **changes})


def test_the_files_of_a_source_are_watched_and_the_embedded_ones_are_code(tmp_path):
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(b"1")
    sources = [source(path=str(folder.parent)), source(type="demo", part="pool", path=None)]
    states = [outside(tmp_path, {"pool": sources})]
    assert list(states[0]) == ["block.pool[0]"]
    for change in (
        lambda: (folder / "two.png").write_bytes(b"2"),
        lambda: (folder / "two.png").rename(folder / "three.png"),
        lambda: (folder / "one.png").write_bytes(b"11"),
        lambda: os.utime(folder / "one.png", (1, 1)),
        lambda: (folder / "one.png").unlink(),
    ):
        change()
        states.append(outside(tmp_path, {"pool": sources}))
    assert len({state["block.pool[0]"] for state in states}) == len(states)


def test_a_pattern_and_a_missing_folder_have_a_state_too(tmp_path):
    pattern = source(type="parquet", path=f"{tmp_path}/*.parquet")
    before = outside(tmp_path, pattern)
    (tmp_path / "notes.txt").write_text("nothing of it")
    assert outside(tmp_path, pattern) == before
    (tmp_path / "a.parquet").write_bytes(b"")
    assert outside(tmp_path, pattern) != before
    assert outside(tmp_path, source(path=str(tmp_path / "nowhere")))
    assert outside(tmp_path, source(path="memory://nowhere/images"))


def test_weights_and_factories_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    weights, module = tmp_path / "weights.pt", tmp_path / "our_nets.py"
    weights.write_bytes(b"12")
    module.write_text("def build(): ...\n")
    block = {
        "weights": str(weights),
        "architecture": "our_nets:build",
        "name": "resnet18",
        "other": "no:such",
        "n": 3,
    }
    before = outside(tmp_path, block)
    assert set(before) == {"block.weights", "block.architecture"}
    os.utime(weights)
    assert outside(tmp_path, block) == before
    weights.write_bytes(b"21")
    module.write_text("def build(): return 1\n")
    after = outside(tmp_path, block)
    assert all(after[key] != before[key] for key in before)
    assert outside(tmp_path, {"text": "x" * 5000, "nul": "a\0b"}) == {}


def test_parameters_are_compared_key_by_key():
    block = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(1.0,))
    assert flat_parameters("input", block) == {
        "input.size_px": 8,
        "input.channels": 1,
        "input.mean": [0.5],
        "input.std": [1.0],
    }
    old, new = (
        {"seed": 0, "gone": 1, "mean": [0.5]},
        {"seed": 1, "mean": [0.5, 0.6], "late": None},
    )
    assert differences(NodeRecord(parameters=old), NodeRecord(parameters=new)) == [
        "parameter seed 0 → 1",
        "parameter gone is gone",
        "parameter mean [0.5] → [0.5, 0.6]",
        "parameter late is new: null",
    ]


def test_every_part_of_a_record_counts():
    parts = ("inputs", "outside", "catalog", "code", "libraries")
    for part in parts:
        [reason] = differences(NodeRecord(**{part: {"x": "1"}}), NodeRecord(**{part: {"x": "2"}}))
        assert "x" in reason
        assert differences(NodeRecord(**{part: {"x": "1"}}), NodeRecord(**{part: {"x": "1"}})) == []
    many = differences(NodeRecord(code={}), NodeRecord(code=dict.fromkeys("abcde", "1")))
    assert many == ["code changed: a, b, c and 2 more"]


def test_outputs_are_told_apart_by_what_happened_to_them():
    record = NodeRecord(outputs={"table": {"a": "1", "b": "2"}})
    assert damaged_outputs(record, {"table": {"a": "1", "b": "2"}}) == []
    for found, told in (
        ({}, "output table is missing"),
        ({"a": "1"}, "output table is damaged: b is missing"),
        (
            {"a": "1", "b": "3"},
            "output table is not what was written (b): damaged, edited, or written by another node",
        ),
        (
            {"a": "1", "b": "2", "c": "3"},
            "output table has files that were not written with it, such as c",
        ),
    ):
        assert damaged_outputs(record, {"table": found}) == [told]


def test_a_record_is_read_as_it_was_written(tmp_path):
    records, record = (
        NodeRecords(tmp_path),
        NodeRecord(parameters={"a": [1, None, "ü"]}, outputs={"x": {"": "1"}}),
    )
    assert records.read("stage.node") is None
    records.write("stage.node", record)
    assert records.read("stage.node") == record
    records.remove("stage.node")
    assert records.read("stage.node") is None


def test_a_digest_is_of_the_content_and_read_again_only_after_a_touch(tmp_path, monkeypatch):
    file, states = tmp_path / "data.bin", FileStates(tmp_path / "states.json")
    file.write_bytes(b"one")
    first = states.digest(file)
    states.save()
    remembering = FileStates(tmp_path / "states.json")
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was read"))
    assert remembering.digest(file) == first
    monkeypatch.undo()
    file.write_bytes(b"two")  # of the same size, a moment later
    assert FileStates(tmp_path / "states.json").digest(file) != first
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    assert FileStates(tmp_path / "states.json").digest(file) == first


def test_a_change_within_the_resolution_of_file_times_is_seen(tmp_path):
    file, states = tmp_path / "data.bin", FileStates(tmp_path / "states.json")
    digests = set()
    for number in range(5):
        file.write_bytes(bytes([number]))
        digests.add(states.digest(file))
        assert (
            time.time_ns() - file.stat().st_mtime_ns >= 20_000_000
        )  # or the next write might have the same time
    assert len(digests) == 5
