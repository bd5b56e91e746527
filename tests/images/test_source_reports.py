"""What is reported and logged of the sources of a store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.source_reports import SOURCES_FILE, read_reports
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
    write_store(plan_of(path, source={"labels": "truth", **source}), folder)
    return read_reports(folder)


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


def test_a_damaged_report_says_how_to_make_it_again(tmp_path: Path) -> None:
    assert read_reports(tmp_path) == []
    (tmp_path / SOURCES_FILE).write_text("{")
    with pytest.raises(InputError, match=r"is damaged .*: delete it and run"):
        read_reports(tmp_path)
