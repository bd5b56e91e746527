"""Which images of a pool are drawn, and on what that depends."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import read_confidence
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.learning.stratified import allocate_answers, stratum_sizes
from pu_kd_pipeline.pool_audit.drawing import draw_audit, strata_of
from tests.pool_audit.conftest import NUMBERS, Pool, params_of, teacher_of


def test_each_stratum_gives_its_number_of_images_once_each(pool):
    audit = pool.audit()
    sizes = stratum_sizes(len(pool.images))
    assert audit.attrs["stratum_sizes"] == sizes.tolist()
    found = np.bincount(audit["stratum"], minlength=6)
    assert found.tolist() == allocate_answers(40, sizes).tolist()
    assert audit["id"].is_unique


def test_strata_are_cut_from_the_log_odds_of_the_teachers_class(pool):
    ids, classes, log_odds = read_confidence(pool.features)
    strata = strata_of(ids, log_odds, seed=0)
    for stratum in range(5):
        assert log_odds[strata == stratum].min() >= log_odds[strata == stratum + 1].max()
    audit = pool.audit()
    rows = [ids.tolist().index(each) for each in audit["id"]]
    assert audit["stratum"].tolist() == strata[rows].tolist()
    assert audit["teacher_class"].tolist() == classes[rows].tolist()


def test_an_image_without_a_number_ranks_last():
    ids = np.array([f"i{number}" for number in range(64)], dtype=object)
    log_odds = np.linspace(5, -5, 64)
    log_odds[0] = np.nan
    assert strata_of(ids, log_odds, seed=0)[0] == 5


def test_the_images_come_in_random_order_and_not_by_stratum(pool):
    strata = pool.audit()["stratum"].to_numpy()
    assert (np.diff(strata) < 0).any()
    assert (np.diff(strata) > 0).any()


def test_the_draw_depends_on_ids_and_seed_and_not_on_the_order_of_the_pool(pool, tmp_path):
    turned = Pool.of(tmp_path / "turned", NUMBERS[::-1], pool.teacher)
    assert turned.audit()["id"].tolist() == pool.audit()["id"].tolist()
    assert pool.audit().attrs == pool.audit().attrs
    other = pool.audit(seed=1)
    assert set(other["id"]) != set(pool.audit()["id"])
    assert other.attrs["draw"] != pool.audit().attrs["draw"]


def test_every_image_of_a_stratum_is_drawn_about_equally_often(pool):
    counts = dict.fromkeys(pool.images.index["id"], 0)
    n_draws = 60
    for seed in range(n_draws):
        for identifier in pool.audit(seed=seed)["id"]:
            counts[identifier] += 1
    ids, _, log_odds = read_confidence(pool.features)
    strata = strata_of(ids, log_odds, seed=0)
    is_lowest = strata == 5
    found = np.array([counts[each] for each in ids[is_lowest]])
    expected = allocate_answers(40, stratum_sizes(240))[5] / is_lowest.sum() * n_draws
    assert found.mean() == pytest.approx(expected, rel=0.05)
    # Drawing the same ones again and again would give counts of 0 and 60.
    assert found.std() < 1.5 * np.sqrt(expected)


def test_a_small_pool_is_asked_about_in_full(tmp_path):
    small = Pool.of(tmp_path / "small", range(25), teacher_of())
    audit = small.audit()
    assert sorted(audit["id"]) == sorted(small.images.index["id"])


def test_features_of_another_teacher_or_pool_are_refused(pool, tmp_path):
    with pytest.raises(InputError, match="pool_features: another network than teacher_model"):
        draw_audit(pool.features, pool.images, teacher_of(1), params_of())
    some = ImageSubset.of(pool.images, np.arange(200))
    with pytest.raises(InputError, match="40 of 240 ids are not in the image store"):
        draw_audit(pool.features, some, pool.teacher, params_of())
    larger = Pool.of(tmp_path / "larger", range(260), pool.teacher)
    with pytest.raises(InputError, match="pool_features holds 240 of 260 images of the pool: run"):
        draw_audit(pool.features, larger.images, pool.teacher, params_of())
