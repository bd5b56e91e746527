"""What a cut of the score would keep: exact counts at some thresholds, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pu_kd_pipeline.reporting.sections.pool import Pool, score_text

N_BINS = 48
_N_EVEN = 60  # thresholds that keep equally spaced shares of the pool
_N_FEW = 80  # thresholds for ever fewer images: related images are often few
_N_NEAR = 40  # thresholds around what was selected
_FEWEST_DIGITS = 3
_MOST_DIGITS = 17  # every float64 has its own text


@dataclass(frozen=True)
class Bin:
    """One bar of the histogram; heights are shares of the highest bar."""

    x: float
    width: float
    height: float
    relevant_height: float


@dataclass(frozen=True)
class Cut:
    """What the page shows of thresholds; lists are in ascending order of the threshold."""

    score_name: str
    thresholds: list[float]
    texts: list[str]
    """Each threshold in as few digits as have exactly its counts."""
    places: list[float]
    """Where each threshold is between the lowest and the highest score, in [0, 1]."""
    passing: list[int]
    """Images of the pool that pass and may be selected."""
    relevant: list[int] | None
    """Those of them that are relevant; None where the truth is not known of all images."""
    n_pool: int
    """Images with a score that may be selected."""
    n_relevant: int
    """Relevant images in the whole pool, for the recall."""
    start: int
    """Place of the threshold that the page begins with."""
    is_strict: bool
    """Whether a score that equals the threshold does not pass."""
    note: str
    """What the first threshold is."""
    bins: list[Bin]
    low: str
    """The lowest score, and `high` the highest."""
    high: str


def cut_of(pool: Pool) -> Cut | None:
    """Return what cuts would keep; None where fewer than two scores differ."""
    is_counted = np.isfinite(pool.scores) & ~pool.is_excluded
    scores = np.sort(pool.scores[is_counted])
    if not len(scores) or scores[0] == scores[-1]:
        return None
    n_selected = int((pool.is_selected & is_counted).sum())
    # All thresholds are read as the rule reads its own.
    side: Literal["left", "right"] = "right" if pool.is_strict else "left"

    thresholds = _thresholds(scores, n_selected, pool.threshold)
    passing = len(scores) - np.searchsorted(scores, thresholds, side=side)
    relevant = None
    n_relevant = 0
    truth = pool.relevant
    if np.isfinite(truth).all():
        of_relevant = np.sort(pool.scores[is_counted & (truth == 1)])
        hits = len(of_relevant) - np.searchsorted(of_relevant, thresholds, side=side)
        relevant = [int(count) for count in hits]
        n_relevant = int((truth == 1).sum())

    low = float(scores[0])
    high = float(scores[-1])
    places = np.clip((thresholds - low) / (high - low), 0, 1)
    start = int(np.argmin(np.abs(passing - n_selected)))
    if pool.threshold is not None:
        start = int(np.flatnonzero(thresholds == pool.threshold)[0])
    return Cut(
        score_name=pool.score_name,
        thresholds=[float(value) for value in thresholds],
        texts=[_text(value, scores, side) for value in thresholds],
        places=[round(float(value), 4) for value in places],
        passing=[int(count) for count in passing],
        relevant=relevant,
        n_pool=len(scores),
        n_relevant=n_relevant,
        start=start,
        is_strict=pool.is_strict,
        note=_note(pool, int(passing[start]), n_selected),
        bins=_bins(pool, is_counted, low, high),
        low=score_text(low),
        high=score_text(high),
    )


def _text(threshold: float, scores: np.ndarray, side: Literal["left", "right"]) -> str:
    """Return a threshold in as few digits as let the same images pass.

    Args:
        threshold: the exact one.
        scores: (n,) ascending.
        side: as `np.searchsorted` has it; where equal scores belong.
    """
    n_below = np.searchsorted(scores, threshold, side=side)
    text = ""
    for n_digits in range(_FEWEST_DIGITS, _MOST_DIGITS + 1):
        text = f"{threshold:.{n_digits}g}"
        if np.searchsorted(scores, float(text), side=side) == n_below:
            break
    return text


def _thresholds(scores: np.ndarray, n_selected: int, threshold: float | None) -> np.ndarray:
    """Return distinct scores to cut at, ascending; the rule's own threshold is one of them.

    Args:
        scores: (n,) ascending.
        n_selected: images that the rule selected.
        threshold: the rule's cut; None if it has none.
    """
    n = len(scores)
    counts: list[np.ndarray] = [
        np.linspace(1, n, _N_EVEN),
        np.geomspace(1, n, _N_FEW),
        np.linspace(0.5, 1.5, _N_NEAR) * n_selected,
        np.array([n_selected]),
    ]
    kept = np.clip(np.concatenate(counts).round().astype(np.int64), 1, n)
    chosen = scores[n - np.unique(kept)]
    if threshold is not None:
        chosen = np.append(chosen, threshold)
    return np.unique(chosen)


def _note(pool: Pool, n_passing: int, n_selected: int) -> str:
    if pool.is_uneven:
        return (
            "The rule of this run has no cut: it keeps all images, and draws those with high "
            f"scores more often. The slider starts where {n_passing:,} images pass, as many as "
            "are drawn more often than evenly."
        )
    if pool.threshold is None:
        return (
            "The rule of this run has no cut of this score. The slider starts where about as "
            f"many images pass as it selected ({n_selected:,})."
        )
    if n_passing == n_selected:
        return f"The slider starts at the cut of this run, which selected {n_selected:,} images."
    return (
        f"The slider starts at the cut of this run; {n_selected:,} of the {n_passing:,} images "
        "that pass were selected."
    )


def _bins(pool: Pool, is_counted: np.ndarray, low: float, high: float) -> list[Bin]:
    """Return the histogram; heights are square roots, so that few relevant images can be seen."""
    scores = pool.scores[is_counted]
    counts, _ = np.histogram(scores, N_BINS, (low, high))
    is_relevant = pool.relevant[is_counted] == 1
    relevant, _ = np.histogram(scores[is_relevant], N_BINS, (low, high))
    highest = float(np.sqrt(counts.max()))
    bins = []
    for place, (count, of_relevant) in enumerate(zip(counts, relevant, strict=True)):
        height = float(np.sqrt(count)) / highest
        relevant_height = float(np.sqrt(of_relevant)) / highest
        bins.append(
            Bin(
                round(place / N_BINS, 5),
                round(1 / N_BINS, 5),
                round(height, 4),
                round(relevant_height, 4),
            )
        )
    return bins
