"""The second control: the student of the whole pool."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_subset
from pu_kd_pipeline.selection.whole_pool import (
    NOT_TRAINED,
    distill_whole_pool,
    manifest_labeled_share,
    untrained_control,
)
from pu_kd_pipeline.storage.sharded_table import InMemoryTable
from pu_kd_pipeline.training.recipes import SAMPLING, recipe_differences
from pu_kd_pipeline.verdicts import OF_THE_WHOLE_POOL
from tests.comparison.builders import block_of
from tests.selection.test_reasons import features_of, params_of
from tests.training.scene import Scene, make_scene, state_of

WEIGHTING = ClassWeightingParams.model_validate(block_of("class_weighting", n_vectors=2, seed=0))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene("digits", tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def inputs(scene: Scene) -> SubsetInputs:
    """The images of the scene, with scores of its pool."""
    n = len(scene.pool)
    columns = {
        "id": scene.pool.index["id"].tolist(),
        "pu_score": np.arange(n, dtype=np.float32),
        "teacher_class": np.zeros(n, dtype=np.int32),
        "teacher_confidence": np.full(n, 0.5, dtype=np.float32),
        "teacher_log_odds": np.zeros(n),
    }
    table = InMemoryTable.of("scores", [pa.table(columns)])
    prior = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    return SubsetInputs(table, scene.labeled, scene.pool, prior, pd.DataFrame({"rank": []}))


@pytest.mark.parametrize("objective", ["kd", "robust_kd"])
def test_the_control_differs_in_its_pool_alone_and_has_the_same_labeled_share(
    scene: Scene, inputs: SubsetInputs, objective: str
) -> None:
    subset = params_of(rule="random", budget=20)
    manifest = choose_subset(inputs, subset)
    params = {"n_updates": 4, "record_every": 2, "objective": objective}
    student, _ = scene.distill(manifest, **params)

    features = (
        features_of(scene.labeled.index["id"].tolist(), np.ones((60, 5))),
        features_of(scene.pool.index["id"].tolist(), np.ones((140, 5))),
    )
    control, history = distill_whole_pool(
        inputs,
        manifest,
        features,
        scene.teacher,
        subset,
        WEIGHTING,
        scene.params(**params),
        scene.yardstick,
        "all",
    )
    assert history["update"].max() == 4
    recipe = control.card.origin["training"]
    assert (recipe["n_labeled"], recipe["n_pool"]) == (60, 140)
    share = manifest_labeled_share(manifest)
    assert share == 60 / 80
    assert control.card.origin[SAMPLING]["labeled_share"] == share

    # The weights of the student of the test were made in another way.
    allowed = (*OF_THE_WHOLE_POOL, "class_weighting")
    assert recipe_differences(student.card, control.card, allowed) == []
    [difference] = recipe_differences(student.card, control.card, ("n_pool", "class_weighting"))
    assert "labeled_share" in difference


def test_without_it_there_is_a_network_whose_card_says_that_it_was_not_trained(
    scene: Scene,
) -> None:
    model, history = untrained_control(scene.teacher, scene.params())
    assert "whole_pool is false" in model.card.origin[NOT_TRAINED]
    assert len(history) == 0
    # The same one in every run.
    again, _ = untrained_control(scene.teacher, scene.params())
    assert all(
        np.array_equal(value, state_of(again)[name]) for name, value in state_of(model).items()
    )


@pytest.mark.parametrize(("origins", "share"), [("l", None), ("p", None), ("lppp", 0.25)])
def test_a_manifest_of_one_origin_gives_no_share(origins: str, share: float | None) -> None:
    names = {"l": "labeled", "p": "pool"}
    manifest = pd.DataFrame({"origin": [names[letter] for letter in origins]})
    assert manifest_labeled_share(manifest) == share
