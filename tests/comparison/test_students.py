"""Students outside of the grid: the proxy of a selection, and a teacher whose logits are cached."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.selection import proxy
from pu_kd_pipeline.training import distillation


def manifest_of(images: ImageStore, origin: str, n: int | None = None) -> pd.DataFrame:
    """Return a manifest of the first n images of a store, or of all."""
    ids = images.index[["id"]].iloc[:n]
    return ids.assign(origin=origin)


def test_the_proxy_is_a_student_of_the_chosen_images_with_half_the_updates(
    inputs, blocks, monkeypatch
):
    calls = []
    distill = proxy.distill

    def recorded(*args, **kwargs):
        result = distill(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(proxy, "distill", recorded)
    labeled = manifest_of(inputs.labeled_images, "labeled")
    pool = manifest_of(inputs.pool_images, "pool", n=50)
    manifest = pd.concat([labeled, pool])
    maker = proxy.Proxy(inputs.teacher, inputs.pool_features, blocks.distillation)
    divergence = maker.divergence(manifest, inputs.labeled_images, inputs.pool_images)

    [(arguments, (student, history))] = calls
    assert arguments[0] is manifest
    n_updates = history["update"].max()
    assert n_updates == blocks.distillation.n_updates / 2

    def log_probabilities(model: Model) -> np.ndarray:
        logits = predict_logits(model, inputs.pool_images, blocks.distillation.compute)
        return logits.log_softmax(1).numpy()

    # KL(teacher || proxy), written out; the teacher's stored logits are rounded to float32.
    teacher = log_probabilities(inputs.teacher)
    difference = teacher - log_probabilities(student)
    expected = (np.exp(teacher) * difference).sum(axis=1)
    np.testing.assert_allclose(divergence, expected, rtol=1e-3, atol=1e-5)


class CountingTeacher(torch.nn.Module):
    """A network that counts its forward passes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.n_calls = 0

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        return self.network(views)


@pytest.mark.parametrize("objective", ["kd", "robust_kd"])
def test_a_teacher_that_sees_each_image_once_teaches_the_same(inputs, blocks, objective):
    manifest = manifest_of(inputs.labeled_images, "labeled")
    vectors = pd.DataFrame(np.full((2, 10), 1.0))
    changes = {"objective": objective, "n_updates": 12, "batch_size": 33}
    base = blocks.distillation.model_copy(update=changes)

    def student_of(teacher_cache: str) -> tuple[dict[str, torch.Tensor], int]:
        """Return the weights of a student, and how often its teacher was called."""
        params = base.model_copy(update={"teacher_cache": teacher_cache})
        network = CountingTeacher(inputs.teacher.network)
        teacher = Model(network, inputs.teacher.card)
        student, _ = distillation.distill(
            manifest,
            inputs.labeled_images,
            inputs.pool_images,
            teacher,
            vectors,
            params,
            name="distillation",
        )
        return student.network.state_dict(), network.n_calls

    cached, n_cached = student_of("exact")
    fresh, n_fresh = student_of("off")
    # One call per update, against the batches of 100 images in batches of 33.
    assert n_fresh - n_cached == 12 - 4
    # To the last bit: a cache must not change a result.
    for name, weights in fresh.items():
        assert torch.equal(cached[name], weights)
