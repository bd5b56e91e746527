"""What trainings cost, and how long they can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pu_kd_pipeline.engines import shards
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.pilot import costs
from pu_kd_pipeline.pilot.costs import (
    RoundCost,
    RoundPace,
    TrainingCost,
    affordable_length,
    n_shared_views,
    next_length,
    round_cost,
    step_seconds,
)
from tests.comparison.builders import block_of
from tests.engines.works import engine_of


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


def test_where_not_all_rounds_fit_there_are_fewer():
    rounds = [[cost_of(teacher_cache="off")] * n for n in (5, 3, 2)]
    # Enough for two rounds of the shortest trainings, and not for three.
    seconds = 1.05 * seconds_of(rounds[:2], 10)
    assert affordable_length(rounds, seconds, longest=10_000) is None
    assert next_length(rounds, seconds, longest=10_000) == 10
    # With more time, for as many rounds as fit.
    assert next_length(rounds, 300, 10_000) == affordable_length(rounds, 300, 10_000)
    alone = 0.9 * seconds_of(rounds[:1], 10)
    assert next_length(rounds, alone, longest=10_000) is None


def test_a_step_is_measured(inputs):
    assert 0 < step_seconds(inputs.teacher, params_of(batch_size=4)) < 10


def trainings_of(n: int, seconds: float) -> RoundCost:
    """Return the cost of trainings that share nothing, one after the other."""
    return RoundCost(n, trainings=seconds, outputs=0.0)


def pace_of(n_at_a_time: int = 4, kind: str = "processes", **changes: Any) -> RoundPace:
    return RoundPace(engine_of(kind, **changes), n_at_a_time, n_threads=1)


def test_trainings_next_to_each_other_take_what_the_first_round_took():
    pace = pace_of(n_at_a_time=4)
    # Until it is measured, four are taken to be as slow as one.
    assert pace.seconds(trainings_of(8, 80.0)) == 80.0
    pace.observe(trainings_of(8, 80.0), 20.0)
    assert pace.seconds(trainings_of(8, 80.0)) == pytest.approx(0.25 * 80.0)
    # Of five similar trainings, the fifth is alone.
    assert pace.seconds(trainings_of(5, 80.0)) == pytest.approx(2 / 5 * 80.0)
    # Where they hinder each other, that counts, too.
    pace.observe(trainings_of(8, 80.0), 160.0)
    assert pace.seconds(trainings_of(8, 80.0)) == pytest.approx(2 * 80.0)


def test_a_single_worker_is_observed_and_this_process_is_not():
    elsewhere = pace_of(n_at_a_time=1)
    elsewhere.observe(trainings_of(3, 30.0), 60.0)
    assert elsewhere.seconds(trainings_of(3, 30.0)) == pytest.approx(60.0)
    here = RoundPace()
    here.observe(trainings_of(3, 30.0), 60.0)
    assert here.seconds(trainings_of(3, 30.0)) == 30.0
    # No engine sends a single training to another process of this machine.
    assert elsewhere.seconds(trainings_of(1, 30.0)) == 30.0


def test_the_outputs_that_trainings_share_are_counted_once():
    cost = replace(cost_of(n_images=100, teacher_cache="exact"), is_for_many=True)
    of_round = round_cost([cost] * 3, 20)
    assert of_round.trainings == pytest.approx(3 * 0.2)
    assert of_round.outputs == pytest.approx(0.1)
    # Also where the first training shares none.
    mixed = replace(cost, params=params_of(batch_size=50, mixing="cutmix"))
    assert round_cost([mixed, cost], 20).outputs == pytest.approx(0.1)


OF_ROUND = RoundCost(8, trainings=40.0, outputs=100.0)


def test_this_process_keeps_the_outputs_and_workers_compute_them_in_every_round():
    here = RoundPace()
    assert here.seconds(OF_ROUND) == 140.0
    assert here.seconds(OF_ROUND, has_outputs=True) == 40.0
    elsewhere = pace_of(kind="ray", address="head:6379")
    assert elsewhere.seconds(OF_ROUND, has_outputs=True) == 140.0


@pytest.mark.parametrize(
    ("kind", "address", "n_workers", "n_cpus", "seconds"),
    [
        ("processes", None, 4, 4, 140.0),
        # Two workers share a CPU.
        ("processes", None, 4, 2, 240.0),
        ("processes", None, 1, 2, 140.0),
        # A cluster that is started on this machine has no other CPUs.
        ("ray", None, 4, 2, 240.0),
        ("ray", "head:6379", 4, 2, 140.0),
    ],
)
def test_workers_compute_the_outputs_at_once_where_each_has_a_cpu(
    monkeypatch, kind, address, n_workers, n_cpus, seconds
):
    set_cpus(monkeypatch, n_cpus)
    assert pace_of(n_workers, kind, address=address).seconds(OF_ROUND) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("kind", "address", "seconds"),
    [("processes", None, 440.0), ("ray", "head:6379", 840.0)],
)
def test_workers_with_fewer_threads_than_this_process_need_longer(
    monkeypatch, kind, address, seconds
):
    set_cpus(monkeypatch, 8)
    # Torch's choice: all CPUs here, a fourth of them for each process, and one for a Ray actor.
    monkeypatch.setattr(costs.torch, "get_num_threads", lambda: 8)
    pace = RoundPace(engine_of(kind, address=address), n_at_a_time=4, n_threads=None)
    assert pace.seconds(OF_ROUND) == pytest.approx(seconds)


def set_cpus(monkeypatch: pytest.MonkeyPatch, n_cpus: int) -> None:
    for module in (costs, shards):
        monkeypatch.setattr(module, "n_own_cpus", lambda: n_cpus)


def test_a_slow_teacher_leaves_time_for_workers_with_their_own_cpus(monkeypatch):
    set_cpus(monkeypatch, 8)
    of_training = replace(cost_of(n_images=1000, teacher_cache="exact"), is_for_many=True)
    slow = replace(of_training, teacher=0.1)
    rounds = [[slow] * 6, [slow] * 4, [slow] * 3]
    # The outputs take 100 seconds: all rounds of workers need 300.
    alone = affordable_length(rounds, 400.0, 1_000_000)
    assert alone is not None
    for n_workers in (1, 2, 4, 8):
        pace = pace_of(n_workers)
        assert affordable_length(rounds, 290.0, 1_000_000, pace) is None
        # With the time that the outputs take in addition, rounds are as long as in one process.
        assert affordable_length(rounds, 600.0, 1_000_000, pace) == alone


def test_measured_workers_allow_longer_trainings_and_unmeasured_ones_do_not():
    rounds = [[cost_of(teacher_cache="off")] * 4, [cost_of(teacher_cache="off")] * 4]
    alone = affordable_length(rounds, 3_000.0, 1_000_000)
    pace = pace_of(n_at_a_time=4)
    assert affordable_length(rounds, 3_000.0, 1_000_000, pace) == alone
    pace.observe(trainings_of(4, 10.0), 2.5)
    faster = affordable_length(rounds, 3_000.0, 1_000_000, pace)
    assert faster == pytest.approx(4 * alone, rel=0.1)
    # What was promised is kept: both rounds fit.
    assert seconds_of(rounds, faster) / 4 <= 3_000.0
