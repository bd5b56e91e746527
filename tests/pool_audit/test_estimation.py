"""What the answers to an audit say of the pool and of a selection."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import read_confidence
from pu_kd_pipeline.pool_audit.answers import checked_answers
from pu_kd_pipeline.pool_audit.drawing import strata_of
from pu_kd_pipeline.pool_audit.estimation import estimate_audit, selection_precision, unanswered
from pu_kd_pipeline.reporting.audit_result import audit_sentences, render_result
from tests.pool_audit.conftest import answers_to, is_related

CLASSES = ("a", "b", "c")


def estimated(pool, answer=None, **changes):
    audit = pool.audit(**changes)
    return audit, estimate_audit(
        checked_answers(answers_to(audit, answer), audit, CLASSES), CLASSES
    )


def test_an_audit_of_all_images_finds_the_truth(pool):
    _, found = estimated(pool, n_images=240)
    assert found["class_prior"] == pytest.approx({"value": 0.25, "lower": 0.25, "upper": 0.25})
    for entry in found["ranking"]:
        assert entry["lower"] == pytest.approx(entry["value"])
        assert entry["upper"] == pytest.approx(entry["value"])


def weighted_share(audit) -> float:
    """Return the sum over strata of weight times share of related images."""
    value = 0.0
    for stratum, size in enumerate(audit.attrs["stratum_sizes"]):
        ids = audit["id"][audit["stratum"] == stratum]
        value += size / 240 * np.mean([is_related(each) for each in ids])
    return float(value)


def test_the_value_is_the_weighted_share_of_yes(pool):
    audit, found = estimated(pool)
    assert found["class_prior"]["value"] == pytest.approx(weighted_share(audit))
    assert found["class_prior"]["lower"] <= 0.25 <= found["class_prior"]["upper"]


def test_over_many_draws_the_value_is_right_on_average(pool):
    values = [weighted_share(pool.audit(seed=seed)) for seed in range(40)]
    standard_error = np.std(values) / np.sqrt(40)
    assert np.mean(values) == pytest.approx(0.25, abs=4 * standard_error)


def test_strata_ranking_and_ids_are_listed(pool):
    audit, found = estimated(pool)
    strata = found["strata"]
    assert strata[0]["first_rank"] == 1
    assert strata[-1]["last_rank"] == 240
    assert sum(each["weight"] for each in strata) == pytest.approx(1)
    assert sum(each["n"] for each in strata) == len(audit)
    assert sum(each["yes"] for each in strata) == len(found["positives"])
    assert sum(each["no"] for each in strata) == len(found["negatives"])
    assert all(not is_related(each) for each in found["negatives"])
    assert [each["n_pool"] for each in found["ranking"]] == np.cumsum(
        audit.attrs["stratum_sizes"]
    ).tolist()[:-1]
    number_of = dict(zip(audit["id"], audit["teacher_class"], strict=True))
    for positive in found["positives"]:
        assert positive["class"] == CLASSES[number_of[positive["id"]]]
    assert found["provenance"]["draw"] == audit.attrs["draw"]
    # As it is stored
    assert json.loads(json.dumps(found)) == found


def test_cannot_tell_counts_both_ways(pool):
    def hesitant(identifier):
        if int(identifier[1:]) % 10 == 0:
            return "cannot tell"
        return "yes" if is_related(identifier) else "no"

    _, found = estimated(pool, hesitant)
    assert found["cannot_tell"]
    _, sure = estimated(pool)
    width = sure["class_prior"]["upper"] - sure["class_prior"]["lower"]
    assert found["class_prior"]["upper"] - found["class_prior"]["lower"] > width
    sentences = " ".join(audit_sentences(found, {}))
    assert "count as half a yes in the estimate" in sentences


def manifest_of(ids, rule="top") -> pd.DataFrame:
    table = pd.DataFrame({"id": ids, "origin": "pool"})
    table.attrs["rule"] = rule
    return table


def test_the_precision_of_a_selection_is_that_of_its_answered_images_by_stratum(pool):
    audit, found = estimated(pool)
    ids, _, log_odds = read_confidence(pool.features)
    strata = strata_of(ids, log_odds, seed=0)
    selected = ids[strata <= 3]
    precision = selection_precision(audit, found, manifest_of(selected), pool.features)
    of_ranking = found["ranking"][3]
    assert precision["n_selected"] == len(selected) == of_ranking["n_pool"]
    for key in ("value", "lower", "upper", "n"):
        assert precision[key] == pytest.approx(of_ranking[key])
    assert precision["rule"] == "top"


def test_the_precision_of_a_selection_of_all_related_images_is_one(pool):
    audit, found = estimated(pool, n_images=240)
    related = [each for each in pool.images.index["id"] if is_related(each)]
    precision = selection_precision(audit, found, manifest_of(related), pool.features)
    assert (precision["value"], precision["lower"], precision["upper"]) == (1.0, 1.0, 1.0)
    assert precision["n"] == len(related)


def test_of_uneven_draws_the_images_drawn_more_often_count(pool):
    audit, found = estimated(pool, n_images=240)
    manifest = manifest_of(pool.images.index["id"].tolist(), "mixture")
    is_first = np.arange(240) < 100
    manifest["related_probability"] = 0.5
    manifest["reason"] = np.where(is_first, "related", "unrelated")
    precision = selection_precision(audit, found, manifest, pool.features)
    assert precision["n_selected"] == 100
    assert precision["value"] == pytest.approx(0.25)


def test_a_selection_without_answered_images_has_no_precision(pool):
    audit, found = estimated(pool)
    others = sorted(set(pool.images.index["id"]) - set(audit["id"]))[:5]
    precision = selection_precision(audit, found, manifest_of(others), pool.features)
    assert precision["n_selected"] == 5
    assert precision["value"] is None
    assert len(audit_sentences(found, precision)) == 2
    nothing = selection_precision(audit, found, manifest_of([]), pool.features)
    assert (nothing["n_selected"], nothing["value"]) == (0, None)


def test_a_damaged_manifest_is_refused(pool):
    audit, found = estimated(pool)
    with pytest.raises(InputError, match="manifest: there is no column 'origin'"):
        selection_precision(audit, found, pd.DataFrame({"id": ["i1"]}), pool.features)


def test_an_unanswered_audit_says_so_on_its_page(pool):
    page = render_result(unanswered(pool.audit()), {})
    assert "None of the 40 images is answered yet" in page
    assert "Answers by rank" not in page


def test_the_page_shows_the_result_and_escapes_ids(pool):
    audit, found = estimated(pool)
    found["negatives"] = ["<script>alert(1)</script>"]
    selection = {"rule": "top", "n_selected": 90, "n": 20, "value": 0.5, "lower": 0.3, "upper": 0.7}
    page = render_result(found, selection)
    assert "<script>alert" not in page
    value = 100 * found["class_prior"]["value"]
    assert f"{value:.1f}" in page
    assert "50.0" in page
    assert audit.attrs["draw"] in page
