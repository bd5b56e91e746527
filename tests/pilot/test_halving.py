"""Rounds of short trainings of real networks."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison import pool_scores
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.engines.current import set_shared_folder
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.params.comparison import ComparisonVariant
from pu_kd_pipeline.params.engine import EngineParams
from pu_kd_pipeline.params.pilot import CONTROLS, PRESENT, PilotParams
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.pilot import halving, study
from pu_kd_pipeline.pilot.halving import Candidates, Halving, Outcome, measured_images
from pu_kd_pipeline.pilot.sample import PoolSample, draw_sample
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from tests.comparison.builders import BASE, block_of
from tests.engines.works import engine_of
from tests.pilot.conftest import NO_COPIES, trial_inputs

SHORT_BLOCKS = BASE
# Lengths may not be above those of a full training.
LONG_BLOCKS = replace(BASE, distillation=BASE.distillation.model_copy(update={"n_updates": 100}))
NARROW = {"seed": 0, "minutes": 5, "max_pool_images": 1500, "yardstick_share": 0.3}


def params_of(**changes: Any) -> PilotParams:
    return PilotParams(**{**block_of("pilot"), **NARROW, **changes})


# Without a PU classifier, which takes the longest.
ONE_ROUND = params_of(n_rounds=1, lengths=[10], candidates={"confident": {"rule": "confident"}})


@pytest.fixture(scope="session")
def sample(inputs: ComparisonInputs) -> PoolSample:
    compute = BASE.distillation.compute
    return draw_sample(inputs.pool_images, inputs.teacher, compute, params_of(), n_views=1)


def halving_of(
    inputs: ComparisonInputs,
    sample: PoolSample,
    params: PilotParams,
    seconds: float = 300.0,
    blocks=None,
) -> Halving:
    read = trial_inputs(inputs, blocks or LONG_BLOCKS)
    measured = measured_images(read, sample, params)
    candidates = Candidates(params.chosen, CONTROLS)
    return Halving(read, sample, measured, candidates, params, time.perf_counter() + seconds)


@pytest.fixture(scope="session")
def outcome(inputs: ComparisonInputs, sample: PoolSample) -> Outcome:
    params = params_of(n_rounds=3, lengths=[10, 20, 40])
    return halving_of(inputs, sample, params).run()


def test_a_sample_is_the_beginning_of_one_order(inputs, sample):
    compute = BASE.distillation.compute
    small = params_of(max_pool_images=300)
    fewer = draw_sample(inputs.pool_images, inputs.teacher, compute, small, n_views=1)
    other = draw_sample(
        inputs.pool_images, inputs.teacher, compute, params_of(seed=1, max_pool_images=300), 1
    )
    ids = set(sample.images.index["id"])
    assert len(ids) == 1500
    assert set(fewer.images.index["id"]) < ids
    assert set(other.images.index["id"]) != set(fewer.images.index["id"])
    assert sample.pace.teacher > 0


def test_features_of_a_sample_are_those_of_the_pool(inputs, sample):
    whole = inputs.pool_features
    ids = np.concatenate([table["id"].to_pandas().to_numpy() for table in whole.shards(["id"])])
    places = pd.Index(ids).get_indexer(sample.images.index["id"])
    np.testing.assert_allclose(
        sample.features.arrays("logits"), whole.arrays("logits")[places], atol=1e-5
    )


def test_each_round_has_half_of_the_candidates(outcome):
    names = {
        number: [trial.candidate for trial in outcome.trials if trial.round == number]
        for number in (1, 2, 3)
    }
    assert outcome.present == "mixture"
    everything = {"mixture", "mixture_outputs", "nnpu", "confident", "mixture_labeled_30"}
    assert set(names[1]) == everything | set(CONTROLS)
    # The present parameters and the controls stay; of the four others two, and then one.
    assert len(names[2]) == 2 + 1 + 3
    assert len(names[3]) == 1 + 1 + 3
    assert set(names[3]) < set(names[2]) < set(names[1])
    lengths = {trial.round: trial.n_updates for trial in outcome.trials}
    assert lengths == {1: 10, 2: 20, 3: 40}
    assert outcome.note is None


def test_those_stay_that_are_closest_to_the_teacher(outcome):
    halved = [
        trial
        for trial in outcome.trials
        if trial.round == 1 and not trial.is_control and trial.candidate != outcome.present
    ]
    halved.sort(key=lambda trial: trial.kl)
    second = {trial.candidate for trial in outcome.trials if trial.round == 2}
    assert {trial.candidate for trial in halved[:2]} <= second
    assert not {trial.candidate for trial in halved[2:]} & second


def test_students_are_measured_on_images_that_none_learns_from(outcome, sample):
    measured = set(outcome.yardstick.table["id"])
    assert len(measured) >= 20
    for trial in outcome.trials:
        assert trial.failure is None
        assert len(trial.is_equal) == len(outcome.yardstick)
        assert 0 <= trial.agreement <= 1
        assert trial.kl >= 0
    whole = next(trial for trial in outcome.trials if trial.candidate == "whole_pool")
    assert whole.n_pool_images == len(sample.images) - len(
        measured & set(sample.images.index["id"])
    )


def test_trials_are_the_same_again(inputs, sample, outcome):
    again = halving_of(inputs, sample, params_of(n_rounds=1, lengths=[10])).run()
    first = {trial.candidate: trial for trial in outcome.trials if trial.round == 1}
    for trial in again.trials:
        np.testing.assert_array_equal(trial.divergence, first[trial.candidate].divergence)


def test_present_parameters_join_where_no_candidate_has_them(inputs, sample):
    blocks = replace(
        LONG_BLOCKS,
        subset_materialization=BASE.subset_materialization.model_copy(update={"rule": "retrieved"}),
    )
    params = params_of(n_rounds=1, lengths=[10], candidates={"confident": {"rule": "confident"}})
    outcome = halving_of(inputs, sample, params, blocks=blocks).run()
    assert outcome.present == PRESENT
    assert {trial.candidate for trial in outcome.trials} == {"confident", PRESENT, *CONTROLS}


def test_a_candidate_that_fails_is_left_out(inputs, sample, monkeypatch):
    measure = halving.closeness

    def refuse(*_: Any) -> Any:
        raise FloatingPointError("the student's divergence from the teacher is nan")

    params = params_of(
        n_rounds=2,
        lengths=[10, 20],
        candidates={"mixture": {"rule": "mixture"}, "confident": {"rule": "confident"}},
    )
    study_of = halving_of(inputs, sample, params)
    calls = 0

    def first_fails(*logits: Any) -> Any:
        nonlocal calls
        calls += 1
        return refuse() if calls == 1 else measure(*logits)

    monkeypatch.setattr(halving, "closeness", first_fails)
    outcome = study_of.run()
    failed = [trial for trial in outcome.trials if trial.failure]
    assert [trial.candidate for trial in failed] == ["confident"]
    assert "nan" in failed[0].failure
    assert "confident" not in {trial.candidate for trial in outcome.trials if trial.round == 2}

    monkeypatch.setattr(halving, "closeness", refuse)
    with pytest.raises(InputError, match="no candidate has a student"):
        halving_of(inputs, sample, params).run()


def test_a_store_that_fails_for_a_moment_is_no_failure_of_a_candidate(inputs, sample, monkeypatch):
    def unavailable(*_: Any) -> Any:
        raise UnavailableError("s3://images cannot be read now")

    halved = halving_of(inputs, sample, ONE_ROUND)
    with monkeypatch.context() as patch:
        patch.setattr(halving, "closeness", unavailable)
        with pytest.raises(UnavailableError, match="cannot be read now"):
            halved.run()

    # Also before the rounds, where all scores are made.
    read_outputs = pool_scores.read_outputs
    calls = []

    def unavailable_at_first(*outputs: Any) -> Any:
        calls.append(outputs)
        return unavailable() if len(calls) == 1 else read_outputs(*outputs)

    monkeypatch.setattr(pool_scores, "read_outputs", unavailable_at_first)
    with pytest.raises(UnavailableError, match="cannot be read now"):
        halving_of(inputs, sample, ONE_ROUND).run()


def test_an_error_without_a_message_is_reported_by_its_name(inputs, sample, monkeypatch):
    def refuse(*_: Any) -> Any:
        raise FloatingPointError

    monkeypatch.setattr(halving, "closeness", refuse)
    with pytest.raises(InputError, match=r"no candidate has a student\. FloatingPointError"):
        halving_of(inputs, sample, ONE_ROUND).run()


def test_lengths_follow_the_time(inputs, sample):
    params = params_of(n_rounds=2, candidates={"mixture": {"rule": "mixture"}})
    blocks = replace(BASE, distillation=BASE.distillation.model_copy(update={"n_updates": 100_000}))
    quick = halving_of(inputs, sample, params, seconds=20, blocks=blocks)
    outcome = quick.run()
    lengths = sorted({trial.n_updates for trial in outcome.trials})
    assert lengths[-1] < 100_000
    # Each training of the last round is longer, unless the time was over before.
    assert len(lengths) == 2 or "rounds" in (outcome.note or "")

    with pytest.raises(InputError, match="too short for a single round"):
        halving_of(inputs, sample, params, seconds=0.0).run()


def test_the_engine_is_named_where_its_workers_leave_no_time(inputs, sample):
    read = replace(trial_inputs(inputs, LONG_BLOCKS), engine=engine_of("processes"))
    measured = measured_images(read, sample, ONE_ROUND)
    candidates = Candidates(ONE_ROUND.chosen, {})
    halved = Halving(read, sample, measured, candidates, params_of(), time.perf_counter())
    with pytest.raises(InputError, match="With engine.kind processes, each worker computes"):
        halved.run()


def test_an_audit_of_the_pool_is_not_that_of_the_sample(inputs, sample):
    audited = BASE.pu_training.model_copy(update={"class_prior": "audit"})
    blocks = replace(LONG_BLOCKS, pu_training=audited)
    params = params_of(n_rounds=1, lengths=[10], candidates={"mixture": {"rule": "mixture"}})
    outcome = halving_of(inputs, sample, params, blocks=blocks).run()
    assert "estimated on the sample" in outcome.note
    assert outcome.pool.class_prior["method"] != "audit"


def test_a_round_without_any_student_leaves_those_before(inputs, sample, monkeypatch):
    params = params_of(n_rounds=2, lengths=[10, 20], candidates={"mixture": {"rule": "mixture"}})
    halved = halving_of(inputs, sample, params)
    measure = halving.closeness
    calls = 0

    def fails_in_the_second_round(*logits: Any) -> Any:
        nonlocal calls
        calls += 1
        # One candidate and three controls have a student in the first one.
        if calls > 4:
            raise FloatingPointError("the student's divergence from the teacher is nan")
        return measure(*logits)

    monkeypatch.setattr(halving, "closeness", fails_in_the_second_round)
    outcome = halved.run()
    assert {trial.round for trial in outcome.trials} == {1}
    assert "In round 2 no candidate has a student" in outcome.note


def test_lengths_above_the_full_training_are_refused(inputs, sample):
    params = params_of(n_rounds=1, lengths=[1000])
    with pytest.raises(InputError, match=r"pilot\.lengths: 1,000 updates are more than the 8"):
        halving_of(inputs, sample, params, blocks=SHORT_BLOCKS)


def test_a_candidate_that_cuts_by_held_out_ranks_has_them(inputs, sample):
    cut = {"rule": "nnpu", "criterion": "precision"}
    params = params_of(n_rounds=1, lengths=[10], candidates={"cut": cut})
    folds = BASE.pu_training.model_copy(update={"held_out_folds": 2})
    blocks = replace(LONG_BLOCKS, pu_training=folds)
    trial = halving_of(inputs, sample, params, blocks=blocks).run().trials[0]
    assert trial.candidate == "cut"
    assert "held" not in (trial.failure or "")


def test_a_faulty_candidate_is_named(inputs, sample):
    variant = ComparisonVariant(rule="mixture", distillation={"labeled_share": 7})
    params = params_of().model_copy(update={"candidates": {"wrong": variant}})
    with pytest.raises(InputError, match=r"pilot\.candidates\.wrong\.distillation\.labeled_share"):
        halving_of(inputs, sample, params)


def test_a_budget_near_the_size_of_the_sample_is_named(inputs, sample):
    variants = {
        "most": ComparisonVariant(rule="confident", budget=1000),
        "few": ComparisonVariant(rule="confident", budget=100),
    }
    params = params_of(n_rounds=1, lengths=[10]).model_copy(update={"candidates": variants})
    note = halving_of(inputs, sample, params).run().note
    assert "With its budget, most kept more than half of the 1,500 sampled images" in note
    assert "few" not in note


def test_too_few_measured_images_are_refused(inputs):
    compute = BASE.distillation.compute
    params = params_of(max_pool_images=20, yardstick_share=0.01)
    small = draw_sample(inputs.pool_images, inputs.teacher, compute, params, n_views=1)
    with pytest.raises(InputError, match="fewer than 20 tell nothing"):
        halving_of(inputs, small, params)


def test_a_small_yardstick_takes_more_of_the_related_images(inputs, sample):
    few = params_of(yardstick_share=0.02)
    yardstick = YardstickParams(**block_of("yardstick"))
    read = trial_inputs(inputs, LONG_BLOCKS)
    drawn = yardstick.model_copy(update={"max_share": 0.02, "seed": 0})
    by_parameters = choose_yardstick(
        inputs.labeled_images,
        sample.images,
        inputs.labeled_features,
        sample.features,
        inputs.teacher,
        NO_COPIES,
        drawn,
    )
    assert len(by_parameters) < 40
    assert len(measured_images(read, sample, few)) > len(by_parameters)
    # Where it is large enough, the parameter decides.
    enough = params_of(yardstick_share=0.3)
    share = yardstick.model_copy(update={"max_share": 0.3, "seed": 0})
    measured = measured_images(read, sample, enough)
    assert len(measured) >= 40
    assert measured.attrs["max_share"] == share.max_share


def test_a_pilot_is_judged(inputs, sample):
    params = params_of(n_rounds=2, lengths=[10, 20])
    table = study.run_trials(trial_inputs(inputs, LONG_BLOCKS), params)
    found = study.judge_trials(table, LONG_BLOCKS, params)
    costs = found["costs"]
    assert costs["n_pool"] == 3050
    assert costs["n_sampled"] == 1500
    assert costs["peak_bytes"] > 1e8
    forecast = found["forecast"]
    assert forecast["total_seconds"] == pytest.approx(sum(forecast["seconds"].values()))
    assert all(seconds >= 0 for seconds in forecast["seconds"].values())
    assert found["judgment"]["longest_trial"] == 20
    assert found["judgment"]["headroom"] is not None


def test_labels_are_needed(inputs):
    nothing = ImageSubset.of(inputs.labeled_images, np.empty(0, dtype=np.int64))
    with pytest.raises(InputError, match="pilot: students need labeled images"):
        study.run_trials(
            replace(trial_inputs(inputs, LONG_BLOCKS), labeled_images=nothing), params_of()
        )
    small = ImageSubset.of(inputs.pool_images, np.arange(5))
    with pytest.raises(InputError, match="short trainings need 10"):
        draw_sample(small, inputs.teacher, BASE.distillation.compute, params_of(), n_views=1)


def test_trials_are_the_same_whoever_trains(inputs, sample):
    changed_ns = inputs.pool_images.folder.stat().st_mtime_ns
    params = params_of(
        n_rounds=1,
        lengths=[10],
        candidates={"mixture": {"rule": "mixture"}, "confident": {"rule": "confident"}},
    )
    measured = measured_images(trial_inputs(inputs, LONG_BLOCKS), sample, params)
    candidates = Candidates(params.chosen, {"random": CONTROLS["random"]})
    outcomes = {}
    for kind in ("local", "processes"):
        read = replace(trial_inputs(inputs, LONG_BLOCKS), engine=engine_of(kind))
        deadline = time.perf_counter() + 300
        outcomes[kind] = Halving(read, sample, measured, candidates, params, deadline).run()

    local, others = outcomes["local"], outcomes["processes"]
    # In the order of the candidates, and not in that in which they were finished.
    names = [trial.candidate for trial in local.trials]
    assert names == ["confident", "mixture", "random"]
    assert [trial.candidate for trial in others.trials] == names
    for trial, same in zip(others.trials, local.trials, strict=True):
        assert trial.failure is None
        assert trial.n_pool_images == same.n_pool_images
        np.testing.assert_array_equal(trial.divergence, same.divergence)
        np.testing.assert_array_equal(trial.is_equal, same.is_equal)
    assert others.n_at_a_time == 2
    # Of the processes that trained, which the forecast of memory needs.
    assert others.peak_bytes > 1e8
    assert others.cpu_seconds > 0
    assert (local.n_at_a_time, local.peak_bytes, local.cpu_seconds) == (1, 0, 0)
    # The store is only read: another run may read it, too, or nobody may write to it.
    assert inputs.pool_images.folder.stat().st_mtime_ns == changed_ns


def test_workers_are_started_from_the_folder_of_the_node(inputs, sample, tmp_path, monkeypatch):
    shared = tmp_path / "node"
    store = inputs.pool_images.folder
    changed_ns = store.stat().st_mtime_ns
    elsewhere = Elsewhere()
    monkeypatch.setattr(halving, "map_shards", elsewhere)
    set_shared_folder(shared)
    try:
        halving_of(inputs, sample, ONE_ROUND).run()
    finally:
        set_shared_folder(None)
    halving_of(inputs, sample, ONE_ROUND).run()

    assert elsewhere.folders[0] == shared
    assert elsewhere.folders[1] not in (shared, store)
    assert not elsewhere.folders[1].exists()
    # A store that is only read is not written to.
    assert store.stat().st_mtime_ns == changed_ns


class Elsewhere:
    """Stands for workers in other processes, without starting any.

    Attributes:
        folders: that the work was sent through.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(
        self, work: Any, arguments: dict[str, Any], _: EngineParams, folder: Path
    ) -> Iterator[tuple[str, Any]]:
        assert folder.is_dir()
        self.folders.append(folder)
        received = pickle.loads(pickle.dumps(work))
        for name, argument in arguments.items():
            yield name, received(name, argument)


@pytest.mark.parametrize("teacher_cache", ["exact", "off"])
def test_no_worker_trains_a_pu_classifier_again(inputs, sample, monkeypatch, teacher_cache):
    n_trained = 0
    train_head = pool_scores.train_head

    def counted(*arguments: Any) -> Any:
        nonlocal n_trained
        n_trained += 1
        return train_head(*arguments)

    distillation = LONG_BLOCKS.distillation.model_copy(update={"teacher_cache": teacher_cache})
    blocks = replace(LONG_BLOCKS, distillation=distillation)
    params = params_of(n_rounds=2, lengths=[10, 20], candidates={"nnpu": {"rule": "nnpu"}})
    halved = halving_of(inputs, sample, params, blocks=blocks)
    monkeypatch.setattr(halving, "map_shards", Elsewhere())
    monkeypatch.setattr(pool_scores, "train_head", counted)
    halved.run()
    assert n_trained == 1
