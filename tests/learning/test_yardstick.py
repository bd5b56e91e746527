"""Which images make a yardstick, and how close a student comes to its teacher on them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_kd_pipeline.learning.yardstick import (
    closeness,
    related_rows,
    uniform_rows,
    yardstick_size,
)


class Pool(NamedTuple):
    classes: np.ndarray
    scores: np.ndarray
    draw: np.ndarray

    def take(self, rows: np.ndarray) -> Pool:
        return Pool(*(values[rows] for values in self))

    def related(self, n: int, max_share: float) -> np.ndarray:
        return related_rows(*self, n, max_share)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Return a pool whose scores have ties and whose classes differ in size."""
    n_images = draw(st.integers(0, 200))
    n_classes = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # The square makes the first classes larger.
    classes = (n_classes * rng.uniform(size=n_images) ** 2).astype(np.int32)
    scores = rng.integers(0, draw(st.integers(1, 50)), n_images).astype(float)
    # Distinct, as the hashes of ids are.
    numbers = rng.permutation(n_images).astype(np.uint64)
    return Pool(classes, scores, numbers)


SHARES = st.sampled_from([0.05, 0.1, 0.25, 0.3, 0.5, 0.9])
SIZES = st.integers(0, 60)


def related_by_loops(pool: Pool, n: int, max_share: float) -> set[int]:
    """The definition, image by image."""
    block_size = int(np.ceil(1 / max_share))
    drawn = []
    for class_index in set(pool.classes.tolist()):
        rows = [row for row in range(len(pool.classes)) if pool.classes[row] == class_index]
        rows.sort(key=lambda row: (-pool.scores[row], pool.draw[row]))
        for block in range(len(rows) // block_size):
            of_block = rows[block * block_size : (block + 1) * block_size]
            row = min(of_block, key=lambda row: pool.draw[row])
            drawn.append((block, pool.draw[row], row))
    drawn.sort()
    return {row for _, _, row in drawn[:n]}


@settings(deadline=None)
@given(pool=pools(), n=SIZES, max_share=SHARES)
def test_related_images_are_those_of_the_definition(pool, n, max_share):
    rows = pool.related(n, max_share)
    assert len(set(rows)) == len(rows) <= n
    assert set(rows) == related_by_loops(pool, n, max_share)


@settings(deadline=None)
@given(pool=pools(), n=SIZES, max_share=SHARES)
def test_no_stretch_of_a_ranking_loses_more_than_its_share(pool, n, max_share):
    is_drawn = np.zeros(len(pool.classes), dtype=bool)
    is_drawn[pool.related(n, max_share)] = True
    block_size = int(np.ceil(1 / max_share))
    for class_index in np.unique(pool.classes):
        rows = np.flatnonzero(pool.classes == class_index)
        ranking = rows[np.lexsort((pool.draw[rows], -pool.scores[rows]))]
        n_taken = np.cumsum(is_drawn[ranking])
        n_first = np.arange(1, len(ranking) + 1)
        assert (n_taken <= np.ceil(n_first / block_size)).all()


@settings(deadline=None)
@given(pool=pools(), n=SIZES, max_share=SHARES)
def test_classes_give_equal_numbers_while_they_last(pool, n, max_share):
    rows = pool.related(n, max_share)
    block_size = int(np.ceil(1 / max_share))
    n_available = {name: size // block_size for name, size in Counter(pool.classes).items()}
    counts = Counter(pool.classes[rows])
    most = max(counts.values(), default=0)
    for name, available in n_available.items():
        assert counts[name] >= min(available, most - 1)
    assert len(rows) == min(n, sum(n_available.values()))


@settings(deadline=None)
@given(pool=pools(), n=SIZES, max_share=SHARES, seed=st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter(pool, n, max_share, seed):
    order = np.random.default_rng(seed).permutation(len(pool.classes))
    shuffled = pool.take(order)
    assert list(order[shuffled.related(n, max_share)]) == list(pool.related(n, max_share))
    n_uniform = min(n, len(pool.classes))
    of_shuffled = order[uniform_rows(shuffled.draw, n_uniform)]
    assert list(of_shuffled) == list(uniform_rows(pool.draw, n_uniform))


def test_a_pool_with_few_related_images_keeps_nine_tenths_of_them():
    # Of 10,000 images 100 are related, and the teacher is surer of them than of all others.
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, 10_000)
    scores = rng.normal(size=10_000)
    scores[:100] += 100
    pool = Pool(classes, scores, rng.permutation(10_000).astype(np.uint64))
    _, n_related = yardstick_size(10_000, 2_000, 0.1, 0.5)
    rows = pool.related(n_related, 0.1)
    assert len(rows) == n_related == 500
    # A class whose related images end within a block may give one more.
    assert 0 < (rows < 100).sum() <= 20


@given(
    n_pool=st.integers(0, 10**7),
    n_images=st.integers(0, 10**4),
    max_share=SHARES,
    uniform_share=st.floats(0, 1),
)
def test_the_parts_have_their_shares_and_are_within_the_limit(
    n_pool, n_images, max_share, uniform_share
):
    n_uniform, n_related = yardstick_size(n_pool, n_images, max_share, uniform_share)
    n = n_uniform + n_related
    assert min(n_uniform, n_related) >= 0
    assert n <= min(n_images, max_share * n_pool) < n + 1
    assert abs(n_uniform - uniform_share * n) <= 0.5 + 1e-9


def test_a_student_with_the_teachers_outputs_is_as_close_as_can_be():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    agreement, kl, _ = closeness(logits, logits + 3)  # a constant changes no probability
    assert agreement == 1.0
    assert kl == pytest.approx(0, abs=1e-12)


def test_closeness_is_that_of_the_definition_in_any_order():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(40, 5, generator=generator)
    student = torch.randn(40, 5, generator=generator)
    student += 0.5 * teacher
    n_equal = 0
    # By each of many factors; the divergence is flat at its minimum.
    factors = torch.logspace(-1.3, 1.3, 2601, dtype=torch.float64)
    totals = torch.zeros_like(factors)
    for of_teacher, of_student in zip(teacher.double(), student.double(), strict=True):
        n_equal += int(of_teacher.argmax() == of_student.argmax())
        p = of_teacher.softmax(0)
        q = (factors[:, None] * of_student).softmax(1)
        totals += (p * (p / q).log()).sum(1)
    found = closeness(teacher, student)
    assert found.agreement == n_equal / 40
    assert found.kl == pytest.approx(float(totals.min()) / 40, rel=1e-5)

    order = torch.randperm(40, generator=generator)
    assert closeness(teacher[order], student[order]) == pytest.approx(found)


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_the_size_of_a_students_logits_does_not_count(factor):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(40, 5, generator=generator)
    student = teacher + 0.5 * torch.randn(40, 5, generator=generator)
    expected = closeness(teacher, student)
    found = closeness(teacher, factor * student)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-6)
    # The fitted factor undoes that of the logits.
    assert found.factor * factor == pytest.approx(expected.factor, rel=1e-2)
    worse = teacher + 2 * torch.randn(40, 5, generator=generator)
    assert closeness(teacher, factor * worse).kl > expected.kl


def test_a_class_that_the_teacher_excludes_adds_nothing():
    teacher = torch.tensor([[2.0, 1.0, -torch.inf]])
    student = torch.tensor([[2.0, 1.0, -50.0]])
    agreement, kl, _ = closeness(teacher, student)
    assert agreement == 1.0
    assert kl == pytest.approx(0, abs=1e-12)


def test_a_diverged_student_is_refused():
    teacher = torch.zeros(3, 2)
    with pytest.raises(FloatingPointError, match="not finite"):
        closeness(teacher, torch.full((3, 2), torch.nan))
