"""The objective `noisy_kd`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.distillation import NoisyKDParams
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.objectives.noisy import NoisyKDObjective
from tests.learning.simulated_workers import run_workers
from tests.training.objectives.trained_modules import record_created
from tests.training.scene import COMPUTE, N_CLASSES, NOISE_MATRIX


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


def test_the_matrix_takes_the_same_step_where_gradients_differ_between_workers():
    options = NoisyKDParams.model_validate({"name": "noisy_kd", "noise_matrix": NOISE_MATRIX})
    logits = torch.randn(8, N_CLASSES, generator=torch.Generator().manual_seed(0))

    def stepped(workers):
        context = SimpleNamespace(
            teacher=SimpleNamespace(n_classes=N_CLASSES),
            student=SimpleNamespace(network=lambda images: images),
            teacher_logits=lambda batch: workers.own(2 * logits.roll(1, dims=1)),
            params=SimpleNamespace(compute=COMPUTE, temperature=2.0),
            device=torch.device("cpu"),
            workers=workers,
        )
        objective = NoisyKDObjective(context, options)
        matrix = objective.checkpointed["noise_matrix"]
        for parameter in matrix.parameters():
            parameter.register_hook(lambda g: g * (1 - 3 * workers.rank))
        before = matrix().detach().clone()
        own = workers.own(logits)
        objective(Batch(images=own, rows=torch.arange(8), views=None))
        return before, matrix().detach()

    [(before, first), (_, second)] = run_workers(2, stepped)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)
