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
from pu_kd_pipeline.images.duplicates import COLUMNS, Excluded, excluded_images, find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Specification
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams, NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table

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


def png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    """Return the image saved with loss."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def store_of(
    name: str, files: dict[str, tuple[bytes, int]], folder: Path, kind: str = "packed"
) -> ImageStore:
    """Return the store of encoded images and their classes, by id."""
    folder.mkdir(parents=True)
    parquet = folder / "images.parquet"
    images, labels = zip(*files.values(), strict=True)
    pq.write_table(pa.table({"id": list(files), "image": images, "label": labels}), parquet)
    plan = IngestionPlan(
        name=name,
        sources=(ImageSource(type="parquet", path=str(parquet), labels="classes", name=name),),
        size_px=8,
        channels=1,
        class_names=tuple("0123456789"),
        store=ImageStoreParams(
            kind=kind,
            packed_max_size_px=64,
            disk_budget_gb=1,
            shard_size=250,
            max_image_pixels=10**6,
            max_quarantined_share=0,
            n_workers=1,
        ),
        seed=0,
    )
    return write_store(plan, folder / "store")


def stores_of(
    folder: Path, kind: str = "packed", **planted: dict[str, tuple[bytes, int]]
) -> dict[str, ImageStore]:
    """Return the four stores, with further images planted in them."""
    stores = {}
    for name, rows in PARTS.items():
        files = {f"{row}": (png(DIGITS[row]), int(CLASSES[row])) for row in rows}
        files.update(planted.get(name, {}))
        stores[name] = store_of(name, files, folder / name, kind)
    return stores


# Copies of test images, by equal pixels (PNG) and by nearly equal ones (JPEG).
POOL = {
    **{f"copy-{row}": (jpeg(DIGITS[row]), 0) for row in range(10, 20)},
    **{f"same-{row}": (png(DIGITS[row]), 0) for row in range(5)},
}
LABELED = {
    "copied": (jpeg(DIGITS[30]), int(CLASSES[30])),
    "taken": (png(DIGITS[31]), int(CLASSES[31])),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageStore]:
    return stores_of(tmp_path_factory.mktemp("stores") / "packed", pool=POOL, labeled=LABELED)


@pytest.fixture(scope="module")
def table(stores: dict[str, ImageStore]) -> pd.DataFrame:
    return find_duplicates(stores, LIMITS)


def found(table: pd.DataFrame, store: str, other: str, kind: str) -> dict[str, str]:
    is_pair = (table["store"] == store) & (table["other_store"] == other)
    rows = table[is_pair & (table["kind"] == kind)]
    return dict(zip(rows["id"], rows["other_id"], strict=True))


def test_planted_copies_are_found_and_nothing_else(table):
    assert table.columns.tolist() == COLUMNS

    same = {f"pool/same-{row}": f"test/{row}" for row in range(5)}
    assert found(table, "pool", "test", "exact") == same
    copied = {f"pool/copy-{row}": f"test/{row}" for row in range(10, 20)}
    assert found(table, "pool", "test", "near") == copied

    assert found(table, "labeled", "test", "exact") == {"labeled/taken": "test/31"}
    assert found(table, "labeled", "test", "near") == {"labeled/copied": "test/30"}
    assert not found(table, "teacher_training", "test", "exact")
    assert not found(table, "teacher_training", "test", "near")

    # All labeled and nearly all pool images are also the teacher's.
    assert len(found(table, "teacher_training", "labeled", "exact")) == 30
    assert len(found(table, "teacher_training", "pool", "exact")) == 570


def test_the_distance_of_exact_copies_is_zero_and_that_of_near_ones_within_the_limit(table):
    distances = table["distance"]
    is_exact = table["kind"] == "exact"
    assert (distances[is_exact] == 0).all()
    assert distances[~is_exact].between(0, LIMITS.max_distance).all()


def test_the_table_records_what_was_compared_and_the_number_of_copies(table, stores, tmp_path):
    write_table(table, tmp_path / "duplicates.parquet")
    again = read_table(tmp_path / "duplicates.parquet")
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["near_duplicates"] == {"max_distance": 0.1, "max_ratio": 0.12}
    counts = again.attrs["counts"]
    assert counts["pool and test"] == {"exact": 5, "near": 10}
    # Near copies are not searched for between two large stores.
    assert counts["teacher_training and pool"] == {"exact": 570, "near": None}
    assert again.attrs["fingerprints"]["test_images"] == stores["test"].fingerprint


def test_without_limits_only_equal_pixels_are_found(stores):
    table = find_duplicates(stores, None)
    assert set(table["kind"]) == {"exact"}
    assert table.attrs["counts"]["pool and test"] == {"exact": 5, "near": None}


def test_shards_batches_and_the_kind_of_store_change_nothing(table, stores, monkeypatch, tmp_path):
    # Batches that are aligned with neither shards nor stores.
    assert len(stores["pool"].shards) == 3
    monkeypatch.setattr(duplicates, "_VALUES_AT_A_TIME", 64 * 37)
    encoded = stores_of(tmp_path / "encoded", "encoded", pool=POOL, labeled=LABELED)
    again = find_duplicates(encoded, LIMITS)
    columns = ["id", "store", "kind", "other_id"]
    pd.testing.assert_frame_equal(again[columns], table[columns])
    np.testing.assert_allclose(again["distance"], table["distance"], atol=1e-5)


def test_copies_of_test_images_are_logged(stores, caplog):
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        find_duplicates(stores, LIMITS)
    assert "15 of 585 pool images are copies of test images (5 exact, 10 near)" in caplog.text
    assert "2 of 32 labeled images are copies of test images (1 exact, 1 near)" in caplog.text


def test_stores_of_different_shapes_are_refused(stores, tmp_path):
    in_color = Specification("packed", channels=3, size_px=8, max_image_pixels=10)
    other = ImageStore(tmp_path, in_color, (), {})
    message = "images of different forms: run `kedro run --pipeline=data_ingestion`"
    with pytest.raises(InputError, match=message):
        find_duplicates({**stores, "pool": other}, LIMITS)


def test_empty_stores_share_nothing(stores):
    empty = ImageStore(stores["pool"].folder, stores["pool"].specification, (), {})
    table = find_duplicates(
        {**stores, "labeled": empty, "pool": empty, "teacher_training": empty}, LIMITS
    )
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 0


# --- what students learn from


def subset(**changes: Any) -> SubsetParams:
    given = {"seed": 0, "rule": "all", "criterion": "sign", "budget": None, "target_precision": 0.9}
    return SubsetParams.model_validate({**given, **changes})


def inputs_of(stores: dict[str, ImageStore], excluded: Excluded, folder: Path) -> SubsetInputs:
    rng = np.random.default_rng(0)
    ids = pa.array(stores["pool"].index["id"], pa.string())
    scores = pa.table(
        {
            "id": ids,
            "pu_score": rng.normal(size=len(ids)),
            "teacher_class": np.zeros(len(ids), dtype=np.int32),
            "teacher_confidence": rng.uniform(size=len(ids)).astype(np.float32),
        }
    )
    prior = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    held_out_ranks = pd.DataFrame({"rank": []})
    return SubsetInputs(
        ShardedTable.write(folder, {"one": lambda: scores}),
        stores["labeled"],
        stores["pool"],
        prior,
        held_out_ranks,
        excluded=excluded,
    )


RULES = [
    {"rule": "all"},
    {"rule": "random", "budget": 560},
    {"rule": "confident", "budget": 560},
    {"rule": "stratified", "budget": 560},
    {"rule": "oracle"},
    {"rule": "nnpu", "criterion": "budget", "budget": 560},
    {"rule": "nnpu", "criterion": "sign"},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_rule_selects_a_copy_of_a_test_image(rule, stores, table, tmp_path):
    params = subset(**rule)
    inputs = inputs_of(stores, excluded_images(table, params), tmp_path)
    manifest = choose_subset(inputs, params)
    # The random subset is the control that a manifest is compared with.
    random_subset = choose_random_subset(inputs, manifest, params)
    copies = {*POOL, *LABELED}
    for chosen in (manifest, random_subset):
        names = chosen["id"].str.partition("/")[2]
        assert not copies & set(names)

        n_by_origin = chosen["origin"].value_counts()
        assert n_by_origin["labeled"] == chosen.attrs["n_labeled"] == 30
        assert n_by_origin["pool"] == chosen.attrs["n_selected"] == manifest.attrs["n_selected"]
        assert chosen.attrs["n_excluded_pool"] == 15
        assert chosen.attrs["n_excluded_labeled"] == 2


def test_copies_may_be_kept_on_purpose(stores, table, tmp_path):
    params = subset(exclude_test_duplicates=False)
    inputs = inputs_of(stores, excluded_images(table, params), tmp_path)
    manifest = choose_subset(inputs, params)
    assert len(manifest) == 585 + 32
    assert manifest.attrs["n_excluded_pool"] == manifest.attrs["n_excluded_labeled"] == 0


def test_excluding_unknown_images_does_not_change_the_selection(stores, tmp_path):
    params = subset(rule="random", budget=100)
    nothing = inputs_of(stores, Excluded(), tmp_path / "nothing")
    unknown = inputs_of(stores, Excluded(pool=frozenset({"elsewhere"})), tmp_path / "unknown")
    pd.testing.assert_frame_equal(choose_subset(nothing, params), choose_subset(unknown, params))


def test_a_class_whose_labeled_images_are_all_copies_is_refused(stores, tmp_path):
    index = stores["labeled"].index
    ids_of_three = index["id"][index["label"] == 3]
    inputs = inputs_of(stores, Excluded(labeled=frozenset(ids_of_three)), tmp_path)
    message = "every labeled image of class 3 is a copy of a test image"
    with pytest.raises(InputError, match=message):
        choose_subset(inputs, subset())
