"""The demo as a source: labels where an image is a digit, and versions."""

from __future__ import annotations

import numpy as np

from tests.images.sources.examples import listed, opened


def test_the_demo_is_a_source() -> None:
    reader = opened("demo", part="pool")
    listing = reader.listing()
    n_labeled = listing["label"].notna().sum()
    assert n_labeled == 700

    rows = listing.iloc[[4, 9]]
    first, second = reader.read(rows)
    assert first.shape == (8, 8)
    assert not np.array_equal(first, second)


def test_a_digit_has_the_same_version_in_every_split_and_a_negative_has_not() -> None:
    listing = listed("demo", part="pool")
    is_digit = listing["label"].notna()

    digits = listing[is_digit]
    assert set(digits["version"]) == {"1"}

    # Letters and patches are drawn by the seed, so that their version includes it.
    negatives = listing[~is_digit]
    assert set(negatives["version"]) == {"1.0"}
