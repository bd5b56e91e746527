"""Records of nodes, and what a node depends on outside of the catalog."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.incremental.file_states import FileStates
from pu_kd_pipeline.incremental.node_records import (
    NodeRecord,
    NodeRecords,
    damaged_outputs,
    differences,
    external_states,
    flat_parameters,
)
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import InputSpec


def states_of(tmp_path: Path, value: Any) -> dict[str, str]:
    """Return the states of what a block of parameters names."""
    return external_states("block", value, FileStates(tmp_path / "states.json"))


def source(**changes: Any) -> ImageSource:
    return ImageSource.model_validate({"type": "folder", "path": "images", **changes})


# --- sources, files and factories


def test_the_files_of_a_source_are_watched_and_the_embedded_ones_are_code(tmp_path):
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(b"1")
    sources = [source(path=str(folder.parent)), source(type="demo", part="pool", path=None)]
    states = [states_of(tmp_path, {"pool": sources})]
    assert list(states[0]) == ["block.pool[0]"]
    for change in (
        lambda: (folder / "two.png").write_bytes(b"2"),
        lambda: (folder / "two.png").rename(folder / "three.png"),
        lambda: (folder / "one.png").write_bytes(b"11"),
        lambda: os.utime(folder / "one.png", (1, 1)),
        lambda: (folder / "one.png").unlink(),
    ):
        change()
        states.append(states_of(tmp_path, {"pool": sources}))
    assert len({state["block.pool[0]"] for state in states}) == len(states)


def test_a_pattern_and_a_missing_folder_have_a_state_too(tmp_path):
    pattern = source(type="parquet", path=f"{tmp_path}/*.parquet")
    before = states_of(tmp_path, pattern)
    (tmp_path / "notes.txt").write_text("does not match")
    assert states_of(tmp_path, pattern) == before
    (tmp_path / "a.parquet").write_bytes(b"")
    assert states_of(tmp_path, pattern) != before
    assert states_of(tmp_path, source(path=str(tmp_path / "nowhere")))
    assert states_of(tmp_path, source(path="memory://nowhere/images"))


def test_weights_and_factories_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = tmp_path / "weights.pt"
    module = tmp_path / "our_nets.py"
    weights.write_bytes(b"12")
    module.write_text("def build(): ...\n")
    block = {
        "weights": str(weights),
        "architecture": "our_nets:build",
        "name": "resnet18",
        "other": "no:such",
        "n": 3,
    }
    before = states_of(tmp_path, block)
    assert set(before) == {"block.weights", "block.architecture"}
    os.utime(weights)
    assert states_of(tmp_path, block) == before
    weights.write_bytes(b"21")
    module.write_text("def build(): return 1\n")
    after = states_of(tmp_path, block)
    assert all(after[key] != before[key] for key in before)


def test_text_that_cannot_be_a_path_names_nothing(tmp_path):
    assert states_of(tmp_path, {"text": "x" * 5000, "nul": "a\0b"}) == {}


# --- parameters


def test_a_block_is_flat_in_a_record(tmp_path):
    block = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(1.0,))
    assert flat_parameters("input", block) == {
        "input.size_px": 8,
        "input.channels": 1,
        "input.mean": [0.5],
        "input.std": [1.0],
    }


def test_a_list_of_mappings_is_one_value_of_a_record():
    value = {"pool": [{"type": "demo"}], "nothing": {}, "folder": Path("data")}
    assert flat_parameters("block", value) == {
        "block.pool": [{"type": "demo"}],
        "block.nothing": {},
        "block.folder": "data",
    }
    assert flat_parameters("seed", 3) == {"seed": 3}


def test_parameters_are_compared_key_by_key():
    old = {"seed": 0, "gone": 1, "mean": [0.5]}
    new = {"seed": 1, "mean": [0.5, 0.6], "late": None}
    assert differences(NodeRecord(parameters=old), NodeRecord(parameters=new)) == [
        "parameter seed 0 → 1",
        "parameter gone is gone",
        "parameter mean [0.5] → [0.5, 0.6]",
        "parameter late is new: null",
    ]


# --- records


@pytest.mark.parametrize("part", ["inputs", "outside", "catalog", "code", "libraries"])
def test_every_part_of_a_record_counts(part):
    old = NodeRecord(**{part: {"x": "1"}})
    new = NodeRecord(**{part: {"x": "2"}})
    [reason] = differences(old, new)
    assert "x" in reason
    assert differences(old, old) == []


def test_of_many_changes_in_code_the_first_are_named():
    new = NodeRecord(code=dict.fromkeys("abcde", "1"))
    assert differences(NodeRecord(), new) == ["code changed: a, b, c and 2 more"]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({}, "is missing"),
        ({"a": "1"}, "is damaged: b is missing"),
        (
            {"a": "1", "b": "3"},
            "is not what was written (b): damaged, edited, or written by another node",
        ),
        ({"a": "1", "b": "2", "c": "3"}, "has files that were not written with it, such as c"),
    ],
)
def test_the_fault_of_an_output_says_what_happened_to_it(found, fault):
    record = NodeRecord(outputs={"table": {"a": "1", "b": "2"}})
    assert damaged_outputs(record, {"table": found}) == [f"output table {fault}"]


def test_an_intact_output_has_no_fault():
    record = NodeRecord(outputs={"table": {"a": "1", "b": "2"}})
    assert damaged_outputs(record, record.outputs) == []


def test_a_record_is_read_as_it_was_written(tmp_path):
    records = NodeRecords(tmp_path)
    record = NodeRecord(parameters={"a": [1, None, "ü"]}, outputs={"x": {"": "1"}})
    assert records.read("stage.node") is None
    records.write("stage.node", record)
    assert records.read("stage.node") == record
    records.remove("stage.node")
    assert records.read("stage.node") is None
