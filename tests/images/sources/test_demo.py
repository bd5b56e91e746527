from __future__ import annotations

import numpy as np

from tests.images.sources.examples import opened


def test_the_demo_is_a_source() -> None:
    reader = opened("demo", part="pool")
    listing = reader.listing()
    assert listing["label"].notna().sum() == 700
    first, second = reader.read(listing.iloc[[4, 9]])
    assert first.shape == (8, 8)
    assert not np.array_equal(first, second)


def test_a_digit_has_the_same_version_in_every_split_and_a_negative_has_not() -> None:
    listing = opened("demo", part="pool").listing()
    is_digit = listing["label"].notna()
    assert set(listing.loc[is_digit, "version"]) == {"1"}
    assert set(listing.loc[~is_digit, "version"]) == {"1.0"}
