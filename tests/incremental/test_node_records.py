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
)
from pu_kd_pipeline.params.data_ingestion import ImageSource


def states_of(tmp_path: Path, value: Any) -> dict[str, str]:
    """Return the states of what a block of parameters names."""
    file_states = FileStates(tmp_path / "states.json")
    return external_states("block", value, file_states)


def source(**changes: Any) -> ImageSource:
    block = {"type": "folder", "path": "images", **changes}
    return ImageSource.model_validate(block)


# --- sources, files and factories


def test_the_files_of_a_source_are_watched_and_the_embedded_ones_are_code(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    embedded = source(type="demo", part="pool", path=None)
    sources = [source(path=str(images)), embedded]
    states = states_of(tmp_path, {"pool": sources})
    assert list(states) == ["block.pool[0]"]


def test_every_change_of_a_folder_changes_its_state(tmp_path):
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    one = folder / "one.png"
    two = folder / "two.png"
    one.write_bytes(b"1")
    watched = source(path=str(tmp_path / "images"))
    # Added, renamed, of another size, of another time, and removed.
    changes = (
        lambda: two.write_bytes(b"2"),
        lambda: two.rename(folder / "three.png"),
        lambda: one.write_bytes(b"11"),
        lambda: os.utime(one, (1, 1)),
        lambda: one.unlink(),
    )

    seen = [states_of(tmp_path, watched)]
    for change in changes:
        change()
        states = states_of(tmp_path, watched)
        assert states not in seen
        seen.append(states)


def test_a_pattern_has_the_state_of_the_files_that_match_it(tmp_path):
    pattern = source(type="parquet", path=f"{tmp_path}/*.parquet")
    before = states_of(tmp_path, pattern)
    other_file = tmp_path / "notes.txt"
    other_file.write_text("does not match")
    assert states_of(tmp_path, pattern) == before

    matching_file = tmp_path / "a.parquet"
    matching_file.write_bytes(b"")
    assert states_of(tmp_path, pattern) != before


def test_a_folder_that_does_not_exist_has_a_state_too(tmp_path):
    # It may be made later, which is a change.
    missing = source(path=str(tmp_path / "nowhere"))
    assert states_of(tmp_path, missing)
    missing_remote = source(path="memory://nowhere/images")
    assert states_of(tmp_path, missing_remote)


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


def test_a_folder_of_weights_counts_by_all_its_files(tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"12")
    block = {"weights": str(folder)}  # without a card
    first = states_of(tmp_path, block)
    assert set(first) == {"block.weights"}
    assert states_of(tmp_path, block) == first
    weights.write_bytes(b"21")
    second = states_of(tmp_path, block)
    assert second != first
    (folder / "card.json").write_text("{}")
    assert states_of(tmp_path, block) not in (first, second)


def test_text_that_cannot_be_a_path_names_nothing(tmp_path):
    # A file name has at most 255 bytes, and none of them is zero: looking for it raises.
    block = {"text": "x" * 5000, "nul": "a\0b"}
    states = states_of(tmp_path, block)
    assert states == {}


# --- differences


def test_parameters_are_compared_key_by_key():
    old = {"seed": "0", "gone": "1", "mean": "[0.5]"}
    new = {"seed": "1", "mean": "[0.5, 0.6]", "late": "null"}
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
    reasons_without_change = differences(old, old)
    assert reasons_without_change == []


def test_of_many_changes_in_code_the_first_are_named():
    old = NodeRecord()
    code = dict.fromkeys("abcde", "1")
    new = NodeRecord(code=code)

    # A change of a widely used module would fill the screen.
    reasons = differences(old, new)
    assert reasons == ["code changed: a, b, c and 2 more"]


# A table of two files, whose contents have the digests 1 and 2.
TWO_FILES = NodeRecord(outputs={"table": {"a": "1", "b": "2"}})


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
    faults = damaged_outputs(TWO_FILES, {"table": found})
    assert faults == [f"output table {fault}"]


def test_an_intact_output_has_no_fault():
    faults = damaged_outputs(TWO_FILES, TWO_FILES.outputs)
    assert faults == []


def test_a_record_is_read_as_it_was_written(tmp_path):
    records = NodeRecords(tmp_path)
    record = NodeRecord("stage.node", parameters={"a": '"ü"'}, outputs={"x": {"": "1"}})
    before = records.read("stage.node")
    assert before is None

    records.write(record)
    written = records.read("stage.node")
    assert written == record

    records.remove("stage.node")
    removed = records.read("stage.node")
    assert removed is None
