"""The stage `data_ingestion`: its plans, its stores, its report and its pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.pipelines.data_ingestion import create_pipeline, nodes
from pu_kd_pipeline.storage.sharded_table import InMemoryTable

PLANS = {
    "labeled_images": nodes.plan_labeled_images,
    "pool_images": nodes.plan_pool_images,
    "test_images": nodes.plan_test_images,
    "teacher_training_images": nodes.plan_teacher_training_images,
}
DIGITS = [str(digit) for digit in range(10)]
PROJECT = Path(__file__).parents[2]
SHIPPED_PARAMETERS = PROJECT / "conf" / "base" / "parameters_data_ingestion.yml"


def parameters(**changes: Any) -> DataIngestionParams:
    """The block as conf/base ships it."""
    text = SHIPPED_PARAMETERS.read_text()
    block = yaml.safe_load(text)["data_ingestion"]
    return DataIngestionParams.model_validate({**block, "seed": 0, **changes})


def teacher(**changes: Any) -> TeacherParams:
    block = {
        "architecture": "digits_cnn",
        "architecture_options": {},
        "weights": None,
        "classes": DIGITS,
        "input": {"size_px": 8, "channels": 1, "mean": [0.3], "std": [0.4]},
        "taps": None,
    }
    return TeacherParams.model_validate({**block, **changes})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageStore]:
    folder = tmp_path_factory.mktemp("stores")
    stores = {}
    for name, make_plan in PLANS.items():
        plan = make_plan(parameters(), teacher())
        stores[name] = write_store(plan, folder / name)
    return stores


def write_pool(folder: Path, **changes: Any) -> ImageStore:
    """Ingest the pool with changed parameters."""
    plan = nodes.plan_pool_images(parameters(**changes), teacher())
    return write_store(plan, folder)


def test_the_demo_fills_four_stores(stores: dict[str, ImageStore]) -> None:
    n_images = {name: len(store) for name, store in stores.items()}
    assert n_images == {
        "labeled_images": 100,
        "pool_images": 3050,
        "test_images": 500,
        "teacher_training_images": 497,
    }


@pytest.mark.parametrize("name", PLANS)
def test_the_stores_have_the_teachers_input(stores: dict[str, ImageStore], name: str) -> None:
    store = stores[name]
    assert store.kind == "packed"
    assert store.image_shape == (1, 8, 8)


def test_the_truth_of_the_pool_is_in_the_index(stores: dict[str, ImageStore]) -> None:
    pool = stores["pool_images"]
    is_relevant = pool.index["relevant"]
    is_digit = pool.index["id"].str.startswith("digits/")

    assert is_relevant.mean() == pytest.approx(250 / 3050)
    assert (is_relevant == is_digit).all()
    assert not pool.quarantine_counts


def test_the_same_seed_makes_the_same_store(stores: dict[str, ImageStore], tmp_path: Path) -> None:
    first = stores["pool_images"]
    again = write_pool(tmp_path / "again")
    other = write_pool(tmp_path / "other", seed=1)

    assert again.fingerprint == first.fingerprint
    assert other.fingerprint != first.fingerprint


def test_stores_are_planned_with_the_resize_of_the_teachers_input(tmp_path: Path) -> None:
    spec = {"size_px": 7, "channels": 1, "mean": [0.3], "std": [0.4]}
    spec.update(resize="crop", interpolation="bicubic")
    plan = nodes.plan_test_images(parameters(), teacher(input=spec))
    store = write_store(plan, tmp_path / "store")
    assert store.specification.shorter_side_px == 8
    assert store.specification.interpolation == "bicubic"


def report_of(stores: dict[str, ImageStore]) -> dict[str, Any]:
    """Return the report of the stage, whose first node searches for duplicates."""
    makers = nodes.search_near_copies(**stores, params=parameters(), engine=LOCAL)
    tables = {name: make() for name, make in makers.items()}
    near_copies = InMemoryTable.of_shards(tables)
    duplicates = nodes.search_duplicates(**stores, near_copies=near_copies, params=parameters())
    labeled = stores["labeled_images"]
    pool = stores["pool_images"]
    test = stores["test_images"]
    return nodes.report_ingestion(labeled, pool, test, duplicates)


def test_the_report_counts_images_by_source_and_class(stores: dict[str, ImageStore]) -> None:
    report = report_of(stores)
    pool = report["pool_images"]

    # The catalog stores it as JSON, which would make texts of numbers as keys.
    as_stored = json.loads(json.dumps(report))
    assert as_stored == report
    assert report["test_images"]["n_images"] == 500
    assert report["test_images"]["shorter_side_px"] is None
    assert report["test_images"]["interpolation"] == "bilinear"
    assert report["labeled_images"]["n_per_class"] == dict.fromkeys(DIGITS, 10)
    assert pool["n_without_class"] == 2800
    assert pool["n_per_source"] == {"demo": 3050}
    assert pool["n_bytes"] >= 3050 * 64
    for counts in report["duplicates"].values():
        assert not any(counts.values())


def test_the_report_counts_copies_between_stores(
    stores: dict[str, ImageStore], tmp_path: Path
) -> None:
    # All test images are planted in the pool.
    sources = [
        {"type": "demo", "part": "pool", "name": "pool"},
        {"type": "demo", "part": "test", "name": "test"},
    ]
    pool = write_pool(tmp_path / "planted", pool=sources)
    report = report_of({**stores, "pool_images": pool})

    assert report["duplicates"] == {
        "labeled and test": {"exact": 0, "near": 0},
        "pool and test": {"exact": 500, "near": 0},
        "teacher_training and test": {"exact": 0, "near": 0},
        "pool and labeled": {"exact": 0, "near": 0},
        "teacher_training and labeled": {"exact": 0, "near": 0},
        "teacher_training and pool": {"exact": 0, "near": None},
    }
    assert report["pool_images"]["n_per_source"] == {"pool": 3500, "test": 500}


def test_the_report_has_the_classes_of_the_labels(stores: dict[str, ImageStore]) -> None:
    report = report_of(stores)
    (source,) = report["pool_images"]["sources"]
    by_label = {entry["label"]: entry for entry in source["labels"]}
    assert by_label["3"]["class"] == 3
    assert by_label["3"]["rule"] == "number"
    assert by_label["letter A"]["class"] is None
    assert report["conflicting_labels"] == {}
    assert report["pool_images"]["conflicting_labels"] == {}


def test_the_report_names_images_with_another_label_in_another_store(
    stores: dict[str, ImageStore], tmp_path: Path
) -> None:
    # All test images are in the pool, and their digits are classes of other digits there.
    shifted = {str(digit): (digit + 1) % 10 for digit in range(10)}
    source = {"type": "demo", "part": "test", "labels": "truth", "label_map": shifted}
    pool = write_pool(tmp_path / "planted", pool=[source])
    report = report_of({**stores, "pool_images": pool})

    (names,) = report["conflicting_labels"]
    assert names == "pool_images and test_images"
    assert report["conflicting_labels"][names]["n_images"] == 500


def test_a_users_own_teacher_needs_no_training_images(tmp_path: Path) -> None:
    without_training_images = parameters(teacher_training=[])
    plan = nodes.plan_teacher_training_images(without_training_images, teacher())
    store = write_store(plan, tmp_path)

    # Later stages open the folder, also where it holds no image.
    reopened = ImageStore.open(store.folder)
    assert len(reopened) == 0


def test_images_take_the_teachers_size_and_colors(tmp_path: Path) -> None:
    color_input = {"size_px": 32, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    plan = nodes.plan_labeled_images(parameters(), teacher(input=color_input))
    store = write_store(plan, tmp_path)
    rows = np.arange(len(store))
    images = store.read(rows)

    assert images.shape == (100, 3, 32, 32)
    # The demo's images are gray: all channels are the same.
    red = images[:, 0]
    blue = images[:, 2]
    assert (red == blue).all()


def test_a_plan_reads_nothing(tmp_path: Path) -> None:
    nowhere = {"type": "parquet", "path": str(tmp_path / "nowhere.parquet")}
    ingestion = parameters(pool=[nowhere])
    plan = nodes.plan_pool_images(ingestion, teacher(classes=10))
    assert isinstance(plan, IngestionPlan)
    assert plan.class_names == tuple(DIGITS)


def test_the_stage_writes_seven_entries_and_kedro_can_check_its_parameters() -> None:
    pipeline = create_pipeline()

    assert pipeline.outputs() == {"ingestion_report"}
    assert pipeline.all_outputs() == {*PLANS, "near_copies", "duplicates", "ingestion_report"}
    assert pipeline.inputs() == {"params:data_ingestion", "params:teacher", "params:engine"}

    expected = {
        "data_ingestion.find_near_copies",
        "data_ingestion.find_duplicates",
        "data_ingestion.report_ingestion",
    }
    for name in PLANS:
        expected.add(f"data_ingestion.ingest_{name}")

    assert {node.name for node in pipeline.nodes} == expected

    # Kedro finds parameter blocks by the annotations; without them, nodes get raw mappings.
    for node in pipeline.nodes:
        assert node.tags == {"data"}
        hints = get_type_hints(node.func)
        assert hints.get("params", DataIngestionParams) is DataIngestionParams
        assert hints.get("teacher", TeacherParams) is TeacherParams
        assert hints.get("engine", EngineParams) is EngineParams


def test_ids_that_are_both_labeled_and_in_the_pool_are_refused(
    stores: dict[str, ImageStore], tmp_path: Path
) -> None:
    sources = [{"type": "demo", "part": "pool"}, {"type": "demo", "part": "labeled"}]
    pool = write_pool(tmp_path / "both", pool=sources)
    message = r"100 ids are in both labeled_images and pool_images, such as 'digits/"

    with pytest.raises(InputError, match=message):
        report_of({**stores, "pool_images": pool})
