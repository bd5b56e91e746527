"""How sure a teacher is: in the order of its probabilities, without their rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.networks.outputs import as_logits


def test_the_log_odds_are_those_of_the_largest_probability():
    logits = torch.tensor([[1.0, 3.0, 0.5], [0.0, 0.0, 0.0]])
    teacher = class_confidence(logits)
    p = 1 / (1 + math.exp(-2) + math.exp(-2.5))
    assert teacher.classes.tolist() == [1, 0]
    assert teacher.log_odds.tolist() == pytest.approx([math.log(p / (1 - p)), -math.log(2)])
    assert teacher.confidence.tolist() == pytest.approx([p, 1 / 3])
    assert teacher.classes.dtype == torch.int32
    assert teacher.confidence.dtype == torch.float32


def test_images_of_which_the_teacher_is_certain_in_float32_still_differ():
    margins = torch.linspace(20, 2000, 500)
    logits = torch.stack([margins, torch.zeros(500)], dim=1)
    teacher = class_confidence(logits)
    assert (teacher.confidence == 1).all()
    # Neither is the logarithm of 1 - p, which float64 can no longer hold at 800.
    assert (teacher.log_odds.diff() > 0).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 30))
def test_the_log_odds_order_images_as_the_confidence_does(seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(50, 4, generator=generator)
    teacher = class_confidence(logits)
    order = teacher.log_odds.argsort()
    assert (teacher.confidence[order].diff() >= 0).all()
    softmax = logits.softmax(dim=1)
    torch.testing.assert_close(teacher.confidence, softmax.amax(dim=1))


def test_a_constant_in_a_row_and_the_number_format_change_nothing():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = class_confidence(logits.double()).log_odds
    np.testing.assert_array_equal(class_confidence(logits).log_odds, expected)
    torch.testing.assert_close(class_confidence(logits.double() - 7).log_odds, expected)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_a_teacher_of_probabilities_ranks_as_one_of_logits(kind: str):
    # The largest probability is 1 in float32, the others are not 0.
    logits = torch.tensor([[30.0, 3.0, 0.0], [25.0, 0.0, 1.0], [40.0, 0.0, 0.0]])
    output = logits.log_softmax(dim=1)
    if kind == "probabilities":
        output = output.exp()
        assert (output.amax(dim=1) == 1).all()
    teacher = class_confidence(as_logits(output, None, kind))
    torch.testing.assert_close(
        teacher.log_odds, class_confidence(logits).log_odds, rtol=1e-5, atol=0
    )


def test_classes_that_the_teacher_excludes_leave_the_log_odds_finite():
    logits = torch.tensor([[1.0, -torch.inf, -torch.inf], [2.0, 1.0, -torch.inf]])
    teacher = class_confidence(logits)
    assert teacher.log_odds.isfinite().all()
    assert teacher.log_odds[1].item() == pytest.approx(1)


def test_outputs_that_are_not_numbers_stay_so():
    logits = torch.tensor([[torch.nan, 1.0], [torch.inf, torch.inf]])
    assert class_confidence(logits).log_odds.isnan().all()
