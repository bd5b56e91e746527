"""A class prior by audit is used where the audit is of this pool and teacher, and refused else."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.pool_audit.answers import checked_answers
from pu_kd_pipeline.pool_audit.estimation import estimate_audit, unanswered
from pu_kd_pipeline.training.class_prior import audited_prior, with_audited_prior
from tests.conftest import PROJECT
from tests.pool_audit.conftest import NUMBERS, Pool, answers_to, teacher_of

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    return Pool.of(tmp_path_factory.mktemp("prior") / "pool", NUMBERS, teacher_of())


@pytest.fixture(scope="module")
def audit(pool):
    drawn = pool.audit()
    return estimate_audit(checked_answers(answers_to(drawn), drawn, CLASSES), CLASSES)


def params_with(class_prior) -> PUTrainingParams:
    values = read_parameters(PROJECT / "conf", "base")["pu_training"]
    return PUTrainingParams.model_validate({**values, "class_prior": class_prior})


def test_the_audits_value_and_interval_are_used_and_nothing_is_flagged(pool, audit):
    prior = audited_prior(audit, pool.features, pool.features)
    for key in ("value", "lower", "upper"):
        assert prior[key] == audit["class_prior"][key]
    assert prior["method"] == "audit"
    assert prior["level"] == 0.95
    assert prior["note"] == "by the answers to 40 images"
    assert prior["flag"] is None
    assert prior["readings"] is None


def test_a_pool_that_was_not_audited_or_answered_is_refused_with_the_command(pool):
    with pytest.raises(InputError, match="was not audited: run `kedro run --pipeline=pool_audit`"):
        audited_prior(None, pool.features, pool.features)
    with pytest.raises(InputError, match="has no answers yet: answer 08_reporting/pool_audit.html"):
        audited_prior(unanswered(pool.audit()), pool.features, pool.features)


def test_an_audit_of_another_pool_or_teacher_is_refused(pool, audit, tmp_path):
    other = Pool.of(tmp_path / "other", range(100), pool.teacher)
    with pytest.raises(InputError, match="is of another pool: run `kedro run --pipeline=pool_audi"):
        audited_prior(audit, pool.features, other.features)
    retrained = Pool.of(tmp_path / "retrained", NUMBERS, teacher_of(1))
    with pytest.raises(InputError, match="is of another teacher: run"):
        audited_prior(audit, pool.features, retrained.features)


@pytest.mark.parametrize("damage", ["provenance", "class_prior", "level"])
def test_a_damaged_audit_is_refused(pool, audit, damage):
    with pytest.raises(InputError, match="pool_audit.json is damaged, or of another version"):
        audited_prior({**audit, damage: []}, pool.features, pool.features)
    with pytest.raises(InputError, match="pool_audit.json is damaged"):
        audited_prior([], pool.features, pool.features)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_prior_that_no_risk_can_be_trained_with_is_refused_with_the_interval(pool, audit, value):
    found = {**audit, "class_prior": {"value": value, "lower": 0.0, "upper": 1.0}}
    with pytest.raises(InputError, match="related, with a 95 % interval of 0.000 to 1.000: set"):
        audited_prior(found, pool.features, pool.features)


def test_a_comparison_gets_the_number(pool, audit):
    params = with_audited_prior(params_with("audit"), audit, pool.features)
    assert params.class_prior == audit["class_prior"]["value"]
    for other in (None, 0.3):
        assert with_audited_prior(params_with(other), None, pool.features).class_prior == other
    with pytest.raises(InputError, match="was not audited"):
        with_audited_prior(params_with("audit"), None, pool.features)
