"""How the images of a manifest are drawn into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.workers import ALONE
from pu_kd_pipeline.training import distillation
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.recipes import SAMPLING
from pu_kd_pipeline.training.sampling import manifest_sampling
from pu_kd_pipeline.training.weighting import NO_WEIGHTING
from tests.training.scene import Scene, are_equal, params_with

N_LABELED = 10
N_POOL = 40
MIXTURE = {"first": 1.0, "max_repeats": 4.0}


def rows_of(
    labeled: float | list[float] | None = None,
    pool: float | list[float] | None = None,
    n_labeled: int = N_LABELED,
    n_pool: int = N_POOL,
) -> pd.DataFrame:
    """Return the rows of a manifest, labeled ones first, with the given probabilities."""
    rows = pd.DataFrame({"origin": ["labeled"] * n_labeled + ["pool"] * n_pool})
    if labeled is not None or pool is not None:
        of_labeled = np.broadcast_to(np.nan if labeled is None else labeled, n_labeled)
        of_pool = np.broadcast_to(np.nan if pool is None else pool, n_pool)
        rows["sampling_probability"] = np.concatenate([of_labeled, of_pool])
    return rows


def uneven(n: int) -> list[float]:
    weights = np.arange(1.0, n + 1)
    return (weights / weights.sum()).tolist()


def with_related(rows: pd.DataFrame, values: list[float]) -> pd.DataFrame:
    related = np.concatenate([np.full(N_LABELED, np.nan), values])
    return rows.assign(related_probability=related)


@pytest.mark.parametrize("rows", [rows_of(), rows_of(pool=1 / N_POOL)], ids=["none", "equal"])
def test_equal_probabilities_are_shuffled_passes(rows: pd.DataFrame) -> None:
    sampling = manifest_sampling(rows, {}, params_with())
    assert sampling.probabilities is None
    assert sampling.strata is None
    assert sampling.facts["labeled_share"] == sampling.facts["manifest_labeled_share"] == 0.2


def test_probabilities_of_all_images_are_used_as_they_are() -> None:
    values = uneven(N_LABELED + N_POOL)
    rows = rows_of(values[:N_LABELED], values[N_LABELED:])
    sampling = manifest_sampling(rows, {}, params_with())
    assert sampling.strata is None
    assert sampling.probabilities is not None
    assert sampling.probabilities.tolist() == values
    assert sampling.facts["labeled_share"] == pytest.approx(sum(values[:N_LABELED]))


def test_a_pool_without_labeled_images_is_drawn_with_its_probabilities() -> None:
    rows = rows_of(pool=1 / N_POOL, n_labeled=0)
    # The share of labeled images has no meaning there.
    sampling = manifest_sampling(rows, {}, params_with(labeled_share=0.3))
    assert sampling.probabilities is not None
    assert len(sampling.probabilities) == N_POOL
    assert sampling.facts["labeled_share"] == 0.0
    assert sampling.facts["labeled_shows"] is None


@pytest.mark.parametrize("pool", [None, 1 / N_POOL, uneven(N_POOL)], ids=["none", "equal", "own"])
def test_a_labeled_share_is_kept_with_and_without_probabilities(pool: Any) -> None:
    rows = rows_of(pool=pool)
    params = params_with(labeled_share=0.25, n_updates=30, batch_size=10)
    sampling = manifest_sampling(rows, {}, params)
    strata = sampling.strata
    assert strata is not None
    assert strata.counts.sum(axis=0).tolist() == [75, 0, 225]
    assert set(strata.counts[:, 0].tolist()) == {2, 3}
    _, _, of_pool = strata.strata
    assert (of_pool.probabilities is None) == (pool in (None, 1 / N_POOL))
    assert sampling.facts == {
        "labeled_share": 0.25,
        "manifest_labeled_share": 0.2,
        "labeled_shows": 7.5,
        "pool_shows": 225 / N_POOL,
    }


@pytest.mark.parametrize(("share", "is_warned"), [(0.09, True), (0.1, False), (0.3, False)])
def test_labeled_images_that_are_shown_rarely_are_reported(
    caplog: pytest.LogCaptureFixture, share: float, is_warned: bool
) -> None:
    # A fifth of these images is labeled.
    manifest_sampling(rows_of(pool=None), {}, params_with(labeled_share=share))
    assert ("20 % of the images are labeled" in caplog.text) == is_warned


def test_an_uneven_pool_keeps_the_share_that_the_manifest_gives() -> None:
    rows = rows_of(pool=uneven(N_POOL))
    sampling = manifest_sampling(rows, {}, params_with(n_updates=10, batch_size=10))
    assert sampling.strata is not None
    assert sampling.strata.counts.sum(axis=0).tolist() == [20, 0, 80]


def test_related_images_prevail_at_first_and_follow_the_schedule() -> None:
    # Half of the pool is related: 20 images, each of them 4 times.
    values = [1 / 20] * 20 + [0.0] * 20
    rows = with_related(rows_of(pool=1 / N_POOL), values)
    params = params_with(n_updates=100, batch_size=10)
    sampling = manifest_sampling(rows, {"mixture": MIXTURE}, params)
    facts = sampling.facts["related"]
    assert facts["n_effective"] == pytest.approx(20)
    assert facts["shows"] == pytest.approx(4)
    assert facts["mean"] == pytest.approx(4 * 20 / 800)
    assert facts["last"] == 0

    assert sampling.strata is not None
    counts = sampling.strata.counts
    assert counts[:, 1].sum() == pytest.approx(80, abs=1)
    assert (counts[0] == [2, 7, 1]).all() or (counts[0] == [2, 8, 0]).all()
    assert counts[20:, 1].sum() == 0


@pytest.mark.parametrize(
    ("rows", "attrs", "message"),
    [
        (rows_of(labeled=uneven(N_LABELED)), {}, "some images have no sampling_probability"),
        (rows_of(pool=[np.nan] + [1.0] * 39), {}, "some images have no sampling_probability"),
        (rows_of(labeled=[np.nan] + [1.0] * 9, pool=1.0), {}, "some images have no sampling_pr"),
        (rows_of(labeled=0.0, pool=1.0), {}, "is 0 for every labeled image"),
        (with_related(rows_of(), [0.0] * N_POOL), {"mixture": MIXTURE}, "or 0 for all of them"),
        (with_related(rows_of(), [1.0] * N_POOL), {}, "does not say how the share of related"),
        (with_related(rows_of(), [1.0] * N_POOL), {"mixture": {"first": 2}}, "makes no schedule"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    rows: pd.DataFrame, attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        manifest_sampling(rows, attrs, params_with(labeled_share=0.25))


def test_rows_of_a_proxy_have_no_probabilities() -> None:
    rows = rows_of().assign(sampling_probability=np.nan)
    assert manifest_sampling(rows, {}, params_with()).strata is None


# --- students ---


@pytest.fixture
def shown(digits: Scene, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that gets the positions of every batch."""
    batches_seen: list[torch.Tensor] = []

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in augmented_batches(rows, *args, **options):
            batches_seen.append(batch.rows)
            yield batch

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    return batches_seen


