"""Trials that no network made, and the images of the comparison's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.comparison.grid import Blocks
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.images.duplicates import COLUMNS
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.pilot.halving import Trial
from pu_kd_pipeline.pilot.inputs import TrialInputs
from tests.comparison.builders import block_of
from tests.comparison.conftest import inputs  # noqa: F401

NO_COPIES = pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
N_MEASURED = 400
LENGTHS = (100, 200, 400)

MakeTrials = Callable[..., list[Trial]]


def trial_inputs(images: ComparisonInputs, blocks: Blocks) -> TrialInputs:
    return TrialInputs(
        images.teacher,
        images.labeled_images,
        images.pool_images,
        images.test_images,
        NO_COPIES,
        images.labeled_features,
        YardstickParams(**block_of("yardstick")),
        blocks,
    )


def make_trial(
    candidate: str,
    number: int,
    agreement: float,
    *,
    is_control: bool = False,
    failure: str | None = None,
    n_pool_images: int = 50,
) -> Trial:
    """Return a trial of a student that is right about the first images."""
    n_hits = round(agreement * N_MEASURED)
    is_equal = np.arange(N_MEASURED) < n_hits
    divergence = np.where(is_equal, 0.05, 1.0)
    nothing = failure is not None
    return Trial(
        candidate=candidate,
        is_control=is_control,
        round=number,
        n_updates=LENGTHS[number - 1],
        seconds=1.5,
        n_pool_images=0 if nothing else n_pool_images,
        size_source=None if nothing else "50 showings",
        failure=failure,
        is_equal=is_equal[:0] if nothing else is_equal,
        divergence=divergence[:0] if nothing else divergence,
    )


@pytest.fixture
def three_rounds() -> MakeTrials:
    """Makes the trials of three rounds from the agreements of the last one."""

    def make(gain_per_round: float = 0.05, **last: float) -> list[Trial]:
        trials = []
        for number in (1, 2, 3):
            less = gain_per_round * (3 - number)
            for name, agreement in last.items():
                is_control = name in ("random", "whole_pool", "oracle")
                trials.append(make_trial(name, number, agreement - less, is_control=is_control))
        return trials

    return make
