"""Several sources in one store: ids, shares, draws per class, and sources that cannot be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from tests.images.numbered_images import parquet_of, plan_of, png, shard_ids


@pytest.fixture
def overlapping(tmp_path: Path) -> IngestionPlan:
    """A plan of two sources, in both of which image 2 occurs under the same id."""
    first = parquet_of(tmp_path / "a.parquet", [1, 2])
    second = parquet_of(tmp_path / "b.parquet", [2, 3])
    return plan_of(first, second)


def test_sources_with_equal_ids_need_names(tmp_path: Path, overlapping: IngestionPlan) -> None:
    message = r"1 ids occur more than once, such as 'i2'\. Give each source a `name`"
    with pytest.raises(InputError, match=message):
        write_store(overlapping, tmp_path / "store")


def test_names_of_sources_become_part_of_their_ids(
    tmp_path: Path, overlapping: IngestionPlan
) -> None:
    sources = []
    for source, name in zip(overlapping.sources, "ab", strict=True):
        named_source = source.model_copy(update={"name": name})
        sources.append(named_source)
    named = dataclasses.replace(overlapping, sources=tuple(sources))
    store = write_store(named, tmp_path / "store")

    # The two images of number 2 now have ids of their own; only one of them is stored.

    assert shard_ids(store) == ["a/i1", "a/i2", "b/i3"]
    faults = store.quarantine["status"].tolist()
    assert faults == ["duplicate of a/i2"]


def test_shares_of_one_source_never_overlap(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(40))

    def ids_in(start: float, end: float) -> set[str]:
        folder = tmp_path / f"from_{start}"
        plan = plan_of(file, source={"share": (start, end)})
        store = write_store(plan, folder)
        return set(shard_ids(store))

    labeled = ids_in(0.0, 0.3)
    pool = ids_in(0.3, 1.0)
    # A pool that holds the labeled images would make semi-supervised results look too good.
    assert labeled.isdisjoint(pool)
    all_ids = labeled | pool
    assert len(all_ids) == 40


def test_per_class_images_are_drawn_by_the_seed(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(30))
    plan = plan_of(file, source={"per_class": 2})
    store = write_store(plan, tmp_path / "store")

    n_by_label = store.index["label"].value_counts()
    assert n_by_label.to_dict() == {0: 2, 1: 2, 2: 2}

    # Otherwise all repetitions of an experiment would have the same labeled images.
    plan_with_other_seed = dataclasses.replace(plan, seed=1)
    other = write_store(plan_with_other_seed, tmp_path / "other")
    assert set(shard_ids(other)) != set(shard_ids(store))


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    # The label of an image is its number modulo 3.
    file = parquet_of(tmp_path / "a.parquet", [0, 2, 3])
    plan = plan_of(file, source={"per_class": 2})

    with pytest.raises(InputError, match=r"there are none of class 1 \(dog\)"):
        write_store(plan, tmp_path / "store")


def test_a_remote_source_that_fails_is_reported_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.isdir", fail)
    plan = plan_of("memory://secret", source={"type": "folder", "labels": "ignore"})
    message = r"memory://secret cannot be read \(PermissionError: access denied\): check the"
    with pytest.raises(InputError, match=message):
        write_store(plan, tmp_path)


def test_an_id_with_two_labels_is_refused_as_such(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    images = [png(0), png(1), png(2)]
    pq.write_table(pa.table({"id": ["a", "b", "a"], "image": images, "label": [0, 1, 2]}), file)
    message = r"1 ids occur more than once \(with different labels in 1 of them\), such as 'a'"
    with pytest.raises(InputError, match=message):
        write_store(plan_of(file), tmp_path / "store")


def test_a_label_is_the_same_class_in_every_share(tmp_path: Path) -> None:
    # Whether "CAT" is the class "cat" depends on whether "Cat" is there, too: in any share.
    file = tmp_path / "a.parquet"
    images = [png(number) for number in range(20)]
    names = ["cat"] * 18 + ["Cat", "CAT"]
    pq.write_table(pa.table({"image": images, "label": names}), file)
    for start in (0.0, 0.5):
        plan = plan_of(file, source={"share": (start, start + 0.5)})
        with pytest.raises(InputError, match="the label 'CAT' is not spelled like a class"):
            write_store(plan, tmp_path / "store")
