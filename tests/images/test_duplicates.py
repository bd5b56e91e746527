"""Duplicates between stores: what the table says, and that no manifest holds a copy of a test image."""

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
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams, NearDuplicateParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table

LIMITS = NearDuplicateParams(max_distance=0.1, max_ratio=0.12)
DIGITS, CLASSES = (lambda data: ((data.images * (255 / 16)).round().astype(np.uint8), data.target))(
    load_digits()
)  # (N, 8, 8) and (N,)
PARTS = {
    "test": range(300),
    "labeled": range(300, 330),
    "pool": range(330, 900),
    "teacher_training": range(300, 1200),
}


def png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    """Return the image saved with loss."""
    Image.fromarray(image).save(buffer := BytesIO(), "JPEG", quality=85)
    return buffer.getvalue()


def store_of(
    name: str, files: dict[str, tuple[bytes, int]], folder: Path, kind: str = "packed"
) -> ImageStore:
    """Return the store of encoded images and their classes, by id."""
    folder.mkdir(parents=True)
    rows = {
        "id": list(files),
        "image": [file for file, _ in files.values()],
        "label": [c for _, c in files.values()],
    }
    pq.write_table(pa.table(rows), folder / "images.parquet")
    how = {
        "packed_max_size_px": 64,
        "disk_budget_gb": 1,
        "max_image_pixels": 10**6,
        "max_quarantined_share": 0,
    }
    params = ImageStoreParams.model_validate(
        {"kind": kind, "shard_size": 250, "n_workers": 1, **how}
    )
    source = ImageSource(
        type="parquet", path=str(folder / "images.parquet"), labels="classes", name=name
    )
    names = tuple(str(digit) for digit in range(10))
    return write_store(IngestionPlan(name, (source,), 8, 1, names, params, 0), folder / "store")


def stores_of(
    folder: Path, kind: str = "packed", **planted: dict[str, tuple[bytes, int]]
) -> dict[str, ImageStore]:
    """Return the four stores, with further images planted in them."""
    stores = {}
    for name, rows in PARTS.items():
        own = {f"{row}": (png(DIGITS[row]), int(CLASSES[row])) for row in rows}
        stores[name] = store_of(name, own | planted.get(name, {}), folder / name, kind)
    return stores


POOL = {f"copy-{row}": (jpeg(DIGITS[row]), 0) for row in range(10, 20)}
POOL |= {f"same-{row}": (png(DIGITS[row]), 0) for row in range(5)}
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
    rows = table[
        (table["store"] == store) & (table["other_store"] == other) & (table["kind"] == kind)
    ]
    return dict(zip(rows["id"], rows["other_id"], strict=True))


def test_planted_copies_are_found_and_nothing_else(table):
    assert table.columns.tolist() == COLUMNS
    assert found(table, "pool", "test", "exact") == {
        f"pool/same-{row}": f"test/{row}" for row in range(5)
    }
    assert found(table, "pool", "test", "near") == {
        f"pool/copy-{row}": f"test/{row}" for row in range(10, 20)
    }
    assert found(table, "labeled", "test", "exact") == {"labeled/taken": "test/31"}
    assert found(table, "labeled", "test", "near") == {"labeled/copied": "test/30"}
    assert not found(table, "teacher_training", "test", "exact")
    assert not found(table, "teacher_training", "test", "near")
    # the labeled images and the pool come from the teacher's own here
    assert len(found(table, "teacher_training", "labeled", "exact")) == 30
    assert len(found(table, "teacher_training", "pool", "exact")) == 570
    assert (table["distance"][table["kind"] == "exact"] == 0).all()
    assert table["distance"][table["kind"] == "near"].between(0, 0.1).all()


def test_the_table_says_what_was_compared_and_how_many_there_are(table, stores, tmp_path):
    write_table(table, tmp_path / "duplicates.parquet")
    again = read_table(tmp_path / "duplicates.parquet")
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["near_duplicates"] == {"max_distance": 0.1, "max_ratio": 0.12}
    assert again.attrs["counts"]["pool and test"] == {"exact": 5, "near": 10}
    assert again.attrs["counts"]["teacher_training and pool"] == {"exact": 570, "near": None}
    assert again.attrs["fingerprints"]["test_images"] == stores["test"].fingerprint


def test_without_limits_equal_pixels_alone_are_found(stores):
    table = find_duplicates(stores, None)
    assert set(table["kind"]) == {"exact"}
    assert table.attrs["counts"]["pool and test"] == {"exact": 5, "near": None}


