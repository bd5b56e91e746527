"""Batches of several strata."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from pu_kd_pipeline.learning.loop import shuffled_batches
from pu_kd_pipeline.learning.strata import ShuffledPasses, Stratum, stratified_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_batch_has_the_counts_of_its_row() -> None:
    strata = (Stratum(0, 5), Stratum(5, 20, torch.rand(20).double()), Stratum(5, 20))
    counts = np.array([[2, 3, 0], [0, 0, 7], [5, 1, 1], [9, 0, 0]])
    batches = list(stratified_batches(strata, counts, generator()))
    assert [len(batch) for batch in batches] == [5, 7, 7, 9]
    for batch, (n_labeled, _, _) in zip(batches, counts, strict=True):
        assert (batch[:n_labeled] < 5).all()
        assert (batch[n_labeled:] >= 5).all()
        assert (batch < 25).all()


def test_images_without_probabilities_are_shown_equally_often() -> None:
    counts = np.full((50, 1), 7)
    batches = list(stratified_batches((Stratum(3, 10),), counts, generator()))
    shows = torch.bincount(torch.cat(batches) - 3, minlength=10)
    assert shows.tolist() == [35] * 10


def test_images_with_probabilities_are_shown_in_proportion() -> None:
    probabilities = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    counts = np.full((400, 1), 10)
    batches = stratified_batches((Stratum(0, 3, probabilities),), counts, generator())
    shows = torch.bincount(torch.cat(list(batches)), minlength=3)
    assert shows[0] == 0
    # One standard deviation is 27.
    assert shows[2].item() == pytest.approx(3000, abs=110)


def test_one_stratum_draws_the_passes_of_shuffled_batches() -> None:
    passes = ShuffledPasses(13, generator())
    expected = islice(shuffled_batches(13, 5, generator()), 20)
    for batch in expected:
        assert torch.equal(passes.take(5), batch)


def test_skipped_batches_leave_the_rest_as_it_is() -> None:
    # The random numbers of a draw do not depend on the probabilities of earlier ones.
    counts = np.array([[1, 4], [2, 3]] * 10)

    def batches(weights: torch.Tensor) -> list[torch.Tensor]:
        strata = (Stratum(0, 4), Stratum(4, 9, weights))
        return list(stratified_batches(strata, counts, generator()))

    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    first = batches(weights)
    assert all(torch.equal(one, two) for one, two in zip(first, batches(weights), strict=True))
    other = batches(weights.flip(0))
    # The labeled ones come first in each batch.
    for one, two, (n_labeled, _) in zip(first, other, counts, strict=True):
        assert torch.equal(one[:n_labeled], two[:n_labeled])


def test_an_empty_stratum_that_has_to_give_images_is_refused() -> None:
    with pytest.raises(ValueError, match="stratum 0 is empty"):
        stratified_batches((Stratum(0, 0), Stratum(0, 4)), np.array([[1, 2]]), generator())
