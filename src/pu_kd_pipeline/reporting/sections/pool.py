"""The pool images as the sections see them: scores, classes, what was selected, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pu_kd_pipeline.reporting.sections.album import POOL, Album, Thumb
from pu_kd_pipeline.reporting.selection_figures import (
    is_strict,
    ranked_by,
    relevance,
    score_threshold,
    selection_mask,
)
from pu_kd_pipeline.reporting.style import percent, shorten
from pu_kd_pipeline.storage.manifest import MIXTURE, REASON, SAMPLING_PROBABILITY, prefers_images

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.images.store import ImageStore

_SCORE_NAMES = {
    "pu_score": "PU score",
    "teacher_log_odds": "log odds of the teacher's class",
    "relatedness": "relatedness",
}


@dataclass(frozen=True)
class Pool:
    """All pool images, in the order of their scores; arrays are (n,)."""

    ids: np.ndarray
    scores: np.ndarray
    """float64; NaN where there is none."""
    score_name: str
    classes: np.ndarray
    """int64: the class that the teacher sees."""
    confidence: np.ndarray
    class_names: Sequence[str]
    is_selected: np.ndarray
    """Which images the rule selected, or draws more often than evenly."""
    is_excluded: np.ndarray
    """Which images no rule may select, such as copies of test images."""
    relevant: np.ndarray
    """1 relevant, 0 not relevant, NaN unknown."""
    probability: np.ndarray
    """float64: how often the image is drawn from the pool; NaN where it is not drawn."""
    reasons: np.ndarray
    """Why an image is in the manifest, as text; None where it is not, or no reason is stated."""
    is_uneven: bool
    """Whether the rule keeps all images and draws some more often than evenly."""
    threshold: float | None
    """The cut of the rule; None for a rule without a cut."""
    is_strict: bool
    """Whether a score that equals the cut does not pass."""

    @staticmethod
    def of(
        pool_scores: pd.DataFrame,
        manifest: pd.DataFrame,
        pool_images: ImageStore,
        class_names: Sequence[str],
        excluded_ids: Collection[str],
    ) -> Pool:
        """Return the pool of a run; see `RunResults` for the tables."""
        rule = manifest.attrs.get("rule")
        column = ranked_by(rule)
        options = manifest.attrs.get(MIXTURE) or {}
        column = str(options.get("score", column))
        if column not in pool_scores:
            column = ranked_by(rule)
        of_pool = manifest[manifest["origin"] == "pool"]
        by_id = of_pool.set_index("id")
        probability = np.full(len(pool_scores), np.nan)
        if SAMPLING_PROBABILITY in by_id:
            drawn = by_id[SAMPLING_PROBABILITY].reindex(pool_scores["id"])
            probability = drawn.to_numpy(dtype=np.float64, na_value=np.nan)
        reasons = np.full(len(pool_scores), None, dtype=object)
        if REASON in by_id:
            stated = by_id[REASON].astype(object).reindex(pool_scores["id"])
            reasons = stated.where(stated.notna(), None).to_numpy(dtype=object)
        return Pool(
            ids=pool_scores["id"].to_numpy(dtype=object),
            scores=pool_scores[column].to_numpy(dtype=np.float64, na_value=np.nan),
            score_name=_SCORE_NAMES.get(column, column.replace("_", " ")),
            classes=pool_scores["teacher_class"].to_numpy(dtype=np.int64),
            confidence=pool_scores["teacher_confidence"].to_numpy(dtype=np.float64),
            class_names=class_names,
            is_selected=selection_mask(pool_scores, manifest),
            is_excluded=pool_scores["id"].isin(excluded_ids).to_numpy(bool),
            relevant=relevance(pool_scores, pool_images),
            probability=probability,
            reasons=reasons,
            is_uneven=prefers_images(manifest),
            threshold=score_threshold(manifest, column),
            is_strict=is_strict(manifest),
        )

    @staticmethod
    def of_draws(
        manifest: pd.DataFrame, pool_images: ImageStore, class_names: Sequence[str]
    ) -> Pool:
        """Return the images of a manifest that draws them unevenly, without scores of a classifier.

        The score of an image is how often it is drawn, as a multiple of an even draw.
        """
        n = len(manifest)
        probability = manifest[SAMPLING_PROBABILITY].to_numpy(dtype=np.float64)
        times = probability * n
        # Rounding must not turn even draws into uneven ones.
        is_uneven = bool(np.ptp(times) > 1e-9)
        is_selected = times > 1 if is_uneven else np.ones(n, dtype=bool)
        return Pool(
            ids=manifest["id"].to_numpy(dtype=object),
            scores=times,
            score_name="rate of draws (1 is even)",
            classes=manifest["teacher_class"].to_numpy(dtype=np.int64),
            confidence=manifest["teacher_confidence"].to_numpy(dtype=np.float64),
            class_names=class_names,
            is_selected=is_selected,
            is_excluded=np.zeros(n, dtype=bool),
            relevant=relevance(manifest, pool_images),
            probability=probability,
            reasons=manifest[REASON].to_numpy(dtype=object),
            is_uneven=is_uneven,
            threshold=1.0 if is_uneven else None,
            is_strict=True,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_truth(self) -> bool:
        """Whether the truth of any image is known."""
        return bool(np.isfinite(self.relevant).any())

    @property
    def n_drawn(self) -> int:
        """The number of pool images that the student may see."""
        return int(np.isfinite(self.probability).sum())

    def class_name(self, index: int) -> str:
        """Return the name of a class of the teacher."""
        if 0 <= index < len(self.class_names):
            return str(self.class_names[index])
        return str(index)

    def thumb(self, album: Album, row: int, *, shows_reason: bool = False) -> Thumb:
        """Return an image of the pool with its score, and keep what is known of it."""
        identifier = str(self.ids[row])
        name = self.class_name(int(self.classes[row]))
        score = score_text(self.scores[row])
        mark = self._mark(row)
        facts = {
            self.score_name: score,
            "teacher's class": name,
            "teacher's confidence": percent(self.confidence[row]),
            "selected": self._state(row),
            "reason": self.reasons[row],
            "sampling probability": self._probability_text(row),
            "hidden truth": {"yes": "relevant", "no": "not relevant"}.get(mark),
        }
        number = album.add(POOL, identifier, facts)
        lines = [score]
        reason = self.reasons[row]
        if shows_reason and reason is not None:
            lines.append(shorten(reason, 14))
        alt = f"pool image {identifier}, {self.score_name} {score}, teacher's class {name}"
        return Thumb(number, tuple(lines), alt, mark)

    def thumbs(self, album: Album, rows: np.ndarray, *, shows_reason: bool = False) -> list[Thumb]:
        """Return the images of rows of the scores, in that order."""
        return [self.thumb(album, int(row), shows_reason=shows_reason) for row in rows]

    def _mark(self, row: int) -> str:
        truth = self.relevant[row]
        if not np.isfinite(truth):
            return ""
        return "yes" if truth else "no"

    def _state(self, row: int) -> str:
        if self.is_excluded[row]:
            return "no, it may not be: a copy of a test image, or of the yardstick"
        if self.is_uneven:
            if self.is_selected[row]:
                return "drawn more often than evenly"
            return "drawn, but not more often than evenly"
        return "yes" if self.is_selected[row] else "no"

    def _probability_text(self, row: int) -> str | None:
        probability = self.probability[row]
        if not np.isfinite(probability):
            return None
        times = probability * self.n_drawn
        return f"{probability:.2g} ({times:.2g} times an even draw)"


def spread(rows: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Return up to n of the rows, evenly spaced by their weight, in their order.

    Args:
        rows: (m,) int64.
        weights: (m,) how much of the whole each row is; equal ones where any is unknown.
        n: how many rows are wanted.
    """
    if len(rows) <= n:
        return rows
    if not np.isfinite(weights).all() or weights.sum() <= 0:
        weights = np.ones(len(rows))
    shares = np.cumsum(weights) / weights.sum()
    wanted = (np.arange(n) + 0.5) / n
    places = np.minimum(np.searchsorted(shares, wanted), len(rows) - 1)
    return rows[np.unique(places)]


def score_text(score: float) -> str:
    """Return a score with two decimals, or with four digits where it is below 1."""
    if not np.isfinite(score):
        return "no score"
    text = f"{score:.4g}" if 0 < abs(score) < 1 else f"{score:.2f}"
    return text.replace("-", "−")
