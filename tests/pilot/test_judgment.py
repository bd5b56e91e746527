"""What the trials of a pilot are taken to show."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pu_kd_pipeline.params.comparison import ComparisonVariant
from pu_kd_pipeline.params.given import parse_given
from pu_kd_pipeline.pilot.judgment import (
    GAIN,
    NOTHING,
    UNKNOWN,
    Judgment,
    lead_lasts,
    recommended_parameters,
    trial_facts,
)
from pu_kd_pipeline.pilot.study import command_with
from pu_kd_pipeline.pilot.trials import trials_of, trials_table
from tests.pilot.conftest import make_trial


def judged(trials, present="mixture", n_updates=400, least_gain=0.01):
    return Judgment(trials, present, n_updates, least_gain).facts()


def test_a_large_gain_over_both_controls_is_one(three_rounds):
    facts = judged(three_rounds(mixture=0.8, nnpu=0.7, random=0.5, whole_pool=0.6))
    assert facts["verdict"] == GAIN
    assert facts["leader"] == "mixture"
    assert facts["limiting_control"] == "whole_pool"
    assert facts["gains"]["whole_pool"]["measured"]["value"] == pytest.approx(0.2)
    assert facts["gains"]["whole_pool"]["forecast"]["lower"] > 0
    assert facts["headroom"] is None


def test_a_gain_over_random_images_alone_is_none(three_rounds):
    facts = judged(three_rounds(mixture=0.8, random=0.5, whole_pool=0.81))
    assert facts["verdict"] != GAIN
    assert facts["limiting_control"] == "whole_pool"


def test_a_small_difference_cannot_be_told(three_rounds):
    facts = judged(three_rounds(mixture=0.80, random=0.79, whole_pool=0.79))
    assert facts["verdict"] == UNKNOWN
    assert facts["recommended"] == "mixture"


def test_a_loss_against_the_whole_pool_recommends_it(three_rounds):
    facts = judged(three_rounds(mixture=0.5, random=0.4, whole_pool=0.8))
    assert facts["verdict"] == NOTHING
    assert facts["recommended"] == "whole_pool"


def test_a_candidate_that_is_closer_stays_where_the_gain_is_none(three_rounds):
    trials = three_rounds(mixture=0.9, random=0.5, whole_pool=0.9)
    assert judged(trials, least_gain=0.5)["verdict"] == NOTHING
    assert judged(trials, least_gain=0.5)["recommended"] == "whole_pool"
    closer = [
        replace(trial, divergence=trial.divergence / 2) if trial.candidate == "mixture" else trial
        for trial in trials
    ]
    assert judged(closer, least_gain=0.5)["verdict"] == NOTHING
    assert judged(closer, least_gain=0.5)["recommended"] == "mixture"


def test_a_control_that_catches_up_makes_the_gain_unknown(three_rounds):
    trials = [
        make_trial("mixture", number, agreement) for number, agreement in ((1, 0.7), (2, 0.7))
    ]
    trials.append(make_trial("mixture", 3, 0.7))
    for number, agreement in ((1, 0.2), (2, 0.4), (3, 0.6)):
        trials.append(make_trial("whole_pool", number, agreement, is_control=True))
    short = judged(trials, n_updates=400)
    long = judged(trials, n_updates=20_000)
    assert short["verdict"] == GAIN
    assert long["verdict"] == UNKNOWN
    gain = long["gains"]["whole_pool"]["forecast"]
    assert gain["lower"] < 0 < gain["upper"]


def test_present_parameters_stay_unless_another_is_surely_better(three_rounds):
    clear = three_rounds(mixture=0.6, nnpu=0.8, random=0.4, whole_pool=0.4)
    assert judged(clear)["leader"] == "nnpu"
    assert judged(clear)["recommended"] == "nnpu"

    # Better in the end, and worse before: trainings vary.
    mixed = [trial for trial in clear if trial.round == 3]
    for number in (1, 2):
        mixed.append(make_trial("mixture", number, 0.55))
        mixed.append(make_trial("nnpu", number, 0.5))
    assert judged(mixed)["leader"] == "nnpu"
    assert judged(mixed)["recommended"] == "mixture"

    close = three_rounds(mixture=0.700, nnpu=0.7025, random=0.4, whole_pool=0.4)
    rival = judged(close)["rivals"][0]
    assert not rival["is_distinguished"]
    assert judged(close)["recommended"] == "mixture"


def test_a_lead_that_shrinks_from_round_to_round_recommends_nothing_new():
    # Few images are learned quickly: what a pilot on hidden images saw (docs/results/pilot.md).
    mixture = (0.3, 0.35, 0.55)
    lengths = {
        trial.round: trial.n_updates
        for trial in (make_trial("any", 2, 0.5), make_trial("any", 3, 0.5))
    }

    def trials_with(confident):
        trials = []
        for number, (own, other) in enumerate(zip(confident, mixture, strict=True), start=1):
            trials.append(make_trial("confident", number, own))
            trials.append(make_trial("mixture", number, other))
        return trials

    shrinking = trials_with((0.45, 0.75, 0.70))
    growing = trials_with((0.35, 0.45, 0.70))
    long = 16 * lengths[3]
    assert judged(shrinking, n_updates=long)["leader"] == "confident"
    assert judged(shrinking, n_updates=long)["lead_fades"]
    assert judged(shrinking, n_updates=long)["recommended"] == "mixture"
    assert not judged(growing, n_updates=long)["lead_fades"]
    assert judged(growing, n_updates=long)["recommended"] == "confident"
    # A full training that is hardly longer leaves some of the lead.
    soon = judged(shrinking, n_updates=lengths[3] + 1)
    assert not soon["lead_fades"]
    assert soon["recommended"] == "confident"


@pytest.mark.parametrize(
    ("leads", "n_updates", "lasts"),
    [
        ((0.20, 0.10), 800, False),  # 0.1 nats less per doubling: none is left after one more
        ((0.20, 0.11), 800, True),
        ((0.10, 0.10), 10**6, True),
        ((0.10, 0.20), 10**6, True),
        ((0.20, 0.01), 400, True),  # the full training is as long as the last round
    ],
)
def test_a_lead_is_continued_over_the_logarithm_of_the_updates(leads, n_updates, lasts):
    trials = []
    for number, (lead, length) in enumerate(zip(leads, (200, 400), strict=True), start=1):
        trial = make_trial("first", number, 0.5)
        n = len(trial.divergence)
        trials.append(replace(trial, n_updates=length, divergence=np.full(n, 1.0 - lead)))
        other = replace(trial, candidate="second", divergence=np.ones(n))
        trials.append(replace(other, n_updates=length))
    assert lead_lasts(trials, "first", "second", n_updates) == lasts


def test_one_round_tells_nothing_apart_and_nothing_of_longer_trainings(three_rounds):
    trials = three_rounds(mixture=0.5, nnpu=0.9, random=0.3, whole_pool=0.3)
    one_round = [trial for trial in trials if trial.round == 1]
    facts = judged(one_round, n_updates=400)
    assert facts["leader"] == "nnpu"
    assert facts["recommended"] == "mixture"
    assert facts["verdict"] == UNKNOWN
    assert facts["agreement"]["upper"] == 1.0
    # A training of the same length is known.
    assert judged(one_round, n_updates=100)["verdict"] == GAIN


def test_a_present_candidate_that_fails_on_the_way_is_not_recommended(three_rounds):
    trials = [
        trial
        for trial in three_rounds(mixture=0.6, nnpu=0.6, random=0.4, whole_pool=0.4)
        if trial.candidate != "mixture"
    ]
    trials.append(make_trial("mixture", 1, 0.6))
    trials.append(make_trial("mixture", 2, 0, failure="the loss is nan"))
    trials.append(make_trial("mixture", 3, 0, failure="the loss is nan"))
    assert judged(trials)["recommended"] == "nnpu"


def test_a_leader_that_failed_in_an_early_round_is_compared_where_both_learned(three_rounds):
    trials = [
        trial
        for trial in three_rounds(mixture=0.8, nnpu=0.6, random=0.4, whole_pool=0.4)
        if (trial.candidate, trial.round) != ("mixture", 1)
    ]
    trials.append(make_trial("mixture", 1, 0, failure="the loss is nan"))
    trials.append(make_trial("confident", 1, 0.5))
    facts = judged(trials)
    assert facts["leader"] == "mixture"
    assert {rival["candidate"] for rival in facts["rivals"]} == {"nnpu"}


def test_failures_do_not_count(three_rounds):
    trials = three_rounds(mixture=0.8, whole_pool=0.6)
    trials.append(make_trial("nnpu", 1, 0.0, failure="it selects nothing"))
    facts = judged(trials)
    assert facts["leader"] == "mixture"
    assert "random" not in facts["gains"]
    assert trial_facts(trials[-1])["failure"] == "it selects nothing"
    assert trial_facts(trials[-1])["agreement"] is None


def test_the_oracle_gives_the_headroom(three_rounds):
    facts = judged(three_rounds(mixture=0.8, random=0.5, whole_pool=0.6, oracle=0.9))
    assert facts["headroom"]["measured"]["value"] == pytest.approx(0.4)
    # It reads the truth, and is neither leader nor control.
    assert facts["leader"] == "mixture"
    assert set(facts["gains"]) == {"random", "whole_pool"}


def test_facts_are_json_and_trials_survive_a_table(three_rounds, tmp_path):
    from pu_kd_pipeline.storage.table import read_table, write_table

    trials = three_rounds(mixture=0.8, random=0.5, whole_pool=0.6)
    trials.append(make_trial("nnpu", 1, 0.0, failure="it selects nothing"))
    json.dumps(judged(trials))
    write_table(trials_table(trials), tmp_path / "trials.parquet")
    again = trials_of(read_table(tmp_path / "trials.parquet"))
    assert judged(again) == judged(trials)
    assert again[-1].failure == "it selects nothing"
    assert again[0].failure is None


def test_the_command_has_environment_and_parameters():
    assert command_with({}) == "kedro run --pipeline=full"
    parameters = {"a": {"b": 0.3, "c": [1, 2]}, "d": {"e": None}}
    command = command_with(parameters, "mine")
    assert command == 'kedro run --pipeline=full --env=mine --params="a.b=0.3,a.c=[1, 2],d.e=null"'
    # What is printed gives what was meant.
    given = parse_given(command.split('"')[1])
    assert given == parameters


def test_parameters_are_those_of_the_variant():
    candidates = {
        "present": ComparisonVariant(rule="mixture"),
        "cut": ComparisonVariant(
            rule="nnpu",
            criterion="budget",
            features="descriptor",
            objectives=("logit_mse",),
            distillation={"optimizer": {"learning_rate": 0.3}},
        ),
    }
    assert recommended_parameters("present", "present", candidates) == {}
    assert recommended_parameters("whole_pool", "present", candidates) == {
        "subset_materialization": {"rule": "all"}
    }
    assert recommended_parameters("cut", "present", candidates) == {
        "pu_training": {"features": "descriptor"},
        "distillation": {"objective": "logit_mse", "optimizer": {"learning_rate": 0.3}},
        "subset_materialization": {"rule": "nnpu", "criterion": "budget"},
    }
