"""The objectives of logits against a training loop written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import find_rows
from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.losses.distillation import (
    kd,
    logit_mse,
    robust_kd,
    standardized_kd,
)
from pu_kd_pipeline.training.batches import augmented_batches
from tests.training.scene import COMPUTE, OPTIMIZER, PLAIN, are_equal, three_weight_vectors


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        ("kd", kd),
        ("robust_kd", robust_kd),
        ("standardized_kd", standardized_kd),
        ("logit_mse", logit_mse),
    ],
)
def test_a_loss_of_logits_is_the_plain_loop(digits, objective, loss):
    """To the last bit, though the teacher's logits are computed before training."""
    params = digits.params(objective=objective, n_updates=12)
    student, history = digits.distill(objective=objective, n_updates=12)
    # Labeled images first, as in training, so that equal positions are equal images.
    parts = []
    manifest = digits.manifest
    for origin, store in digits.stores.items():
        is_of_store = manifest["origin"] == origin
        ids = manifest["id"][is_of_store].to_numpy()
        rows = find_rows(store, ids, "manifest")
        parts.append((store, rows))

    weights = three_weight_vectors().to_numpy()
    vectors = torch.tensor(weights, dtype=torch.float32)
    expected = digits.fresh()
    network = expected.network.train()
    optimizer = make_optimizer(network, **OPTIMIZER.model_dump(exclude={"schedule"}))
    batches = augmented_batches(
        ImageRows(parts, COMPUTE),
        normalization(digits.teacher, torch.device("cpu")),
        PLAIN,
        params.batch_size,
        params.seed,
    )

    for batch in itertools.islice(batches, params.n_updates):
        with torch.no_grad():
            teacher_logits = digits.teacher.network(batch.images)
        logits = network(batch.images)
        values = loss(logits, teacher_logits, vectors, params.temperature)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()

    assert are_equal(student, expected)

    of_the_loop = {
        "update",
        "learning_rate",
        "training_agreement",
        "is_kept",
        "yardstick_agreement",
        "yardstick_kl",
    }

    assert set(values) == set(history.columns) - of_the_loop


def test_the_history_of_robust_kd_has_the_losses_it_is_compared_with(digits):
    _, history = digits.distill(objective="robust_kd", n_updates=10)

    # The loss is the largest over the weight vectors, and the estimated one is among them.
    margin = history["loss"] - history["estimated_weights_loss"]
    assert (margin >= 0).all()
    is_finite = np.isfinite(history["kd_loss"])
    assert is_finite.all()