def test_equal_probabilities_give_the_student_of_a_manifest_without_them(digits: Scene) -> None:
    plain, _ = digits.distill(n_updates=6)
    manifest = digits.manifest
    is_pool = manifest["origin"] == "pool"
    equal = np.where(is_pool, 1 / is_pool.sum(), np.nan)
    described = manifest.assign(sampling_probability=equal, reason="random")
    student, _ = digits.distill(described, n_updates=6)
    assert are_equal(plain, student)


def test_the_labeled_share_is_that_of_every_batch_and_all_are_shown_equally_often(
    digits: Scene, shown: list[torch.Tensor]
) -> None:
    params = {"n_updates": 15, "batch_size": 30, "labeled_share": 0.4}
    student, _ = digits.distill(**params)
    n_labeled = len(digits.labeled)
    counts = [int((batch < n_labeled).sum()) for batch in shown]
    assert counts == [12] * 15
    shows = torch.bincount(torch.cat(shown))[:n_labeled]
    assert shows.tolist() == [3] * 60
    facts = student.card.origin[SAMPLING]
    assert facts["labeled_shows"] == pytest.approx(3)
    assert facts["manifest_labeled_share"] == pytest.approx(60 / 200)


def test_the_options_of_a_mixture_are_part_of_the_identity(digits: Scene) -> None:
    # The attrs of a table are not part of its digest.
    manifest = digits.manifest.assign(related_probability=1.0)
    identities = []
    for max_repeats in (1.0, 2.0):
        manifest.attrs["mixture"] = {"first": 1.0, "max_repeats": max_repeats}
        task = distillation._Task(
            manifest=manifest,
            stores=digits.stores,
            teacher=digits.teacher,
            weight_vectors=pd.DataFrame(np.ones((1, 5))),
            weighting=NO_WEIGHTING,
            params=digits.params(),
            name="student",
            start=None,
            watched=None,
            yardstick=None,
            shared_logits=None,
            device=torch.device("cpu"),
            workers=ALONE,
        )
        identities.append(distillation._identity(task))
    one, other = identities
    differing = {key for key in one if one[key] != other[key]}
    assert differing == {"mixture.max_repeats"}