def test_shards_batches_and_the_kind_of_store_change_nothing(table, stores, monkeypatch, tmp_path):
    assert len(stores["pool"].shards) == 3
    monkeypatch.setattr(duplicates, "_VALUES_AT_A_TIME", 64 * 37)
    encoded = stores_of(tmp_path / "encoded", "encoded", pool=POOL, labeled=LABELED)
    again = find_duplicates(encoded, LIMITS)
    columns = ["id", "store", "kind", "other_id"]
    pd.testing.assert_frame_equal(again[columns], table[columns])
    np.testing.assert_allclose(again["distance"], table["distance"], atol=1e-5)


def test_copies_of_test_images_are_told_in_the_log(stores, caplog):
    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        find_duplicates(stores, LIMITS)
    assert "15 of 585 pool images are copies of test images (5 exact, 10 near)" in caplog.text
    assert "2 of 32 labeled images are copies of test images (1 exact, 1 near)" in caplog.text


def test_stores_of_different_forms_are_refused(stores, tmp_path):
    small = store_of("test", {"one": (png(DIGITS[0]), 0)}, tmp_path / "small")
    other = ImageStore(small.folder, small.specification.__class__("packed", 3, 8, 10), (), {})
    with pytest.raises(
        InputError, match="images of different forms: run `kedro run --pipeline=data_ingestion`"
    ):
        find_duplicates({**stores, "pool": other}, LIMITS)


def test_empty_stores_share_nothing(stores):
    empty = ImageStore(stores["pool"].folder, stores["pool"].specification, (), {})
    table = find_duplicates(
        {**stores, "labeled": empty, "pool": empty, "teacher_training": empty}, LIMITS
    )
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 0


# --- what students learn from -----------------------------------------------------------------------------------------


def subset(**changes: Any) -> SubsetParams:
    given = {"seed": 0, "rule": "all", "criterion": "sign", "budget": None, "target_precision": 0.9}
    return SubsetParams.model_validate({**given, **changes})


def inputs_of(stores: dict[str, ImageStore], excluded: Excluded, folder: Path) -> SubsetInputs:
    rng, ids = np.random.default_rng(0), pa.array(stores["pool"].index["id"], pa.string())
    scores = {
        "pu_score": rng.normal(size=len(ids)),
        "teacher_class": np.zeros(len(ids), dtype=np.int32),
    }
    scores |= {"teacher_confidence": rng.uniform(size=len(ids)).astype(np.float32)}
    table = ShardedTable.write(folder, {"one": lambda: pa.table({"id": ids, **scores})})
    prior = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    return SubsetInputs(
        table,
        stores["labeled"],
        stores["pool"],
        prior,
        pd.DataFrame({"rank": []}),
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
    copies = {*POOL, *LABELED}
    for chosen in (manifest, choose_random_subset(inputs, manifest, params)):
        assert not copies & set(chosen["id"].str.partition("/")[2])
        assert (chosen["origin"] == "labeled").sum() == chosen.attrs["n_labeled"] == 30
        assert (chosen.attrs["n_excluded_pool"], chosen.attrs["n_excluded_labeled"]) == (15, 2)
        assert (
            (chosen["origin"] == "pool").sum()
            == chosen.attrs["n_selected"]
            == manifest.attrs["n_selected"]
        )


def test_copies_may_be_kept_on_purpose(stores, table, tmp_path):
    params = subset(exclude_test_duplicates=False)
    manifest = choose_subset(inputs_of(stores, excluded_images(table, params), tmp_path), params)
    assert len(manifest) == 585 + 32
    assert manifest.attrs["n_excluded_pool"] == manifest.attrs["n_excluded_labeled"] == 0


def test_an_exclusion_of_nothing_leaves_the_selection_as_it_was(stores, tmp_path):
    params = subset(rule="random", budget=100)
    empty = Excluded(frozenset(), frozenset({"elsewhere"}))
    one, other = (
        choose_subset(inputs_of(stores, excluded, tmp_path / name), params)
        for name, excluded in (("one", Excluded()), ("other", empty))
    )
    pd.testing.assert_frame_equal(one, other, check_like=False)


def test_a_class_whose_labeled_images_are_all_copies_is_refused(stores, tmp_path):
    index = stores["labeled"].index
    of_three = Excluded(labeled=frozenset(index["id"][index["label"] == 3]))
    with pytest.raises(
        InputError, match=r"every labeled image of class 3 is a copy of a test image"
    ):
        choose_subset(inputs_of(stores, of_three, tmp_path), subset())
