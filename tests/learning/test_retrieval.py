"""Nearest images in blocks, and labeled images that take turns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning import retrieval
from pu_kd_pipeline.learning.retrieval import (
    NearestImages,
    Neighbors,
    largest_cosines,
    unit_vectors,
)
from tests.learning.selection_pools import make_options, make_pool, select, some_neighbors


def vectors_of(n: int, seed: int) -> np.ndarray:
    return unit_vectors(np.random.default_rng(seed).normal(size=(n, 5)))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), n_kept=st.integers(1, 50), seed=st.integers(0, 99))
def test_blocks_keep_the_nearest_of_all(n: int, n_kept: int, seed: int) -> None:
    queries = vectors_of(3, seed)
    pool = vectors_of(n, seed + 100)
    nearest = NearestImages(queries, n_kept, duplicate_cosine=2.0)
    # In parts of different sizes, and the last image first.
    positions = np.arange(n)[::-1]
    for part in np.array_split(positions, 3):
        nearest.add(pool[part], part)

    for query, rows in zip(queries, nearest.rows, strict=True):
        cosines = pool @ query
        expected = sorted(range(n), key=lambda row: (-cosines[row], row))[:n_kept]
        np.testing.assert_allclose(cosines[rows], cosines[expected], atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), n_kept=st.integers(1, 12), n_distinct=st.integers(1, 8))
def test_leaving_out_far_images_early_changes_nothing(n: int, n_kept: int, n_distinct: int) -> None:
    # Few distinct vectors, so that many images are equally near.
    rng = np.random.default_rng(n)
    pool = vectors_of(n_distinct, 1)[rng.integers(n_distinct, size=n)]
    queries = np.concatenate([pool[:1], vectors_of(2, 2)])

    def nearest_rows(is_filtered: bool) -> list[list[int]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "_BLOCK_VALUES", 15)
            if not is_filtered:
                everything = np.full((len(queries), 1), -np.inf, dtype=np.float32)
                patch.setattr(NearestImages, "_least_kept", lambda _: everything)
            nearest = NearestImages(queries, n_kept, duplicate_cosine=0.999)
            for part in np.array_split(order, 3):
                nearest.add(pool[part], part)
        return nearest.rows.tolist()

    order = rng.permutation(n)
    assert nearest_rows(is_filtered=True) == nearest_rows(is_filtered=False)


def test_the_size_of_the_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = vectors_of(4, 0)
    pool = vectors_of(50, 1)
    found = []
    for n_values in (4, 40, 10_000):
        monkeypatch.setattr(retrieval, "_BLOCK_VALUES", n_values)
        nearest = NearestImages(queries, 7, duplicate_cosine=0.95)
        nearest.add(pool, np.arange(50))
        found.append(nearest.rows.tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("n_values", [3, 40, 10_000])
def test_the_largest_cosine_is_that_with_the_nearest_query(
    monkeypatch: pytest.MonkeyPatch, n_values: int
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_VALUES", n_values)
    queries = vectors_of(6, 0)
    images = vectors_of(25, 1)
    expected = [max(float(image @ query) for query in queries) for image in images]
    np.testing.assert_allclose(largest_cosines(queries, images), expected, atol=1e-6)

    expected = []
    for row, image in enumerate(queries):
        others = np.delete(queries, row, axis=0)
        expected.append(max(float(image @ other) for other in others))
    found = largest_cosines(queries, queries, leave_one_out=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_copy_of_the_labeled_image_is_skipped() -> None:
    queries = vectors_of(1, 0)
    pool = np.concatenate([queries, vectors_of(3, 1)])
    nearest = NearestImages(queries, 4, duplicate_cosine=0.98)
    nearest.add(pool, np.arange(4))
    assert nearest.rows[0, -1] == -1
    assert 0 not in nearest.rows[0]


def test_labeled_images_take_turns_and_skip_copies_of_their_own() -> None:
    # Rows 0 and 1 are copies of each other, and nearest to both labeled images.
    vectors = {0: np.array([1, 0]), 1: np.array([1, 0]), 2: np.array([0, 1]), 3: np.array([-1, 0])}
    as_floats = {row: vector.astype(np.float32) for row, vector in vectors.items()}
    rows = np.array([[0, 1, 2, 3], [0, 1, -1, -1]])
    clusters = np.zeros(4, dtype=np.int64)
    neighbors = Neighbors(np.array(["a", "b"]), rows, as_floats, clusters, duplicate_cosine=0.9)
    found, found_for = neighbors.in_turn(4)
    # The second has no more after its first; a copy of an image of its own is no new image.
    assert found.tolist() == [0, 1, 2, 3]
    assert found_for.tolist() == [0, 1, 0, 0]

    only_first = Neighbors(np.array(["a"]), rows[:1], as_floats, clusters, duplicate_cosine=0.9)
    assert only_first.in_turn(4)[0].tolist() == [0, 2, 3]


def test_half_is_retrieved_in_turn_and_half_spread_over_clusters() -> None:
    pool = make_pool(np.arange(60))
    options = make_options(budget=20, neighbors=lambda _: some_neighbors(60))
    selection = select("retrieved", pool, options)
    assert len(selection.rows) == 20
    assert selection.reasons is not None
    reasons = selection.reasons.tolist()
    assert reasons.count("retrieved for labeled/0") == reasons.count("retrieved for labeled/1") == 5
    assert reasons.count("cluster") == 10
    assert sorted(selection.rows[:10]) == list(range(10))
    counts = np.bincount(selection.rows[10:] % 3)
    assert counts.max() - counts.min() <= 1


def test_more_is_drawn_from_clusters_where_neighbors_do_not_suffice() -> None:
    few = some_neighbors(60)
    few.rows[:, 1:] = -1
    options = make_options(budget=20, neighbors=lambda _: few)
    selection = select("retrieved", make_pool(np.arange(60)), options)
    assert selection.reasons is not None
    # Both have the same nearest image.
    assert sum(reason != "cluster" for reason in selection.reasons) == 1
    assert len(set(selection.rows.tolist())) == 20


def test_a_larger_number_of_retrieved_images_extends_a_smaller_one() -> None:
    neighbors = some_neighbors(30)
    found = [neighbors.in_turn(n)[0].tolist() for n in (3, 8, 30)]
    for smaller, larger in pairwise(found):
        assert larger[: len(smaller)] == smaller
