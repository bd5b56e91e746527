"""How far labels stand out in a classifier's logits, and whether they do so more in others.

With few images, accuracy is a weak statistic: it changes only where an answer changes. The margin
of the label changes on every image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Margins = NDArray[np.float64]


class MarginGain(NamedTuple):
    """How much larger the margins of the same labels are with other logits.

    Attributes:
        share: mean gain, as a share of the mean margin before.
        p_value: of the paired t-test that the mean margin is larger, one-sided.
    """

    share: float
    p_value: float


def label_margins(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Margins:
    """Return (N,) terms whose mean is the mean margin, in standard deviations of the logits.

    The margin is the logit of the label minus the largest one of another class: below zero where
    the answer is wrong. The standard deviation s is that of all logits around the mean of their
    image, so that neither the scale of the logits nor a constant changes the result.

    As s is estimated on the same images, the spread of the margins alone is not the error of their
    mean. A term m / s - M (v / s^2 - 1) / 2, with the variance v of the image's logits and the mean
    margin M in units of s, has the spread that is (the delta method for a ratio).

    Args:
        logits: (N, K) with K > 1; N > 0.
        labels: (N,) in 0..K-1.
    """
    values = logits.astype(np.float64)
    centered = values - values.mean(axis=1, keepdims=True)
    variances = (centered**2).mean(axis=1)
    total_variance = variances.mean()
    # Logits that are all equal have no margin.
    if total_variance == 0:
        return np.zeros(len(labels))
    images = np.arange(len(labels))
    of_labels = centered[images, labels]
    others = centered.copy()
    others[images, labels] = -np.inf
    margins = (of_labels - others.max(axis=1)) / np.sqrt(total_variance)
    terms: Margins = margins - margins.mean() * (variances / total_variance - 1) / 2
    return terms


def margin_gain(margins: Margins, before: Margins) -> MarginGain:
    """Return how much larger margins are than other ones of the same images.

    Args:
        margins: (N,) with other logits.
        before: (N,) of the same labels.
    """
    from scipy import stats

    gains = margins - before
    mean_before = before.mean()
    # Nothing is measured against a classifier that is wrong on average, or by equal gains.
    if mean_before <= 0 or len(gains) < 2 or gains.std() == 0:
        return MarginGain(0.0, 1.0)
    test = stats.ttest_1samp(gains, 0.0, alternative="greater")
    return MarginGain(float(gains.mean() / mean_before), float(test.pvalue))
