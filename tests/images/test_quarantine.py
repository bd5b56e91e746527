"""Images that cannot be stored: their reasons, and how many of them stop a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.images.numbered_images import (
    KINDS,
    contents,
    expected,
    numbered_store,
    parquet_of,
    plan_of,
    png,
)


@KINDS
def test_unusable_images_are_quarantined_with_their_reason(tmp_path: Path, kind: str) -> None:
    large = BytesIO()
    # 40,000 pixels, where the plan allows 10,000.
    image = Image.new("L", (200, 200))
    image.save(large, "PNG")
    broken = {
        "i1": b"",
        "i3": b"text",
        "i5": png(5)[:-30],
        "i7": large.getvalue(),
        "i8": png(2),
        "i22": png(4),
    }
    file = parquet_of(tmp_path / "a.parquet", range(25), **broken)
    plan = plan_of(file, kind=kind)
    store = write_store(plan, tmp_path / "store")

    quarantine = store.quarantine.set_index("id")
    assert quarantine["status"].to_dict() == {
        "i1": "empty",
        "i3": "unreadable",
        "i5": "truncated",
        "i7": "too many pixels",
        "i8": "duplicate of i2",
        "i22": "duplicate of i4",  # which is in another shard
    }
    assert store.quarantine_counts["duplicate"] == 2
    usable = set(range(25)) - {1, 3, 5, 7, 8, 22}
    assert contents(store) == expected(usable)


def test_too_many_unusable_images_stop_the_run_and_leave_the_store_as_it_was(
    tmp_path: Path,
) -> None:
    before = numbered_store(tmp_path, range(25))
    whole = contents(before)
    files = set(os.listdir(before.folder))

    # Twelve that are not images, and an empty one.
    broken = {f"i{number}": b"text" for number in range(45, 57)}
    file = parquet_of(tmp_path / "a.parquet", range(30, 60), **broken, i57=b"")
    message = (
        r"data_ingestion\.pool: 13 of 30 images cannot be used \(unreadable 12, empty 1; such as "
        r"'i45': unreadable\), more than the share 0\.4 .*Fix the images, or raise the limit; "
        r"nothing was written"
    )
    strict = plan_of(file, max_quarantined_share=0.4)
    with pytest.raises(InputError, match=message):
        write_store(strict, before.folder)
    files_after = set(os.listdir(before.folder))
    assert files_after == files
    after = ImageStore.open(before.folder)
    assert contents(after) == whole

    # 13 of 30 images are less than half.
    tolerant = plan_of(file, max_quarantined_share=0.5)
    store = write_store(tolerant, before.folder)
    assert len(store) == 17


def test_a_store_without_an_image_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    broken = {f"i{number}": b"text" for number in range(12)}
    file = parquet_of(tmp_path / "a.parquet", range(12), **broken)
    message = (
        r"data_ingestion\.pool: none of 12 images can be used \(unreadable 12; such as 'i0': "
        r"unreadable\), so that the store would be empty"
    )
    with pytest.raises(InputError, match=message):
        write_store(plan_of(file, max_quarantined_share=1.0), tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())

    # One is enough.
    del broken["i11"]
    file = parquet_of(tmp_path / "a.parquet", range(12), **broken)
    store = write_store(plan_of(file, max_quarantined_share=1.0), tmp_path / "store")
    assert len(store) == 1


@pytest.mark.parametrize(("n_paths", "limit"), [(3, 0.2), (6, 0.2), (6, 1.0)])
def test_how_to_embed_images_is_told_where_there_are_too_many_paths(
    n_paths: int, limit: float, tmp_path: Path
) -> None:
    structs: list[dict[str, Any]] = []
    for number in range(6):
        content = None if number < n_paths else png(number)
        structs.append({"bytes": content, "path": f"{number}.png"})
    file = tmp_path / "a.parquet"
    # What statistics show is refused before.
    pq.write_table(pa.table({"image": structs}), file, write_statistics=False)
    plan = plan_of(file, source={"labels": "ignore"}, max_quarantined_share=limit)
    with pytest.raises(InputError, match=r"not opened: embed the images .*embed_table_storage"):
        write_store(plan, tmp_path / "store")


def test_a_run_with_too_many_unusable_images_stops_before_its_end(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    broken = {f"i{number}": b"text" for number in range(10)}
    file = parquet_of(tmp_path / "a.parquet", range(40), **broken)
    plan = plan_of(file, max_quarantined_share=0.2)
    with pytest.raises(InputError, match="10 of 40 images cannot be used"):
        write_store(plan, tmp_path / "store")

    # Only the first shard: a mistake in the parameters is reported within minutes, not hours.
    assert n_decoded() == 10


def test_an_image_that_could_not_be_opened_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        image = images / f"i{number}.png"
        image.write_bytes(png(number))
    plan = plan_of(images, source={"type": "folder", "labels": "ignore"})
    original = Path.read_bytes

    def flaky(self: Path) -> bytes:
        if self.name == "i2.png":
            raise OSError("the network is away")
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", flaky)
        store = write_store(plan, tmp_path / "store")
    assert store.quarantine_counts == {"could not be opened": 1}

    # Other faults stay with the image, but a network comes back.
    again = write_store(plan, tmp_path / "store")
    assert len(again) == 4


@pytest.mark.parametrize(
    "draw",
    [{"per_class": 2}, {"limit": 6}, {"label_ranks": [0, 2]}],
    ids=lambda draw: next(iter(draw)),
)
def test_missing_files_of_a_list_are_compared_with_the_whole_list(
    tmp_path: Path, draw: dict[str, Any]
) -> None:
    lines = ["path,label"]
    for number in range(100):
        # Four of a hundred files are missing, and more than five percent of ten.
        if number >= 4:
            (tmp_path / f"{number}.png").write_bytes(png(number))
        lines.append(f"{number}.png,{number % 3}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    source = {"type": "list", **draw}
    plan = plan_of(tmp_path / "list.csv", source=source, max_quarantined_share=0.05)
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 6
    assert store.quarantine_counts == {"file not found": 4}

    strict = plan_of(tmp_path / "list.csv", source=source, max_quarantined_share=0.03)
    with pytest.raises(InputError, match="4 of 100 images cannot be used .file not found 4"):
        write_store(strict, tmp_path / "store")


def test_unreadable_images_of_a_draw_are_compared_with_the_draw(tmp_path: Path) -> None:
    lines = ["path,label"]
    for number in range(60):
        content = b"text" if number % 3 == 0 else png(number)
        (tmp_path / f"{number}.png").write_bytes(content)
        lines.append(f"{number}.png,{number % 3}")
    lines.append("gone.png,1")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    source = {"type": "list", "per_class": 1}
    plan = plan_of(tmp_path / "list.csv", source=source, max_quarantined_share=0.3)
    with pytest.raises(InputError, match="1 of 3 images cannot be used .unreadable 1"):
        write_store(plan, tmp_path / "store")
