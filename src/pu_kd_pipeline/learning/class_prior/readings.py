"""Two readings of one class prior, and what it means where they differ.

The first reading is the estimate of `estimate`, from scores that were trained to separate positives
from unlabeled. The second reads DEDPUL and BBE directly on an output of the teacher, and nothing is
trained. Where the positives are no random sample of those in the pool (other cameras, writers,
years), trained scores find the source, and the first reading collapses; the second does not. Where
the teacher cannot rank the pool, the second says little. The diagnostics are ours; their thresholds
were set on some pools and tried on others (docs/decisions/0041). NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_kd_pipeline.learning.class_prior.estimators import (
    Scores,
    best_bin_estimate,
    density_ratio_estimate,
)

LARGEST_RATIO = 2.0
"""The reading of the teacher's outputs over the trained one: above, sources differ."""

LARGEST_OUTPUT_RATIO = 2.5
"""BBE over DEDPUL, both on the teacher's outputs: above, the teacher cannot rank the pool."""

SMALLEST_RANKING = 0.65
"""Where the readings differ and the teacher's output ranks positives above others in a smaller
share of the pairs, the teacher cannot rank the pool."""

CERTAINTY = 0.95
"""Share of the resamples in which the ratio of the readings has to exceed 1, for a flag."""

N_RESAMPLES = 100
LARGEST_SAMPLE = 10_000
"""Unlabeled samples of a resample at most: they hardly add to its variation."""

SOURCES_DIFFER = "sources_differ"
TEACHER_CANNOT_RANK = "teacher_cannot_rank"

_WAYS_OUT = (
    "set pu_training.class_prior if you know the share, answer for images of the pool "
    "(`kedro run --pipeline=pool_audit`), or, for a rule that cuts, "
    "subset_materialization.budget to the number of images to keep"
)

Samples = tuple[Scores, Scores]


@dataclass(frozen=True, kw_only=True)
class ClassPriorReadings:
    """Both readings, and how they compare; shares lie in [0, 1]."""

    trained: float
    """The estimate that is used."""
    outputs: float
    """DEDPUL on the teacher's output."""
    outputs_bbe: float
    """BBE on the same output."""
    ratio: float
    """`outputs` over `trained`: about 1 where positives are a random sample of the pool's."""
    ratio_lower: float | None
    """The ratio that `CERTAINTY` of the resamples exceed; None where nothing was trained."""
    ranking: float
    """Area under the ROC of the teacher's output for positives against all others, if the trained
    estimate is right; 0.5 is chance. Unreliable for estimates near 1."""
    outputs_ratio: float
    """`outputs_bbe` over `outputs`: about 1 where a region of the output holds positives alone."""
    auc: float | None
    """Area under the ROC of positives against unlabeled by the trained scores; None: untrained."""
    largest: float | None
    """2 (1 - auc): no class prior is larger if the positives are a random sample of the pool's."""
    flag: str | None
    """`SOURCES_DIFFER`, `TEACHER_CANNOT_RANK`, or None."""


def read_outputs(outputs: Samples) -> tuple[float, float]:
    """Return the class prior by DEDPUL and by BBE, directly on the teacher's output.

    Args:
        outputs: (n_P,) and (n_U,) finite outputs of the teacher for positives and unlabeled, larger
            means more related.
    """
    by_dedpul, _ = density_ratio_estimate(*outputs)
    by_bbe, _ = best_bin_estimate(*outputs)
    return by_dedpul, by_bbe


