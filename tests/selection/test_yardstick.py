"""The yardstick of a run: what is in it, and that no manifest holds any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.duplicates import (
    STORES,
    Excluded,
    excluded_images,
    find_duplicates,
)
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection import yardstick as chosen
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.selection.retrieval import Scores, similarities_to_labeled
from pu_kd_pipeline.selection.yardstick import choose_original_yardstick, choose_yardstick
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table
from pu_kd_pipeline.storage.yardstick import (
    check_yardstick,
    teacher_logits,
    yardstick_facts,
    yardstick_fingerprint,
    yardstick_ids,
)
from tests.training.scene import COMPUTE, N_CLASSES, params_with, store_of

N_POOL = 600


def params_of(**changes: Any) -> YardstickParams:
    given = {
        "seed": 0,
        "n_images": 40,
        "uniform_share": 0.5,
        "max_share": 0.1,
        "labeled_share": 0.25,
        "min_labeled_per_class": 8,
        **changes,
    }
    return YardstickParams.model_validate(given)


@dataclass(frozen=True)
class Scene:
    """Stores, a teacher and its features; images of equal numbers have equal pixels."""

    stores: dict[str, ImageStore]
    teacher: Model
    labeled_features: ShardedTable
    pool_features: ShardedTable
    duplicates: pd.DataFrame

    def yardstick(self, **changes: Any) -> pd.DataFrame:
        return choose_yardstick(
            self.stores["labeled"],
            self.stores["pool"],
            self.labeled_features,
            self.pool_features,
            self.teacher,
            self.duplicates,
            params_of(**changes),
        )

    def with_pool(self, pool: ImageStore, folder: Path) -> Scene:
        """Return the scene with another pool."""
        stores = {**self.stores, "pool": pool}
        makers = feature_shards(pool, self.teacher, COMPUTE)
        features = ShardedTable.write(folder, makers)
        duplicates = find_duplicates(stores, None)
        return Scene(stores, self.teacher, self.labeled_features, features, duplicates)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("yardstick")
    # Ten of the pool's images are test images, and ten others are labeled images.
    copies_of_test = range(5000, 5010)
    copies_of_labeled = range(10)
    stores = {
        "labeled": store_of(folder / "labeled", (range(60), "classes"), name="labeled"),
        "pool": store_of(
            folder / "pool",
            (range(1000, 1000 + N_POOL - 20), "truth"),
            (copies_of_test, "truth"),
            (copies_of_labeled, "truth"),
        ),
        "test": store_of(folder / "test", (range(5000, 5040), "classes")),
        "teacher_training": store_of(folder / "original", (range(7000, 7100), "classes")),
    }
    teacher_params = TeacherParams.model_validate(
        {
            "architecture": "digits_cnn",
            "architecture_options": {"width": 4},
            "weights": None,
            "taps": None,
            "classes": N_CLASSES,
            "input": {"size_px": 8, "channels": 1, "mean": [0.4], "std": [0.25]},
        }
    )
    with seeded(0):
        teacher = new_teacher(teacher_params)
    features = {}
    for name in ("labeled", "pool"):
        makers = feature_shards(stores[name], teacher, COMPUTE)
        features[name] = ShardedTable.write(folder / f"{name}_features", makers)
    duplicates = find_duplicates(stores, None)
    return Scene(stores, teacher, features["labeled"], features["pool"], duplicates)


SELECTING = (
    "random",
    "oracle",
    "confident",
    "stratified",
    "nnpu",
    "disagreement",
    "all",
    "mixture",
    "retrieved",
    "rolling",
)


class EveryImageDisagrees:
    """Stands for the proxy student of the rule `disagreement`."""

    def divergence(self, _manifest: Any, _labeled: Any, pool: ImageStore) -> np.ndarray:
        return np.ones(len(pool), dtype=np.float32)


def subset_inputs(scene: Scene, excluded: Excluded) -> SubsetInputs:
    """Return the inputs of a selection with scores at random."""
    pool = scene.stores["pool"]
    rng = np.random.default_rng(0)
    n = len(pool)
    columns = {
        "id": pa.array(pool.index["id"], pa.string()),
        "pu_score": rng.normal(size=n).astype(np.float32),
        "teacher_class": rng.integers(0, N_CLASSES, n).astype(np.int32),
        "teacher_confidence": rng.uniform(size=n).astype(np.float32),
        "teacher_log_odds": rng.normal(size=n),
    }
    scores = InMemoryTable.of("scores", [pa.table(columns)])
    prior = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    ranks = pd.DataFrame({"rank": rng.uniform(size=20)})
    proxy: Any = EveryImageDisagrees()
    return SubsetInputs(
        scores,
        scene.stores["labeled"],
        pool,
        prior,
        ranks,
        proxy,
        excluded,
        student=params_with(n_updates=50, batch_size=20, labeled_share=0.25),
        features=(scene.labeled_features, scene.pool_features),
    )


def pixels_of(scene: Scene, manifest: pd.DataFrame) -> set[str]:
    hashes: set[str] = set()
    for origin in ("labeled", "pool"):
        index = scene.stores[origin].index
        ids = manifest["id"][manifest["origin"] == origin]
        hashes.update(index["sha256"][index["id"].isin(ids)])
    return hashes


def test_every_rule_is_tried_here():
    assert set(SELECTING) == set(RULES)


@pytest.mark.parametrize("rule", SELECTING)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_manifest_holds_an_image_of_the_yardstick(scene, rule, seed):
    yardstick = scene.yardstick()
    subset = SubsetParams(
        seed=seed, rule=rule, criterion="quantile", budget=200, target_precision=0.9
    )
    excluded = excluded_images(scene.duplicates, subset, yardstick)
    inputs = subset_inputs(scene, excluded)
    manifest = choose_subset(inputs, subset)
    control = choose_random_subset(inputs, manifest, subset)
    for each in (manifest, control):
        assert pixels_of(scene, each).isdisjoint(yardstick["sha256"])
        # Nothing else of the labeled images is lost.
        n_measured = len(yardstick_ids(yardstick, "labeled"))
        assert (each["origin"] == "labeled").sum() == 60 - n_measured
        assert each.attrs["n_yardstick_labeled"] == n_measured == 15
        assert each.attrs["n_excluded_pool"] == 10


def test_the_parts_have_the_sizes_that_the_parameters_ask_for(scene):
    yardstick = scene.yardstick()
    facts = yardstick_facts(yardstick)
    assert (facts["n_uniform"], facts["n_related"], facts["n_labeled"]) == (20, 20, 15)
    assert facts["n_images"] == len(yardstick) == yardstick["id"].nunique()
    labeled = scene.stores["labeled"].index.set_index("id")["label"]
    measured = yardstick["id"][yardstick["part"] == "labeled"]
    assert set(labeled[measured].value_counts()) == {3}


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"n_images": 41}, (20, 21, 15)),
        ({"uniform_share": 0.0}, (0, 40, 15)),
        ({"uniform_share": 1.0}, (40, 0, 15)),
        # A tenth of the 580 images that are no copies.
        ({"n_images": 2000}, (29, 29, 15)),
        ({"labeled_share": 0.0}, (20, 20, 0)),
        ({"min_labeled_per_class": 13}, (20, 20, 0)),
        ({"n_images": 0}, (0, 0, 0)),
    ],
)
def test_small_stores_keep_their_images(scene, changes, sizes):
    facts = yardstick_facts(scene.yardstick(**changes))
    assert (facts["n_uniform"], facts["n_related"], facts["n_labeled"]) == sizes


def test_copies_of_test_and_labeled_images_are_not_measured_on(scene):
    # So many images that a copy would be among them if it were allowed.
    yardstick = scene.yardstick(max_share=0.99, n_images=N_POOL)
    of_pool = yardstick[yardstick["origin"] == "pool"]
    for other in ("test", "labeled"):
        assert of_pool["sha256"].isin(scene.stores[other].index["sha256"]).sum() == 0
    assert of_pool["part"].eq("uniform").sum() == 287


def test_similarities_are_those_of_standardized_descriptors(scene):
    ids = scene.labeled_features.to_pandas()["id"].to_numpy()[5:]
    found = similarities_to_labeled(ids, scene.labeled_features, scene.pool_features)
    pool = scene.pool_features.arrays("descriptor").astype(np.float64)
    deviation = pool.std(axis=0)
    # A channel that is constant in the pool is not scaled.
    deviation[deviation <= 1e-4 * np.abs(pool.mean(axis=0))] = 1

    def unit(descriptors: np.ndarray) -> np.ndarray:
        standardized = (descriptors - pool.mean(axis=0)) / deviation
        return standardized / np.linalg.norm(standardized, axis=1, keepdims=True)

    labeled = unit(scene.labeled_features.arrays("descriptor")[5:].astype(np.float64))
    np.testing.assert_allclose(found.pool, (unit(pool) @ labeled.T).max(axis=1), atol=1e-5)
    cosines = labeled @ labeled.T
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose(found.labeled, cosines.max(axis=1), atol=1e-5)


def of_part(yardstick: pd.DataFrame, part: str) -> set[str]:
    return set(yardstick["id"][yardstick["part"] == part])


def test_related_images_are_of_the_head_alone(scene, monkeypatch, caplog):
    ids = scene.pool_features.to_pandas()["id"]
    head = set(ids[100:200])
    of_labeled = np.linspace(0.4, 0.9, 60)
    # The lower quartile of the labeled images is 0.525.
    of_pool = np.where(ids.isin(head), 0.53, 0.52)
    monkeypatch.setattr(chosen, "similarities_to_labeled", lambda *_: Scores(of_pool, of_labeled))
    yardstick = scene.yardstick(uniform_share=0.25)
    related = of_part(yardstick, "related")
    # One of ten, less the images behind the last block of each class.
    assert 5 <= len(related) <= 10
    assert related <= head
    assert len(of_part(yardstick, "uniform")) == 10
    assert related.isdisjoint(of_part(yardstick, "uniform"))
    assert f"{len(related)} related images instead of 30" in caplog.text


def test_the_score_that_finds_labeled_images_better_decides(scene, monkeypatch):
    n_pool = len(scene.stores["pool"])
    blind = Scores(np.full(n_pool, 0.9), np.full(60, 0.1))
    monkeypatch.setattr(chosen, "similarities_to_labeled", lambda *_: blind)
    yardstick = scene.yardstick(uniform_share=0.0)
    log_odds = {}
    for name in ("labeled", "pool"):
        features = getattr(scene, f"{name}_features")
        confidence = class_confidence(torch.from_numpy(features.arrays("logits").copy()))
        log_odds[name] = pd.Series(confidence.log_odds.numpy(), features.to_pandas()["id"])
    related = list(of_part(yardstick, "related"))
    assert len(related) == 40
    assert (log_odds["pool"][related] >= log_odds["labeled"].quantile(0.25)).all()


def test_a_single_labeled_image_leaves_the_log_odds(scene, tmp_path, monkeypatch):
    labeled = store_of(tmp_path / "labeled", (range(1), "classes"), name="labeled")
    makers = feature_shards(labeled, scene.teacher, COMPUTE)
    features = ShardedTable.write(tmp_path / "features", makers)
    stores = {**scene.stores, "labeled": labeled}
    duplicates = find_duplicates(stores, None)
    single = Scene(stores, scene.teacher, features, scene.pool_features, duplicates)
    monkeypatch.delattr(chosen, "similarities_to_labeled")
    facts = yardstick_facts(single.yardstick(uniform_share=0.0))
    assert (facts["n_related"], facts["n_labeled"]) == (40, 0)


def test_the_logits_are_the_teachers_own(scene):
    yardstick = scene.yardstick()
    check_yardstick(yardstick, scene.teacher.fingerprint(), N_CLASSES)
    expected = {}
    for features in (scene.labeled_features, scene.pool_features):
        origin = "labeled" if features is scene.labeled_features else "pool"
        ids = features.to_pandas()["id"]
        for image_id, row in zip(ids, features.arrays("logits"), strict=True):
            expected[origin, image_id] = row
    found = teacher_logits(yardstick)
    keys = zip(yardstick["origin"], yardstick["id"], strict=True)
    np.testing.assert_array_equal(found, [expected[key] for key in keys])


def test_the_order_of_the_pool_does_not_matter(scene, tmp_path):
    numbers = range(1000, 1000 + N_POOL)
    middle = 1300
    one = store_of(tmp_path / "one", (numbers, "truth"))
    parts = ((range(middle, numbers.stop), "truth"), (range(numbers.start, middle), "truth"))
    other = store_of(tmp_path / "other", *parts)
    assert list(one.index["id"]) != list(other.index["id"])
    first = scene.with_pool(one, tmp_path / "a").yardstick()
    second = scene.with_pool(other, tmp_path / "b").yardstick()
    columns = ["id", "origin", "part", "sha256"]
    pd.testing.assert_frame_equal(first[columns], second[columns])
    assert yardstick_fingerprint(first) == yardstick_fingerprint(second)


def test_the_seed_decides(scene):
    assert scene.yardstick().equals(scene.yardstick())
    other = scene.yardstick(seed=1)
    shared = set(other["id"]) & set(scene.yardstick()["id"])
    assert len(shared) < len(other) / 2
    assert yardstick_fingerprint(other) != yardstick_fingerprint(scene.yardstick())


def test_a_saved_yardstick_is_the_same(scene, tmp_path):
    yardstick = scene.yardstick()
    write_table(yardstick, tmp_path / "yardstick.parquet")
    saved = read_table(tmp_path / "yardstick.parquet")
    assert yardstick_fingerprint(saved) == yardstick_fingerprint(yardstick)
    check_yardstick(saved, scene.teacher.fingerprint(), N_CLASSES)
    np.testing.assert_array_equal(teacher_logits(saved), teacher_logits(yardstick))


def drop_sha(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="sha256")


def repeat_first(table: pd.DataFrame) -> pd.DataFrame:
    repeated = pd.concat([table, table[:1]])
    repeated.attrs = table.attrs
    return repeated


def drop_logit(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="logit_0")


def other_teacher(table: pd.DataFrame) -> pd.DataFrame:
    changed = table.copy()
    changed.attrs = {**table.attrs, "teacher": "other"}
    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_sha, "the columns sha256 are missing"),
        (repeat_first, "an image is there twice"),
        (drop_logit, "does not hold 5 logits"),
        (other_teacher, "another network than teacher_model"),
    ],
)
def test_a_damaged_or_foreign_yardstick_is_refused(
    scene, damage: Callable[[pd.DataFrame], pd.DataFrame], message
):
    with pytest.raises(InputError, match=message):
        check_yardstick(damage(scene.yardstick()), scene.teacher.fingerprint(), N_CLASSES)


def test_a_store_with_other_pixels_is_refused(scene):
    yardstick = scene.yardstick()
    swapped = yardstick.assign(sha256=yardstick["sha256"].iloc[::-1].to_numpy())
    with pytest.raises(InputError, match="hold other pixels than when it was chosen"):
        _ = Yardstick(swapped, scene.stores).parts


def test_features_of_another_pool_are_refused(scene, tmp_path):
    pool = store_of(tmp_path / "pool", (range(1000, 1100), "truth"))
    changed = Scene(
        {**scene.stores, "pool": pool},
        scene.teacher,
        scene.labeled_features,
        scene.pool_features,
        scene.duplicates,
    )
    with pytest.raises(InputError, match="600 images, and the pool has 100"):
        changed.yardstick()


def test_the_original_images_give_a_yardstick_without_a_pool(scene):
    original = scene.stores["teacher_training"]
    params = params_of(n_images=2000)
    table = choose_original_yardstick(original, scene.teacher, scene.duplicates, params, COMPUTE)
    assert len(table) == 10
    assert set(table["origin"]) == {"labeled"}
    [(store, rows, places)] = Yardstick(table, {"labeled": original}).parts
    assert store is original
    assert list(original.index["id"].iloc[rows]) == list(table["id"].iloc[places])
    assert set(STORES) == set(scene.stores)
