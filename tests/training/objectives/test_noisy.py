"""The objective `noisy_kd`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from tests.training.objectives.trained_modules import record_created
from tests.training.scene import N_CLASSES, NOISE_MATRIX


def test_the_diagonal_of_the_noise_matrix_is_fixed_unless_it_is_learned(digits, monkeypatch):
    created = record_created("NoiseMatrix", monkeypatch)
    _, fixed = digits.distill(objective="noisy_kd")
    learns = NOISE_MATRIX | {"learns_diagonal": True}
    _, learned = digits.distill(objective="noisy_kd", noise_matrix=learns)

    np.testing.assert_allclose(fixed["diagonal"], 0.9, rtol=1e-6)

    # Every record of ten updates differs from the one before.
    steps = learned["diagonal"].diff().dropna()

    assert steps.abs().min() > 1e-4
    # Rows are distributions over the noisy labels, whether the diagonal is learned or not.
    for matrix, _ in created:
        sums = matrix().sum(dim=1)
        torch.testing.assert_close(sums, torch.ones(N_CLASSES))


def test_a_diagonal_that_is_no_better_than_chance_is_refused(digits):
    by_chance = NOISE_MATRIX | {"diagonal": 1 / N_CLASSES}
    message = r"distillation.objective 'noisy_kd': initial_diagonal must lie between 1/5"

    with pytest.raises(InputError, match=message):
        digits.distill(objective="noisy_kd", noise_matrix=by_chance)
