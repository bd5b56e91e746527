"""What trainings cost, and how long they can be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.pilot.costs import (
    RoundPace,
    TrainingCost,
    affordable_length,
    n_shared_views,
    round_seconds,
    step_seconds,
)
from tests.comparison.builders import block_of


def params_of(**changes) -> DistillationParams:
    return DistillationParams(**block_of("distillation", **changes))


def cost_of(n_images: int = 100, **changes) -> TrainingCost:
    params = params_of(batch_size=50, **changes)
    return TrainingCost(params, n_images, step=0.01, teacher=0.001)


def test_a_training_without_a_cache_asks_for_every_image():
    assert cost_of(teacher_cache="off").seconds(20) == pytest.approx(20 * 0.01 + 20 * 50 * 0.001)


def test_a_cache_asks_once_where_that_is_less():
    cost = cost_of(n_images=100, teacher_cache="exact")
    assert cost.seconds(20) == pytest.approx(20 * 0.01 + 100 * 0.001)
    # Two updates show 100 images: a cache of 100 saves nothing.
    assert cost.seconds(2) == pytest.approx(2 * 0.01 + 2 * 50 * 0.001)
    assert cost.seconds(20, shares_outputs=True) == pytest.approx(20 * 0.01)


def test_many_short_trainings_share_what_one_would_not_compute():
    cost = replace(cost_of(n_images=100, teacher_cache="exact"), is_for_many=True)
    assert cost.seconds(2) == pytest.approx(2 * 0.01 + 100 * 0.001)
    assert cost.seconds(2, shares_outputs=True) == pytest.approx(2 * 0.01)
    # Longer trainings are never cheaper, so that a length can be searched for.
    seconds = [cost.seconds(n) for n in range(1, 40)]
    assert seconds == sorted(seconds)


def test_random_views_are_not_shared():
    moving = {"padding_px": 1, "horizontal_flip": True}
    augmentation = {**block_of("distillation")["augmentation"], **moving}
    cost = cost_of(teacher_cache="views", cached_views=4, augmentation=augmentation)
    assert n_shared_views(cost.params) == 0
    assert cost.seconds(20, shares_outputs=True) == pytest.approx(20 * 0.01 + 400 * 0.001)
    assert n_shared_views(params_of(teacher_cache="exact")) == 1
    assert n_shared_views(params_of(teacher_cache="exact", mixing="cutmix")) == 0


def seconds_of(rounds: list[list[TrainingCost]], length: int) -> float:
    total = 0.0
    for place, of_round in enumerate(rounds):
        total += sum(cost.seconds(length * 2**place) for cost in of_round)
    return total


@pytest.mark.parametrize("seconds", [12, 30, 300])
def test_rounds_fit_into_the_time(seconds):
    rounds = [[cost_of(teacher_cache="off")] * n for n in (5, 3, 2)]
    length = affordable_length(rounds, seconds, longest=10_000)
    assert length is not None
    assert seconds_of(rounds, length) <= seconds
    # Not much less either.
    assert seconds_of(rounds, length + 20) > 0.9 * seconds


def test_the_last_round_is_no_longer_than_a_full_training():
    rounds = [[cost_of()] * 2, [cost_of()]]
    assert affordable_length(rounds, 1e6, longest=300) == 150
    assert affordable_length([[cost_of()]], 1e6, longest=300) == 300


def test_no_time_gives_no_length():
    assert affordable_length([[cost_of(teacher_cache="off")]], 0.01, longest=300) is None


def test_a_step_is_measured(inputs):
    assert 0 < step_seconds(inputs.teacher, params_of(batch_size=4)) < 10


def test_trainings_next_to_each_other_take_what_the_first_round_took():
    pace = RoundPace()
    pace.n_at_a_time = 4
    # Until it is measured, four are taken to be as slow as one.
    assert pace.share(8) == 1
    pace.observe(8, 80.0, 20.0)
    assert pace.share(8) == pytest.approx(0.25)
    # Of five similar trainings, the fifth is alone.
    assert pace.share(5) == pytest.approx(2 / 5)
    assert pace.share(1) == pytest.approx(1)
    # Where they hinder each other, that counts, too.
    pace.observe(8, 80.0, 160.0)
    assert pace.share(8) == pytest.approx(2)


def test_each_process_computes_the_outputs_that_its_trainings_share():
    cost = replace(cost_of(n_images=100, teacher_cache="exact"), is_for_many=True)
    assert round_seconds([cost] * 3, 20, 1) == pytest.approx(3 * 0.2 + 0.1)
    assert round_seconds([cost] * 3, 20, 2) == pytest.approx(3 * 0.2 + 2 * 0.1)


def test_measured_workers_allow_longer_trainings_and_unmeasured_ones_do_not():
    rounds = [[cost_of(teacher_cache="off")] * 4, [cost_of(teacher_cache="off")] * 4]
    alone = affordable_length(rounds, 3_000.0, 1_000_000)
    pace = RoundPace()
    pace.n_at_a_time = 4
    assert affordable_length(rounds, 3_000.0, 1_000_000, pace) == alone
    pace.observe(4, 10.0, 2.5)
    faster = affordable_length(rounds, 3_000.0, 1_000_000, pace)
    assert faster == pytest.approx(4 * alone, rel=0.1)
    # What was promised is kept: both rounds fit.
    assert seconds_of(rounds, faster) / 4 <= 3_000.0
