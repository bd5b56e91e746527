"""Duplicates between stores: which are found, and that no manifest holds a copy of a test image."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images import duplicates
from pu_kd_pipeline.images.duplicates import (
    COLUMNS,
    STORES,
    Excluded,
    excluded_images,
    find_duplicates,
    near_copy_shards,
)
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Specification
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams, NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table
from tests.engines.works import engine_of

LIMITS = NearDuplicateParams(max_distance=0.1, max_ratio=0.12)
_DATA = load_digits()
# (N, 8, 8): scikit-learn's digits have values from 0 to 16.
DIGITS = (_DATA.images * (255 / 16)).round().astype(np.uint8)
CLASSES = _DATA.target  # (N,)
# The labeled images and the pool are also images that the teacher was trained on.
PARTS = {
    "test": range(300),
    "labeled": range(300, 330),
    "pool": range(330, 900),
    "teacher_training": range(300, 1200),
}


def encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    opened = Image.fromarray(image)
    opened.save(buffer, kind, **options)
    return buffer.getvalue()


def png(row: int) -> bytes:
    """Return a digit saved without loss."""
    return encoded(DIGITS[row], "PNG")


def jpeg(row: int) -> bytes:
    """Return a digit saved with loss."""
    return encoded(DIGITS[row], "JPEG", quality=85)


def store_of(
    name: str, files: dict[str, tuple[bytes, int]], folder: Path, kind: str = "packed"
) -> ImageStore:
    """Return the store of encoded images and their classes, by id."""
    folder.mkdir(parents=True)
    parquet = folder / "images.parquet"
    images, labels = zip(*files.values(), strict=True)
    columns = {"id": list(files), "image": images, "label": labels}
    pq.write_table(pa.table(columns), parquet)

    source = ImageSource(type="parquet", path=str(parquet), labels="classes", name=name)
    # Shards of 250, so that the pool has several.
    store = ImageStoreParams(
        kind=kind,
        packed_max_size_px=64,
        disk_budget_gb=1,
        shard_size=250,
        max_image_pixels=10**6,
        max_quarantined_share=0,
        n_workers=1,
    )
    plan = IngestionPlan(
        name=name,
        sources=(source,),
        size_px=8,
        channels=1,
        class_names=tuple("0123456789"),
        store=store,
        seed=0,
    )
    return write_store(plan, folder / "store")


def stores_of(
    folder: Path, kind: str = "packed", **planted: dict[str, tuple[bytes, int]]
) -> dict[str, ImageStore]:
    """Return the four stores, with further images planted in them."""
    stores = {}
    for name, rows in PARTS.items():
        files = {}
        for row in rows:
            label = int(CLASSES[row])
            files[str(row)] = (png(row), label)
        further = planted.get(name, {})
        files.update(further)
        stores[name] = store_of(name, files, folder / name, kind)
    return stores


# Copies of test images, by equal pixels (PNG) and by nearly equal ones (JPEG).
POOL = {
    **{f"copy-{row}": (jpeg(row), 0) for row in range(10, 20)},
    **{f"same-{row}": (png(row), 0) for row in range(5)},
}
LABELED = {
    "copied": (jpeg(30), int(CLASSES[30])),
    "taken": (png(31), int(CLASSES[31])),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageStore]:
    folder = tmp_path_factory.mktemp("stores")
    return stores_of(folder / "packed", pool=POOL, labeled=LABELED)


@pytest.fixture(scope="module")
def table(stores: dict[str, ImageStore]) -> pd.DataFrame:
    return find_duplicates(stores, LIMITS)


def found(table: pd.DataFrame, store: str, other: str, kind: str) -> dict[str, str]:
    """Return id -> id of the copies that two stores share."""
    rows = table.query("store == @store and other_store == @other and kind == @kind")
    other_ids = rows.set_index("id")["other_id"]
    return other_ids.to_dict()


PLANTED_IN_POOL = {
    "exact": {f"pool/same-{row}": f"test/{row}" for row in range(5)},
    "near": {f"pool/copy-{row}": f"test/{row}" for row in range(10, 20)},
}
PLANTED_IN_LABELED = {
    "exact": {"labeled/taken": "test/31"},
    "near": {"labeled/copied": "test/30"},
}


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_planted_copies_are_found_and_nothing_else(table, kind):
    in_pool = found(table, "pool", "test", kind)
    assert in_pool == PLANTED_IN_POOL[kind]
    in_labeled = found(table, "labeled", "test", kind)
    assert in_labeled == PLANTED_IN_LABELED[kind]
    in_teacher_training = found(table, "teacher_training", "test", kind)
    assert in_teacher_training == {}


def test_images_that_the_teacher_was_trained_on_are_found(table):
    # All labeled and nearly all pool images are also the teacher's.
    in_labeled = found(table, "teacher_training", "labeled", "exact")
    assert len(in_labeled) == 30
    in_pool = found(table, "teacher_training", "pool", "exact")
    assert len(in_pool) == 570


def test_the_distance_of_exact_copies_is_zero_and_that_of_near_ones_within_the_limit(table):
    exact = table.query("kind == 'exact'")
    assert (exact["distance"] == 0).all()

    near = table.query("kind == 'near'")
    is_within_limit = near["distance"].between(0, LIMITS.max_distance)
    assert is_within_limit.all()


def test_the_table_records_what_was_compared_and_the_number_of_copies(table, stores, tmp_path):
    file = tmp_path / "duplicates.parquet"
    write_table(table, file)
    again = read_table(file)
    assert again.columns.tolist() == COLUMNS
    pd.testing.assert_frame_equal(again, table)

    # A report must be able to state the limits and how many copies they gave.
    assert again.attrs["near_duplicates"] == {"max_distance": 0.1, "max_ratio": 0.12}
    counts = again.attrs["counts"]
    assert counts["pool and test"] == {"exact": 5, "near": 10}
    # Near copies are not searched for between two large stores.
    assert counts["teacher_training and pool"] == {"exact": 570, "near": None}
    fingerprints = again.attrs["fingerprints"]
    assert fingerprints["test_images"] == stores["test"].fingerprint


def test_without_limits_only_equal_pixels_are_found(stores):
    table = find_duplicates(stores, None)
    kinds = set(table["kind"])
    assert kinds == {"exact"}
    # None, not 0: near copies were not searched for.
    counts = table.attrs["counts"]
    assert counts["pool and test"] == {"exact": 5, "near": None}


def test_shards_batches_and_the_kind_of_store_change_nothing(table, stores, monkeypatch, tmp_path):
    pool = stores["pool"]
    assert len(pool.shards) == 3

    # Batches that are aligned with neither shards nor stores.
    monkeypatch.setattr(duplicates, "_VALUES_AT_A_TIME", 64 * 37)
    encoded = stores_of(tmp_path / "encoded", "encoded", pool=POOL, labeled=LABELED)
    again = find_duplicates(encoded, LIMITS)

    columns = ["id", "store", "kind", "other_id"]
    expected = table[columns]
    pd.testing.assert_frame_equal(again[columns], expected)
    # Matrix products round differently in batches of another size.
    np.testing.assert_allclose(again["distance"], table["distance"], atol=1e-5)


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_near_copies_are_the_same_whoever_finds_them(kind, table, stores, tmp_path):
    makers = near_copy_shards(stores, LIMITS).on(engine_of(kind))
    # One per shard of the later stores.
    n_shards = sum(len(stores[name].shards) for name in STORES[1:])
    assert len(makers) == n_shards
    written = ShardedTable.write(tmp_path, makers)
    assert written.names == tuple(makers)
    for name in written.names:
        assert written.shard(name).equals(makers[name]())
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    pd.testing.assert_frame_equal(find_duplicates(stores, LIMITS, written), table)

    # Nothing is searched again that was found.
    lost = tmp_path / f"{written.names[0]}.parquet"
    lost.unlink()
    ShardedTable.write(tmp_path, near_copy_shards(stores, LIMITS).on(engine_of(kind)))
    again = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    assert {file for file in times if again[file] != times[file]} == {lost}


def test_near_copies_of_other_images_or_limits_are_refused(stores, tmp_path):
    written = ShardedTable.write(tmp_path, near_copy_shards(stores, LIMITS))
    looser = LIMITS.model_copy(update={"max_ratio": 0.2})
    with pytest.raises(InputError, match="near_copies: the images, the limits or the code changed"):
        find_duplicates(stores, looser, written)
    swapped = {**stores, "pool": stores["teacher_training"]}
    with pytest.raises(InputError, match="near_copies: the images, the limits or the code changed"):
        find_duplicates(swapped, LIMITS, written)


def test_without_limits_there_are_no_near_copies_to_find(stores, tmp_path):
    written = ShardedTable.write(tmp_path, near_copy_shards(stores, None).on(engine_of("ray")))
    assert written.names == ()
    assert set(find_duplicates(stores, None, written)["kind"]) == {"exact"}


def test_copies_of_test_images_are_logged(stores, caplog):
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        find_duplicates(stores, LIMITS)
    assert "15 of 585 pool images are copies of test images (5 exact, 10 near)" in caplog.text
    assert "2 of 32 labeled images are copies of test images (1 exact, 1 near)" in caplog.text


def test_stores_of_different_shapes_are_refused(stores, tmp_path):
    in_color = Specification("packed", channels=3, size_px=8, max_image_pixels=10, maker="")
    other = ImageStore(tmp_path, in_color, (), {})
    message = "images of different forms: run `kedro run --pipeline=data_ingestion`"
    with pytest.raises(InputError, match=message):
        find_duplicates({**stores, "pool": other}, LIMITS)


def test_empty_stores_share_nothing(stores):
    empty = ImageStore(stores["pool"].folder, stores["pool"].specification, (), {})
    with_empty = {"test": stores["test"]}
    for name in ("labeled", "pool", "teacher_training"):
        with_empty[name] = empty

    table = find_duplicates(with_empty, LIMITS)
    assert table.empty
    # Its readers select columns, which must exist even so.
    assert table.columns.tolist() == COLUMNS


# --- what students learn from


def subset(**changes: Any) -> SubsetParams:
    given = {"seed": 0, "rule": "all", "criterion": "sign", "budget": None, "target_precision": 0.9}
    return SubsetParams.model_validate({**given, **changes})


def inputs_of(stores: dict[str, ImageStore], excluded: Excluded, folder: Path) -> SubsetInputs:
    """Return what a subset is chosen from; the scores of the pool are random."""
    labeled = stores["labeled"]
    pool = stores["pool"]
    rng = np.random.default_rng(0)
    n = len(pool)
    pu_scores = rng.normal(size=n)
    confidences = rng.uniform(size=n)
    columns = {
        "id": pa.array(pool.index["id"], pa.string()),
        "pu_score": pu_scores,
        "teacher_class": np.zeros(n, dtype=np.int32),
        "teacher_confidence": confidences.astype(np.float32),
        "teacher_log_odds": np.log(confidences / (1 - confidences)),
    }
    table = pa.table(columns)
    scores = ShardedTable.write(folder, {"one": lambda: table})

    prior = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    held_out_ranks = pd.DataFrame({"rank": []})
    return SubsetInputs(scores, labeled, pool, prior, held_out_ranks, excluded=excluded)


RULES = [
    {"rule": "all"},
    {"rule": "random", "budget": 560},
    {"rule": "confident", "budget": 560},
    {"rule": "stratified", "budget": 560},
    {"rule": "oracle"},
    {"rule": "nnpu", "criterion": "budget", "budget": 560},
    {"rule": "nnpu", "criterion": "sign"},
]


def assert_without_copies(manifest: pd.DataFrame) -> None:
    """Check that no planted copy is in a manifest, and that its counts are right."""
    for image_id in manifest["id"]:
        _, _, name = image_id.partition("/")
        assert name not in POOL
        assert name not in LABELED

    n_by_origin = manifest["origin"].value_counts()
    assert n_by_origin["labeled"] == 30
    facts = manifest.attrs
    assert facts["n_labeled"] == 30
    assert facts["n_selected"] == n_by_origin["pool"]
    assert facts["n_excluded_pool"] == 15
    assert facts["n_excluded_labeled"] == 2


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_rule_selects_a_copy_of_a_test_image(rule, stores, table, tmp_path):
    params = subset(**rule)
    excluded = excluded_images(table, params)
    inputs = inputs_of(stores, excluded, tmp_path)
    manifest = choose_subset(inputs, params)
    assert_without_copies(manifest)

    # The random subset is the control that a manifest is compared with.
    random_subset = choose_random_subset(inputs, manifest, params)
    assert_without_copies(random_subset)
    assert random_subset.attrs["n_selected"] == manifest.attrs["n_selected"]


def test_copies_may_be_kept_on_purpose(stores, table, tmp_path):
    params = subset(exclude_test_duplicates=False)
    excluded = excluded_images(table, params)
    inputs = inputs_of(stores, excluded, tmp_path)
    manifest = choose_subset(inputs, params)

    n_pool = 585
    n_labeled = 32
    assert len(manifest) == n_pool + n_labeled
    assert manifest.attrs["n_excluded_pool"] == 0
    assert manifest.attrs["n_excluded_labeled"] == 0


def test_excluding_unknown_images_does_not_change_the_selection(stores, tmp_path):
    params = subset(rule="random", budget=100)
    nothing = Excluded()
    inputs = inputs_of(stores, nothing, tmp_path / "nothing")
    expected = choose_subset(inputs, params)

    # The random draws must be those of a run without any exclusion.
    unknown = Excluded(pool=frozenset({"elsewhere"}))
    inputs = inputs_of(stores, unknown, tmp_path / "unknown")
    manifest = choose_subset(inputs, params)
    pd.testing.assert_frame_equal(manifest, expected)


def test_a_class_whose_labeled_images_are_all_copies_is_refused(stores, tmp_path):
    index = stores["labeled"].index
    is_three = index["label"] == 3
    excluded = Excluded(labeled=frozenset(index["id"][is_three]))
    inputs = inputs_of(stores, excluded, tmp_path)

    # A student cannot learn a class of which it has no example.
    params = subset()
    message = "every labeled image of class 3 is a copy of a test image"
    with pytest.raises(InputError, match=message):
        choose_subset(inputs, params)
