"""What is reported and logged of the sources of a store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.shard_files import RUN_AGAIN
from pu_kd_pipeline.images.source_reports import SOURCES_FILE, read_reports
from pu_kd_pipeline.storage.checked_json import to_checked_json
from tests.images.numbered_images import parquet_of, plan_of, png


def class_folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(2 * number))
        (folder / "b.png").write_bytes(png(2 * number + 1))
    return root


def ingested(path: Path, **source: Any) -> list[dict[str, Any]]:
    """Return the reports of a store for a teacher with the classes cat, dog and owl."""
    folder = path.with_name("store")
    store = write_store(plan_of(path, source={"labels": "truth", **source}), folder)
    return read_reports(folder, len(store))


def test_labels_are_reported_with_their_classes_and_the_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "in", "cat", "DOG", "car")
    with caplog.at_level(logging.INFO):
        (report,) = ingested(root, type="folder")

    rows = []
    for entry in report["labels"]:
        rows.append(tuple(entry.values()))
    assert sorted(rows, key=str) == [
        ("DOG", 1, "dog", "spelling", 2),
        ("car", None, None, "no class", 2),
        ("cat", 0, "cat", "name", 2),
    ]
    where = "data_ingestion.pool[0] (folder in)"
    assert (
        f"{where}: 1 labels are class names (2 images), "
        "label 'DOG' is read as class 'dog' (but for its spelling; 2 images)"
    ) in caplog.text
    assert f"{where}: no class of the teacher: 'car' (2)" in caplog.text


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["car", "van"], "none of its labels is a class of the teacher, so that no such image"),
        (["."], "labels are read, and no image has one, so that it is unknown which are relevant"),
        (["cat", "van"], None),
    ],
)
def test_a_source_without_a_label_that_is_a_class_is_warned_of(
    folders: list[str], message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "in", *folders)
    with caplog.at_level(logging.WARNING):
        ingested(root, type="folder")
    messages = [record.getMessage() for record in caplog.records]
    if message is None:
        assert not messages
    else:
        (warning,) = messages
        assert message in warning


def test_numbers_that_are_read_as_positions_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(6))
    with caplog.at_level(logging.INFO):
        ingested(file)
    assert "label '0' is read as class 'cat' (its position; 2 images)" in caplog.text


def test_files_that_are_no_images_are_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "in", "cat")
    for name in ("notes.TXT", "more.txt", "README", ".DS_Store", "._a.png"):
        (root / "cat" / name).write_text("x")
    (root / ".cache").mkdir()
    with caplog.at_level(logging.INFO):
        (report,) = ingested(root, type="folder")

    assert report["n_listed"] == report["n_selected"] == 2
    assert report["passed_over"] == {
        "extension .txt": 2,
        "no extension": 1,
        "hidden file": 2,
        "hidden folder": 1,
    }
    assert "passed over: " in caplog.text


def test_labels_that_are_ignored_are_not_reported(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", "cat", "car")
    (report,) = ingested(root, type="folder", labels="ignore")
    assert report["labels"] == []


def test_names_of_labels_cannot_forge_lines_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folders(tmp_path / "in", "cat", "a\nb\x1b[2J", "DOG")
    (root / "cat" / "x.\u202eb\n").touch()
    copy = root / "cat" / "copy.png"
    copy.write_bytes(png(2))  # of an image of the second class
    with caplog.at_level(logging.INFO):
        write_store(plan_of(root, source={"type": "folder", "labels": "truth"}), tmp_path / "s")

    # The log shows all it says of labels, endings and conflicts, and each record is one line.
    for record in caplog.records:
        assert record.getMessage().isprintable()
    assert r"no class of the teacher: 'a\nb\x1b[2J' (2)" in caplog.text
    assert r"extension .\u202eb\n (1)" in caplog.text
    assert r"such as a\nb\x1b[2J/a.png (conflicting labels: " in caplog.text


def test_many_endings_are_counted_together(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", "cat")
    for number in range(100):
        (root / f"scan.v{number:06}").touch()
        (root / f"{number}.txt").touch()
    (report,) = ingested(root, type="folder")
    assert report["passed_over"]["extension .txt"] == 100
    assert report["passed_over"]["other extensions"] == 51
    assert sum(report["passed_over"].values()) == 200


def test_a_damaged_report_says_how_to_make_it_again(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", "cat", "dog")
    plan = plan_of(root, source={"type": "folder"})
    folder = write_store(plan, tmp_path / "store").folder
    file = folder / SOURCES_FILE
    intact = file.read_text()
    other = class_folders(tmp_path / "other", "cat")
    write_store(plan_of(other, source={"type": "folder"}), tmp_path / "another")
    of_another = (tmp_path / "another" / SOURCES_FILE).read_text()

    damage = {
        "{": "is damaged",
        "[]": "is damaged",
        to_checked_json({}): "is damaged",
        intact.replace('"n_images": 2', '"n_images": 3', 1): "is damaged .*its checksum is wrong",
        of_another: "is about 2 images, its store about 4",
    }
    for content, message in damage.items():
        file.write_text(content)
        with pytest.raises(InputError, match=rf"{message}.*: delete it and {RUN_AGAIN}"):
            read_reports(folder, 4)
        # The store itself can be read, and ingestion writes the report again.
        write_store(plan, folder)
        assert file.read_text() == intact

    file.unlink()
    with pytest.raises(InputError, match=rf"there is no .*{SOURCES_FILE}: {RUN_AGAIN}"):
        read_reports(folder, 4)
