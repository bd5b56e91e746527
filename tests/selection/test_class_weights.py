"""Class weights of a manifest: which images count, how often, and what the tables state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.class_weights import (
    class_weights,
    mean_sample_weight,
    teacher_class_counts,
    teacher_class_mass,
)
from pu_kd_pipeline.params.class_weighting import MODES, ClassWeightingParams
from pu_kd_pipeline.selection.class_weights import compute_class_weights
from tests.comparison.builders import block_of
from tests.selection.test_reasons import features_of

CLASSES = ("a", "b", "c", "d")
LABELED = [f"l{row}" for row in range(4)]
POOL = [f"p{row}" for row in range(9)]
# Multiples of an eighth: exact in single precision.
LABELED_LOGITS = (np.arange(16).reshape(4, 4) * 7 % 13 / 8).astype(np.float32)
POOL_LOGITS = (np.arange(36).reshape(9, 4) * 5 % 17 / 4).astype(np.float32)
POOL_LOGITS[:, 0] += 2  # class a is the most frequent one

# What the version before the modes gave for `paper`, with these options and seed 3.
OPTIONS = {"clip": (0.5, 2.0), "epsilon": 0.1}
FORMER = {
    "projected": [
        [0.6049249583802611, 1.3029069886975382, 1.0648610757964434, 1.0273069771257572],
        [0.54831207771128, 1.2968205142427145, 1.1560095448630752, 0.998857863182931],
        [0.6562107737126446, 1.324768955084883, 1.0048183468524747, 1.014201924349998],
    ],
    "released": [
        [0.6049249583802611, 1.3029069886975382, 1.0648610757964434, 1.0273069771257572],
        [0.6083357779453131, 1.3315810113696689, 1.1421525702293018, 1.0447996800538868],
        [0.680461945544851, 1.3637320513896087, 1.0847337908228571, 1.0706485302362758],
    ],
}


def params_of(mode: str, **changes: Any) -> ClassWeightingParams:
    block = block_of("class_weighting", mode=mode, seed=3, n_vectors=2, **changes)
    return ClassWeightingParams.model_validate(block)


def manifest_of(pool: list[str] = POOL, labeled: list[str] = LABELED) -> pd.DataFrame:
    origins = ["labeled"] * len(labeled) + ["pool"] * len(pool)
    return pd.DataFrame({"id": labeled + pool, "origin": origins})


def compute(
    manifest: pd.DataFrame, params: ClassWeightingParams, pool_logits: np.ndarray = POOL_LOGITS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    labeled = features_of(LABELED, LABELED_LOGITS)
    pool_ids = [f"p{row}" for row in range(len(pool_logits))]
    pool = features_of(pool_ids, pool_logits, n_shards=2)
    return compute_class_weights(manifest, labeled, pool, CLASSES, params)


@pytest.mark.parametrize("perturbation", ["projected", "released"])
def test_the_papers_variant_is_that_of_earlier_versions(perturbation: str) -> None:
    paper = {**OPTIONS, "perturbation": perturbation}
    table, vectors = compute(manifest_of(), params_of("paper", paper=paper))
    np.testing.assert_allclose(vectors.to_numpy(), FORMER[perturbation], rtol=1e-6)
    # Exact where the same machine computes both: Eq. 7 in single precision, over all images.
    mass = torch.zeros(4, dtype=torch.float64)
    for logits in (LABELED_LOGITS, POOL_LOGITS[:5], POOL_LOGITS[5:]):
        mass += teacher_class_mass(torch.from_numpy(logits))
    expected = class_weights(mass.float(), clip=(0.5, 2.0))
    assert table["weight"].tolist() == expected.weights.tolist()
    assert table["teacher_mass"].tolist() == mass.tolist()


def test_equation_7_can_have_a_mean_over_images_instead() -> None:
    paper = {**OPTIONS, "perturbation": "projected"}
    by_class, _ = compute(manifest_of(), params_of("paper", paper=paper))
    by_image, vectors = compute(
        manifest_of(), params_of("paper", paper={**paper, "mean_weight": "samples"})
    )
    assert by_class.attrs["mean_sample_weight"] < 0.95
    assert by_image.attrs["mean_sample_weight"] == pytest.approx(1)
    ratio = by_image["weight"] / by_class["weight"]
    np.testing.assert_allclose(ratio, 1 / by_class.attrs["mean_sample_weight"])
    assert vectors.iloc[0].tolist() == by_image["weight"].tolist()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "paper"])
def test_the_other_modes_count_pool_images_and_keep_the_mean_weight_of_an_image(mode: str) -> None:
    table, vectors = compute(manifest_of(), params_of(mode))
    logits = torch.from_numpy(POOL_LOGITS)
    counts = teacher_class_counts(logits)
    np.testing.assert_allclose(table["teacher_mass"], teacher_class_mass(logits))
    for vector in vectors.to_numpy():
        assert mean_sample_weight(torch.from_numpy(vector), counts) == pytest.approx(1)
    # Labeled images have no part in it: others give the same weights.
    without_two, _ = compute(manifest_of(labeled=LABELED[:2]), params_of(mode))
    assert without_two["weight"].tolist() == table["weight"].tolist()

    changes = (vectors / table["weight"].to_numpy() - 1).abs().to_numpy()
    assert 0.1 < changes.max() <= 0.5 + 1e-9
    _, without_game = compute(manifest_of(), params_of(mode, relative_epsilon=0.0))
    np.testing.assert_allclose(without_game, np.tile(table["weight"], (3, 1)))


@pytest.mark.parametrize("mode", MODES)
def test_an_image_that_is_drawn_twice_as_often_counts_as_two(mode: str) -> None:
    # One class more often: p0 and p1 twice as often as the others.
    draws = np.array([2.0, 2.0, *[1.0] * 7])
    manifest = manifest_of()
    manifest["sampling_probability"] = [*[np.nan] * 4, *(draws / draws.sum())]
    drawn, _ = compute(manifest, params_of(mode))

    # The same as images that are there twice; labeled ones as often as before.
    repeated_logits = np.concatenate([POOL_LOGITS, POOL_LOGITS[:2]])
    ids = [f"p{row}" for row in range(11)]
    repeated, _ = compute(manifest_of(pool=ids), params_of(mode), repeated_logits)
    if mode == "paper":
        # Draws are relative: nine images with a mean of one, next to the four labeled ones.
        of_labeled = teacher_class_mass(torch.from_numpy(LABELED_LOGITS)).numpy()
        of_pool = (repeated["teacher_mass"] - of_labeled) * 9 / 11
        np.testing.assert_allclose(drawn["teacher_mass"], of_labeled + of_pool)
        return
    np.testing.assert_allclose(drawn["teacher_mass"], repeated["teacher_mass"] * 9 / 11)
    np.testing.assert_allclose(drawn["weight"], repeated["weight"])


def test_equal_probabilities_count_images() -> None:
    manifest = manifest_of()
    plain, _ = compute(manifest, params_of("paper"))
    manifest["sampling_probability"] = [*[np.nan] * 4, *[1 / 9] * 9]
    described, _ = compute(manifest, params_of("paper"))
    assert described["weight"].tolist() == plain["weight"].tolist()


def test_probabilities_that_are_missing_or_zero_are_refused() -> None:
    manifest = manifest_of()
    manifest["sampling_probability"] = [*[np.nan] * 4, np.nan, *[1 / 8] * 8]
    with pytest.raises(InputError, match="some images have no sampling_probability"):
        compute(manifest, params_of("shrunk"))


@pytest.mark.parametrize("mode", MODES)
def test_a_manifest_without_pool_images_has_weights(mode: str) -> None:
    table, vectors = compute(manifest_of(pool=[]), params_of(mode))
    assert np.isfinite(table["weight"]).all()
    assert np.isfinite(vectors.to_numpy()).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_tables_state_how_they_were_made_and_nothing_that_has_no_effect(mode: str) -> None:
    table, vectors = compute(manifest_of(), params_of(mode))
    assert table.attrs == vectors.attrs
    facts = table.attrs["class_weighting"]
    expected = {"seed", "mode", "n_vectors"}
    if mode in ("shrunk", "balanced", "adjusted", "paper"):
        expected.add(mode)
    if mode != "paper":
        expected.add("relative_epsilon")
    assert set(facts) == expected
    assert ("logit_shift" in table.attrs) == (mode == "adjusted")
    if mode == "adjusted":
        # Frequent classes get a larger logit inside the loss, as far as the smoothing lets them.
        shift = pd.Series(table.attrs["logit_shift"])
        assert (shift.rank() == table["teacher_mass"].rank()).all()
        assert shift.max() - shift.min() < np.log(5)
