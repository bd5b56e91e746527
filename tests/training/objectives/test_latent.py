"""The objective `latent`, with the student's own head and with the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.strided_pointwise import make_contiguous
from pu_kd_pipeline.training.objectives import latent
from tests.training.scene import (
    LATENT,
    OPTIMIZER,
    VARIANTS,
    are_equal,
    convolutions,
    own_network,
    state_of,
)


def test_the_best_student_with_a_shared_head_is_restored_before_the_head_is_folded(
    digits, monkeypatch
):
    fold = latent.fold_shared_head
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 1, 8, 8, generator=generator)
    folded = []

    @torch.no_grad()
    def fold_and_compare(student: nn.Module) -> None:
        student.eval()
        before = student(images)
        fold(student)
        student.eval()
        after = student(images)
        # A product of two matrices instead of two products: rounded differently.
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        folded.append(student)

    monkeypatch.setattr(latent, "fold_shared_head", fold_and_compare)
    # With so large a learning rate, the student is at its best before the end.
    optimizer = OPTIMIZER.model_copy(update={"learning_rate": 0.03})
    variant = {
        **VARIANTS["shared head"],
        "record_every": 1,
        "n_updates": 7,
        "optimizer": optimizer,
    }
    best, history = digits.distill(**variant)
    [kept] = history["update"][history["is_kept"]]

    assert kept < 7
    assert history["yardstick_kl"].idxmin() == kept - 1

    # Training that ends at the update of the best record must give the same student.
    until_best = {**variant, "keep": "last", "n_updates": int(kept)}
    ended_there, _ = digits.distill(**until_best)

    assert are_equal(best, ended_there)
    assert len(folded) == 2


def test_a_student_of_the_teachers_width_ends_with_the_teachers_last_layer(digits):
    options = {"width": 8}
    student, _ = digits.distill(**VARIANTS["shared head"], student_options=options, n_updates=3)
    state = state_of(student)
    of_teacher = state_of(digits.teacher)

    # Equal widths need no adapter, so that folding it changes nothing in the head.
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(state[name], of_teacher[name])

    first_layer = "block1.0.weight"

    assert not torch.equal(state[first_layer], of_teacher[first_layer])


def test_a_training_that_fails_leaves_no_hook_behind(digits):
    steep = OPTIMIZER.model_copy(update={"algorithm": "sgd", "learning_rate": 1e30})
    message = "student: the loss is nan .*: lower the learning rate"
    with pytest.raises(InputError, match=message):
        digits.distill(objective="latent", optimizer=steep, n_updates=4)

    # A hook that stays would run in every later forward pass of the teacher.
    for module in digits.teacher.network.modules():
        # Those of the network itself stay.
        assert set(module._forward_pre_hooks.values()) <= {make_contiguous}


@pytest.mark.parametrize("shared_head", [False, True])
def test_a_student_without_a_last_linear_layer_is_refused(digits, shared_head):
    message = r"distillation.objective 'latent': Sequential has no linear layer that gives 5"
    params = LATENT | {"shared_head": shared_head}

    with pytest.raises(InputError, match=message):
        digits.distill(objective="latent", latent=params, **own_network(convolutions))

    # Other objectives accept that network.
    student, _ = digits.distill(objective="noisy_kd", n_updates=1, **own_network(convolutions))

    assert list(state_of(student)) == ["0.weight", "0.bias"]
