"""How a training uses class weights, by what their tables state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.workers import ALONE
from pu_kd_pipeline.params.class_weighting import MODES
from pu_kd_pipeline.storage.table import read_table, write_table
from pu_kd_pipeline.training import distillation
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.weighting import balanced_rows, weighting_of
from tests.training.scene import N_CLASSES, Scene, are_equal, three_weight_vectors

SHIFT = [0.5, 0.1, 0.0, -0.1, -0.5]


def vectors_of(mode: str | None, **attrs: Any) -> pd.DataFrame:
    vectors = three_weight_vectors()
    if mode is not None:
        vectors.attrs["class_weighting"] = {"mode": mode, "balanced": {"max_factor": 10.0}}
    if mode == "adjusted":
        vectors.attrs["logit_shift"] = SHIFT
    vectors.attrs.update(attrs)
    return vectors


def student_of(digits: Scene, vectors: pd.DataFrame, manifest: pd.DataFrame, **changes: Any) -> Any:
    changes = {"objective": "robust_kd", "n_updates": 6, "record_every": 3, **changes}
    params = digits.params(**changes)
    return distill(
        manifest,
        digits.labeled,
        digits.pool,
        digits.teacher,
        vectors,
        params,
        name="student",
        yardstick=digits.yardstick,
    )


@pytest.fixture
def manifest(digits: Scene) -> pd.DataFrame:
    """All images, in the order of the stores, with a class for each of the pool: few of class 1."""
    manifest = digits.manifest.sort_values("id").reset_index(drop=True)
    is_pool = manifest["origin"] == "pool"
    numbers = np.arange(len(manifest))
    classes = np.where(numbers % 10 == 0, 1, 0)
    manifest["teacher_class"] = pd.Series(np.where(is_pool, classes, -1)).astype("Int32")
    manifest.loc[~is_pool, "teacher_class"] = pd.NA
    return manifest


def test_vectors_of_a_caller_and_of_earlier_versions_are_those_of_the_paper(
    digits: Scene, manifest: pd.DataFrame
) -> None:
    for mode in (None, "projected", "released"):
        assert weighting_of(vectors_of(mode)).mode == "paper"
    student, history = student_of(digits, vectors_of(None), manifest)
    of_paper, _ = student_of(digits, vectors_of("paper"), manifest)
    assert are_equal(student, of_paper)
    assert "kd_loss" in history


def test_every_mode_trains_another_student_and_its_card_states_the_mode(
    digits: Scene, manifest: pd.DataFrame
) -> None:
    students = {}
    for mode in MODES:
        students[mode], history = student_of(digits, vectors_of(mode), manifest)
        facts = students[mode].card.origin["class_weights"]
        assert facts["mode"] == mode
        assert students[mode].card.origin["training"]["class_weighting"]["mode"] == mode
        # The loss is the largest over the vectors, and the estimated one is among them.
        assert (history["loss"] >= history["estimated_weights_loss"]).all()
    # With these vectors, which weigh classes, `none` and `shrunk` differ in name alone.
    assert are_equal(students["none"], students["shrunk"])
    others = [mode for mode in MODES if mode != "none"]
    for mode in others[1:]:
        assert not are_equal(students["none"], students[mode])
    assert students["adjusted"].card.origin["class_weights"]["logit_shift"] == SHIFT

    # An objective that reads no weights does not state any.
    plain, _ = student_of(digits, vectors_of("shrunk"), manifest, objective="kd")
    assert "class_weights" not in plain.card.origin


def test_the_mode_survives_a_file(tmp_path: Any) -> None:
    vectors = vectors_of("adjusted", mean_sample_weight=1.0)
    write_table(vectors, tmp_path / "vectors.parquet")
    weighting = weighting_of(read_table(tmp_path / "vectors.parquet"))
    assert (weighting.mode, weighting.logit_shift) == ("adjusted", tuple(SHIFT))
    assert weighting.facts["mean_sample_weight"] == 1.0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (vectors_of("sharpened"), "the mode 'sharpened' is not known"),
        (vectors_of("adjusted", logit_shift=None), "is no shift"),
        (vectors_of("adjusted", logit_shift=[0.0]), "must hold 5 finite numbers"),
        (vectors_of("adjusted", logit_shift=[float("nan")] * 5), "must hold 5 finite numbers"),
        (vectors_of(None, class_weighting={"mode": "balanced"}), "do not state balanced.max"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(vectors: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighting_of(vectors)


def identity_of(digits: Scene, vectors: pd.DataFrame) -> dict[str, Any]:
    params = digits.params(objective="robust_kd")
    task = distillation._Task(
        manifest=digits.manifest,
        stores=digits.stores,
        teacher=digits.teacher,
        weight_vectors=vectors,
        weighting=weighting_of(vectors),
        params=params,
        name="student",
        start=None,
        watched=None,
        yardstick=None,
        shared_logits=None,
        device=torch.device("cpu"),
        workers=ALONE,
    )
    return distillation._identity(task)


def test_what_the_attrs_decide_is_part_of_the_identity(digits: Scene) -> None:
    # The attrs of a table are not part of its digest.
    one = identity_of(digits, vectors_of("none"))
    for other_vectors in (vectors_of("adjusted"), vectors_of("balanced"), vectors_of("paper")):
        assert identity_of(digits, other_vectors) != one
    other_shift = vectors_of("adjusted", logit_shift=[0.0] * N_CLASSES)
    assert identity_of(digits, vectors_of("adjusted")) != identity_of(digits, other_shift)


# --- balanced draws ---


def test_balanced_batches_have_the_labeled_share_and_even_classes(
    digits: Scene, manifest: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in augmented_batches(rows, *args, **options):
            shown.append(batch.rows)
            yield batch

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    student_of(digits, vectors_of("balanced"), manifest, n_updates=40, batch_size=50)
    positions = torch.cat(shown)
    # 60 of 200 images are labeled, and of every batch.
    assert int((positions < 60).sum()) == 40 * 15
    classes = manifest[manifest["origin"] == "pool"]["teacher_class"].to_numpy(dtype=int)
    shares = np.bincount(classes[positions[positions >= 60].numpy() - 60]) / (40 * 35)
    # A tenth of the images has class 1; the standard deviation of the share is 0.013.
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


def test_probabilities_of_the_manifest_stay_within_a_class(manifest: pd.DataFrame) -> None:
    is_pool = manifest["origin"] == "pool"
    own = np.where(is_pool, np.arange(1.0, len(manifest) + 1), np.nan)
    rows = balanced_rows(manifest.assign(sampling_probability=own), {}, 1e9)
    of_class = is_pool & (manifest["teacher_class"] == 1)
    ratios = rows["sampling_probability"][of_class] / own[of_class]
    assert np.ptp(ratios) < 1e-9 * ratios.max()
    assert rows["sampling_probability"][~is_pool].isna().all()
    assert rows["sampling_probability"].sum() == pytest.approx(np.nansum(own))


@pytest.mark.parametrize(
    ("changes", "attrs", "message"),
    [
        ({"related_probability": 1.0}, {"rule": "mixture"}, r"rule \(mixture\) draws pool images"),
        ({}, {"rule": "rolling", "rolling": {}}, r"rule \(rolling\) draws pool images"),
        ({"teacher_class": pd.NA}, {}, "pool images without a teacher_class"),
        ({"sampling_probability": 0.0}, {}, "sampling_probability: probabilities must be"),
    ],
)
def test_what_cannot_be_drawn_evenly_is_refused(
    manifest: pd.DataFrame, changes: dict[str, Any], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        balanced_rows(manifest.assign(**changes), attrs, 10.0)


def test_without_pool_images_nothing_is_balanced(manifest: pd.DataFrame) -> None:
    labeled = manifest[manifest["origin"] == "labeled"]
    assert balanced_rows(labeled, {}, 10.0) is labeled