def compare_readings(
    trained: float,
    outputs: Samples,
    trained_ranks: Samples | None,
    rng: np.random.Generator,
) -> ClassPriorReadings:
    """Return the reading of the teacher's outputs, and how it compares with the trained one.

    The readings differ if their ratio exceeds `LARGEST_RATIO`, and 1 in `CERTAINTY` of the
    resamples, because small class priors from few positives are read with large errors. Then the
    flag is `sources_differ`, or `teacher_cannot_rank` where the output hardly ranks: such outputs
    read a class prior near 1. The flag is also `teacher_cannot_rank` where BBE and DEDPUL differ by
    more than `LARGEST_OUTPUT_RATIO` on the output, so that it gives no reading.

    The bound `largest`: a positive that is drawn like those of the pool scores above one of them in
    half of the cases, whatever the scores, so that AUC(P, U) <= 1 - class_prior / 2.

    Args:
        trained: the estimate, > 0.
        outputs: (n_P,) and (n_U,) finite outputs of the teacher for positives and unlabeled, larger
            means more related; both > 0.
        trained_ranks: (n_P,) and (n_U,) held-out ranks, see `estimate.pooled_ranks`; None where
            nothing was trained.
        rng: source of the resamples.
    """
    by_dedpul, by_bbe = read_outputs(outputs)
    auc = None
    largest = None
    ratio_lower = None
    if trained_ranks is not None:
        auc = float(np.mean(trained_ranks[0]))
        largest = 2.0 * (1.0 - auc)
        ratios = _resampled_ratios(outputs, trained_ranks, rng)
        ratio_lower = float(np.quantile(ratios, 1.0 - CERTAINTY))
    ratio = by_dedpul / trained
    outputs_ratio = by_bbe / by_dedpul
    ranking = _implied_ranking(trained, outputs)

    flag = None
    if ratio > LARGEST_RATIO and ratio_lower is not None and ratio_lower > 1.0:
        flag = SOURCES_DIFFER if ranking > SMALLEST_RANKING else TEACHER_CANNOT_RANK
    elif outputs_ratio > LARGEST_OUTPUT_RATIO:
        flag = TEACHER_CANNOT_RANK
    return ClassPriorReadings(
        trained=trained,
        outputs=by_dedpul,
        outputs_bbe=by_bbe,
        ratio=ratio,
        ratio_lower=ratio_lower,
        ranking=ranking,
        outputs_ratio=outputs_ratio,
        auc=auc,
        largest=largest,
        flag=flag,
    )


def _implied_ranking(class_prior: float, outputs: Samples) -> float:
    """Return AUC(P, N) for AUC(P, U) = class_prior / 2 + (1 - class_prior) AUC(P, N), in [0, 1]."""
    if class_prior >= 1.0:
        return 0.5  # there is nothing else to rank above
    positive, unlabeled = outputs
    ordered = np.sort(unlabeled)
    n_below = np.searchsorted(ordered, positive, side="left")
    n_at_most = np.searchsorted(ordered, positive, side="right")
    # Ties count half.
    auc = float(np.mean(n_below + n_at_most)) / (2 * len(ordered))
    ranking = (auc - class_prior / 2) / (1.0 - class_prior)
    return min(max(ranking, 0.0), 1.0)


def _resampled_ratios(
    outputs: Samples, trained_ranks: Samples, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (N_RESAMPLES,) ratios of DEDPUL on resamples of both scores."""
    ratios = []
    for _ in range(N_RESAMPLES):
        of_outputs, _ = density_ratio_estimate(*_resample(outputs, rng))
        of_trained, _ = density_ratio_estimate(*_resample(trained_ranks, rng))
        ratios.append(of_outputs / of_trained)
    return np.array(ratios)


def _resample(samples: Samples, rng: np.random.Generator) -> Samples:
    positive, unlabeled = samples
    n_unlabeled = min(len(unlabeled), LARGEST_SAMPLE)
    positive_rows = rng.integers(len(positive), size=len(positive))
    unlabeled_rows = rng.integers(len(unlabeled), size=n_unlabeled)
    return positive[positive_rows], unlabeled[unlabeled_rows]


def flag_sentence(readings: ClassPriorReadings) -> str | None:
    """Return what is wrong with the class prior and what to do, in one sentence; None: nothing."""
    if readings.flag == SOURCES_DIFFER:
        return (
            "class prior, sources differ: a trained classifier reads "
            f"{readings.trained:.3f} and the teacher's outputs read {readings.outputs:.3f}, so the "
            "labeled images seem to come from another source than the pool's images of their "
            f"classes; {_WAYS_OUT}"
        )
    if readings.flag == TEACHER_CANNOT_RANK:
        return (
            "class prior, the teacher cannot rank this pool: its outputs read "
            f"{readings.outputs:.3f} by DEDPUL and {readings.outputs_bbe:.3f} by BBE, a trained "
            f"classifier reads {readings.trained:.3f}, and none of them is reliable; {_WAYS_OUT}"
        )
    return None


def agreement_sentence(readings: ClassPriorReadings) -> str:
    """Return both readings in one sentence, for where there is no flag."""
    return (
        f"class prior: the estimate is {readings.trained:.3f}, and the teacher's outputs read "
        f"{readings.outputs:.3f} without training ({readings.ratio:.1f} times as much)"
    )
