"""Which images the batches of training hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.training.batches import augmented_batches
from tests.training.scene import COMPUTE, PLAIN


@pytest.mark.parametrize(("padding_px", "resident_limit_gb"), [(0, 1.0), (1, 1e-9)])
def test_images_are_drawn_by_their_probability(digits, padding_px, resident_limit_gb):
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    parts = [(digits.labeled, np.arange(60)), (digits.pool, np.arange(140)[::-1])]
    rows = ImageRows(parts, compute)
    probabilities = np.random.default_rng(3).exponential(size=200)
    # Images of probability zero, the first and the last one among them.
    probabilities[[0, 7, 60, 198, 199]] = 0.0
    normalize = normalization(digits.teacher, torch.device("cpu"))
    augmentation = AugmentationParams(padding_px=padding_px, horizontal_flip=padding_px > 0)
    batches = augmented_batches(
        rows,
        normalize,
        augmentation,
        batch_size=64,
        seed=0,
        probabilities=torch.tensor(probabilities),
    )
    taken = list(itertools.islice(batches, 250))
    shown = torch.cat([batch.rows for batch in taken])
    counts = np.bincount(shown.numpy(), minlength=200)
    expected = len(shown) * probabilities / probabilities.sum()

    assert len(shown) == 250 * 64
    assert (counts[probabilities == 0.0] == 0).all()
    # 4.5 standard deviations of a Poisson count: the seed is fixed, so that this cannot flake.
    assert (np.abs(counts - expected) <= 4.5 * np.sqrt(expected)).all()
    if padding_px == 0:
        for batch in taken[:20]:
            assert torch.equal(batch.images, normalize(rows.batch(batch.rows)))


def test_without_probabilities_each_pass_shows_every_image_once(digits):
    parts = [(digits.labeled, np.arange(60)), (digits.pool, np.arange(140))]
    normalize = normalization(digits.teacher, torch.device("cpu"))
    rows = ImageRows(parts, COMPUTE)
    batches = augmented_batches(rows, normalize, PLAIN, batch_size=50, seed=0)

    n_batches_a_pass = 200 // 50
    for _ in range(3):
        shown = []
        for batch in itertools.islice(batches, n_batches_a_pass):
            shown += batch.rows.tolist()
        assert sorted(shown) == list(range(200))
