"""A record that was damaged, copied or replaced means that its node runs; nothing else happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pu_kd_pipeline.incremental.checked_files import read_checked
from pu_kd_pipeline.incremental.node_records import NodeRecord, NodeRecords
from tests.incremental.projects import NO_RECORD


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def replace_by_folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def replace_by_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nothing")


def copy_from_another_node(file: Path) -> None:
    shutil.copy(file.with_name("left.json"), file)


def write(text: str) -> Callable[[Path], None]:
    def write_text(file: Path) -> None:
        file.write_text(text)

    return write_text


DAMAGES = [
    truncate,
    replace_by_folder,
    replace_by_link_to_nothing,
    copy_from_another_node,
    write(""),
    write("[" * 100_000),
    write("1" * 10_000),
    write('{"version": 2, "outputs": []}'),
    write('{"version": 2, "code": 1}'),
    write("null"),
    write("\x00\xff"),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["right", "file_states"])
def test_a_damaged_record_means_that_its_node_runs(project, damage, name: str):
    project.run()
    expected = project.results()
    file = project.data / "records" / f"{name}.json"
    damage(file)
    reasons = {}
    if name == "right":
        reasons = {"right": NO_RECORD}
    certain = {
        node: reason for node, reason in project.explain().items() if "if input" not in reason
    }
    assert certain == reasons
    assert project.run() == reasons
    assert project.results() == expected
    assert project.run() == {}


def test_every_flipped_bit_is_noticed(tmp_path):
    records = NodeRecords(tmp_path)
    record = NodeRecord("node", parameters={"a": "1"}, outputs={"x": {"": "1"}})
    records.write(record)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            assert records.read("node") is None
    file.write_bytes(content)
    assert records.read("node") == record


def test_a_record_without_its_digest_is_none(tmp_path):
    file = tmp_path / "file.json"
    file.write_text(json.dumps({"a": "1"}))
    assert read_checked(file) is None
