"""Which images the batches of training hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.mixing import Mixing
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams
from pu_kd_pipeline.training.batches import augmented_batches
from tests.training.scene import COMPUTE, PLAIN, Scene

N_IMAGES = 200


def image_rows(scene: Scene, compute: ComputeParams = COMPUTE) -> ImageRows:
    """Return the 60 labeled images of a scene, and then its pool in reverse order."""
    of_labeled = np.arange(60)
    of_pool = np.arange(140)[::-1]
    parts = [(scene.labeled, of_labeled), (scene.pool, of_pool)]
    return ImageRows(parts, compute)


def normalization_of(scene: Scene) -> Normalize:
    cpu = torch.device("cpu")
    return normalization(scene.teacher, cpu)


@pytest.fixture
def probabilities() -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.exponential(size=N_IMAGES)
    # Images of probability zero, the first and the last one among them.
    values[[0, 7, 60, 198, 199]] = 0.0
    return values


@pytest.mark.parametrize(("padding_px", "resident_limit_gb"), [(0, 1.0), (1, 1e-9)])
def test_images_are_drawn_by_their_probability(
    digits, probabilities, padding_px, resident_limit_gb
):
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    augmentation = AugmentationParams(padding_px=padding_px, horizontal_flip=padding_px > 0)
    batches = augmented_batches(
        image_rows(digits, compute),
        normalization_of(digits),
        augmentation,
        batch_size=64,
        seed=0,
        probabilities=torch.tensor(probabilities),
    )

    rows = [batch.rows for batch in itertools.islice(batches, 250)]
    shown = torch.cat(rows)
    n_shown = len(shown)
    assert n_shown == 250 * 64

    counts = np.bincount(shown.numpy(), minlength=N_IMAGES)
    n_impossible = counts[probabilities == 0.0]
    assert (n_impossible == 0).all()

    # 4.5 standard deviations of a Poisson count: the seed is fixed, so that this cannot flake.
    expected = n_shown * probabilities / probabilities.sum()
    tolerance = 4.5 * np.sqrt(expected)
    deviation = np.abs(counts - expected)
    assert (deviation <= tolerance).all()


def test_a_batch_without_augmentation_holds_the_images_of_its_rows(digits, probabilities):
    rows = image_rows(digits)
    normalize = normalization_of(digits)
    drawn = torch.tensor(probabilities)
    batches = augmented_batches(rows, normalize, PLAIN, 64, seed=0, probabilities=drawn)

    # Rows are what the teacher cache looks up, and images what the student sees.
    for batch in itertools.islice(batches, 20):
        raw = rows.batch(batch.rows)
        expected = normalize(raw)
        assert torch.equal(batch.images, expected)


def test_without_probabilities_each_pass_shows_every_image_once(digits):
    rows = image_rows(digits)
    normalize = normalization_of(digits)
    batches = augmented_batches(rows, normalize, PLAIN, batch_size=50, seed=0)

    n_batches_a_pass = N_IMAGES // 50
    for _ in range(3):
        shown = []
        for batch in itertools.islice(batches, n_batches_a_pass):
            shown += batch.rows.tolist()
        shown.sort()
        assert shown == list(range(N_IMAGES))


SHIFTED = AugmentationParams(padding_px=1, horizontal_flip=True)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixing_changes_neither_the_images_nor_the_views_that_are_drawn(digits, kind):
    normalize = normalization_of(digits)
    mixing = Mixing(kind, alpha=1.0, share=0.5, seed=0)

    def first_batches(**options):
        batches = augmented_batches(
            image_rows(digits), normalize, SHIFTED, batch_size=32, seed=0, **options
        )
        return list(itertools.islice(batches, 12))

    plain = first_batches()
    mixed = first_batches(mixing=mixing)
    for one, other, mixture in zip(plain, mixed, mixing.mixtures(32), strict=False):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.views, other.views)
        assert other.is_mixed == (mixture is not None)
        expected = one.images
        if mixture is not None:
            expected = mixing.mix(one.images, mixture)
        assert torch.equal(other.images, expected)
    assert {batch.is_mixed for batch in mixed} == {True, False}

    # A resumed training sees the batches that follow.
    resumed = first_batches(mixing=mixing, n_passed=5)
    for one, other in zip(mixed[5:], resumed, strict=False):
        assert torch.equal(one.images, other.images)
        assert one.is_mixed == other.is_mixed
