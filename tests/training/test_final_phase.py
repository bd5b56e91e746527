"""The final phase shows the images that it should, and what is kept is what was measured."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.learning.weight_average import WeightAverage
from pu_kd_pipeline.learning.yardstick import Closeness, closeness
from pu_kd_pipeline.storage.yardstick import teacher_logits
from pu_kd_pipeline.training.batches import augmented_batches
from pu_kd_pipeline.training.distillation import distill_from_pool
from pu_kd_pipeline.training.final_phase import FinalPhase, final_phase_of, n_final_updates
from pu_kd_pipeline.training.manifest_images import labeled_first
from tests.training.scene import COMPUTE, PLAIN, Scene, params_with
from tests.training.test_batches import image_rows, normalization_of

NORMALIZING = {"student_architecture": "cifar_resnet", "student_options": {"depth": 8, "width": 4}}
PHASE: dict[str, Any] = {"n_updates": 20, "record_every": 4, "final_phase": {"share": 0.4}}


@pytest.mark.parametrize("probabilities", [None, torch.arange(200, dtype=torch.float64)])
def test_the_last_batches_show_the_images_of_the_phase_alone(digits, probabilities):
    def rows_of_batches(final_phase, n_passed=0):
        batches = augmented_batches(
            image_rows(digits),
            normalization_of(digits),
            PLAIN,
            batch_size=32,
            seed=0,
            probabilities=probabilities,
            final_phase=final_phase,
            n_passed=n_passed,
        )
        return [batch.rows for batch in itertools.islice(batches, 15 - n_passed)]

    rows = torch.arange(0, 64, 2)
    phase = FinalPhase(rows, n_before=6)
    plain = rows_of_batches(None)
    found = rows_of_batches(phase)
    for one, other in zip(plain[:6], found[:6], strict=True):
        assert torch.equal(one, other)
    # 32 images in batches of 32: every batch is a pass.
    for batch in found[6:]:
        assert sorted(batch.tolist()) == rows.tolist()
    assert not torch.equal(found[6], found[7])

    for n_passed in (3, 6, 9):
        for one, other in zip(found[n_passed:], rows_of_batches(phase, n_passed), strict=True):
            assert torch.equal(one, other)


def test_the_phase_holds_labeled_images_and_those_that_are_called_related(digits):
    manifest = digits.manifest
    numbers = manifest["id"].str.removeprefix("i").astype(int)
    manifest["reason"] = np.where(numbers % 3 == 0, "related", "random")
    rows = labeled_first(manifest)
    is_labeled = (rows["origin"] == "labeled").to_numpy()
    is_related = (rows["reason"] == "related").to_numpy()
    expected = {"labeled": is_labeled, "labeled_and_related": is_labeled | is_related}
    for images, is_expected in expected.items():
        params = digits.params(**PHASE | {"final_phase": {"share": 0.4, "images": images}})
        phase = final_phase_of(rows, params, "distillation")
        assert phase is not None
        assert phase.rows.tolist() == is_expected.nonzero()[0].tolist()
        assert phase.n_before == 12


def test_a_manifest_without_reasons_ends_on_labeled_images_and_says_so(digits, caplog):
    params = digits.params(final_phase={"share": 0.4, "images": "labeled_and_related"})
    rows = labeled_first(digits.manifest)
    with caplog.at_level(logging.WARNING):
        phase = final_phase_of(rows, params, "distillation")
    assert phase is not None
    assert len(phase.rows) == (rows["origin"] == "labeled").sum()
    assert "the manifest does not say which images are related" in caplog.text


def test_a_share_is_at_least_one_update_and_never_all_of_them():
    assert n_final_updates(params_with(n_updates=4)) == 0
    assert n_final_updates(params_with(n_updates=4, final_phase={"share": 0.01})) == 1
    assert n_final_updates(params_with(n_updates=400, final_phase={"share": 0.25})) == 100


def test_without_labeled_images_there_is_no_phase(digits):
    manifest = digits.pool.index[["id"]].assign(origin="pool")
    params = digits.params(**PHASE)
    with pytest.raises(InputError, match=r"student.final_phase: no image .* set final_phase.share"):
        distill_from_pool(manifest, digits.pool, digits.teacher, params, "student")


def _closeness(scene: Scene, student) -> Closeness:
    """Return agreement and KL divergence of a student on the yardstick."""
    assert scene.yardstick is not None
    [(store, rows, places)] = scene.yardstick.parts
    logits = predict_logits(student, store, COMPUTE)[rows]
    teacher = torch.from_numpy(teacher_logits(scene.yardstick.table))[places]
    return closeness(teacher, logits)


@pytest.mark.parametrize("averaging", ["none", "final_phase", "ema"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_student_that_is_returned_is_the_one_that_was_measured(digits, averaging, keep):
    changes = {**NORMALIZING, **PHASE, "weight_averaging": averaging, "ema_decay": 0.8}
    student, history = digits.distill(**changes, keep=keep)
    kept = history[history["is_kept"]]
    [agreement], [divergence] = kept["yardstick_agreement"], kept["yardstick_kl"]
    assert _closeness(digits, student)[:2] == pytest.approx((agreement, divergence), rel=1e-4)
    if keep == "best":
        assert divergence == history["yardstick_kl"].min()
    assert student.card.origin["n_final_phase_images"] == 60
    assert student.card.origin["training"]["distillation"]["weight_averaging"] == averaging


@pytest.mark.parametrize("averaging", ["final_phase", "ema"])
def test_measuring_averaged_weights_does_not_change_the_training(digits, averaging, monkeypatch):
    seen: list[list[torch.Tensor]] = []
    after_update = WeightAverage.after_update

    def record(average: WeightAverage) -> None:
        after_update(average)
        seen.append([value.detach().clone() for value in average.network.parameters()])

    monkeypatch.setattr(WeightAverage, "after_update", record)
    changes = {**NORMALIZING, **PHASE, "weight_averaging": averaging, "ema_decay": 0.8}
    student, _ = digits.distill(**changes)
    with_records, seen = seen, []
    digits.distill(**changes | {"record_every": 20})
    for one, other in zip(with_records, seen, strict=True):
        for value, other_value in zip(one, other, strict=True):
            assert torch.equal(value, other_value)

    # The parameters are the average of those after the updates that count.
    n_updates = len(with_records)
    weights = np.zeros(n_updates)
    if averaging == "ema":
        weights[:] = 0.8 ** np.arange(n_updates)[::-1]
    else:
        weights[12:] = 1.0
    weights /= weights.sum()
    for position, found in enumerate(student.network.parameters()):
        expected = sum(
            w * values[position] for w, values in zip(weights, with_records, strict=True)
        )
        torch.testing.assert_close(found, expected)


def test_the_card_says_where_the_teacher_runs_in_spite_of_a_cache(digits):
    mixed, _ = digits.distill(n_updates=2, mixing="mixup")
    assert "mixed images cannot be cached" in mixed.card.origin["teacher_cache"]
    plain, _ = digits.distill(n_updates=2)
    assert "teacher_cache" not in plain.card.origin
