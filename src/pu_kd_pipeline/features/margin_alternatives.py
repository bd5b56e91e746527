"""Inputs with which the labels stand out more in a teacher's logits, where accuracy says nothing.

A wrong normalization may cost a good teacher so few answers that no test of accuracy finds it on
the labeled images, and still lower the margin of nearly every label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pu_kd_pipeline.features.input_alternatives import InputAlternative, input_alternatives
from pu_kd_pipeline.features.labeled_images import (
    LabeledImages,
    changed_fields,
    logits_with,
    pixels_with,
)
from pu_kd_pipeline.learning.label_margins import label_margins, margin_gain
from pu_kd_pipeline.learning.metrics import accuracy
from pu_kd_pipeline.learning.teacher_check import MIN_IMAGES
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams

MIN_GAIN = 0.03  # of the mean margin; less is of no practical importance
_EVERY = 4  # of the images come first, and decide which alternatives are hopeless


def larger_margins(
    model: Model,
    logits: np.ndarray,
    sample: LabeledImages,
    level: float,
    compute: ComputeParams,
) -> list[dict[str, Any]]:
    """Return the inputs with which the margins of the labels are significantly larger, best first.

    Significant: the paired t-test on the same images at `level`; with a mean gain of `MIN_GAIN`,
    and at least as many images classified as labeled. Those that the images cannot tell apart from
    the best one come in the order of how usual they are.

    Args:
        model: the teacher.
        logits: (n, K) its outputs on the sample as it is configured.
        sample: the images.
        level: highest p-value.
        compute: device, precision and batch size.
    """
    labels = sample.labels
    is_measurable = len(labels) >= MIN_IMAGES and model.n_classes > 1
    if not is_measurable or not np.isfinite(logits).all():
        return []
    before = label_margins(logits, labels)
    accuracy_before = accuracy(logits.argmax(axis=1), labels)
    found = []
    margins_of = []
    # Not another crop: it enlarges what is in the middle, and margins with it, whatever is right.
    for alternative in input_alternatives(model.card.input, sample.pixels, has_files=False):
        others = _promising_logits(model, logits, sample, alternative, compute)
        if others is None:
            continue
        margins = label_margins(others, labels)
        gain = margin_gain(margins, before)
        share_correct = accuracy(others.argmax(axis=1), labels)
        is_better = gain.p_value <= level and gain.share >= MIN_GAIN
        if is_better and share_correct >= accuracy_before:
            margins_of.append(margins)
            found.append(
                {
                    "name": alternative.name,
                    "gain": gain.share,
                    "p_value": gain.p_value,
                    "accuracy": share_correct,
                    "changes": changed_fields(model.card.input, alternative),
                }
            )
    return _similar_ones(found, margins_of, level)


def _promising_logits(
    model: Model,
    logits: np.ndarray,
    sample: LabeledImages,
    alternative: InputAlternative,
    compute: ComputeParams,
) -> np.ndarray | None:
    """Return the (n, K) logits with another input; None if some images already have no gain.

    Giving up early can only lower the rate of false alarms: the test is one of all images.
    """
    pixels = pixels_with(sample, model.card.input, alternative)
    is_first = np.arange(len(pixels)) % _EVERY == 0
    labels = sample.labels[is_first]
    first = logits_with(model, pixels[is_first], alternative, compute).numpy()
    if not np.isfinite(first).all():
        return None
    before = label_margins(logits[is_first], labels)
    if margin_gain(label_margins(first, labels), before).share <= 0:
        return None
    others = np.empty_like(logits)
    others[is_first] = first
    others[~is_first] = logits_with(model, pixels[~is_first], alternative, compute).numpy()
    if not np.isfinite(others).all():
        return None
    return others


def _similar_ones(
    found: list[dict[str, Any]], margins_of: list[np.ndarray], level: float
) -> list[dict[str, Any]]:
    """Return the alternatives than which the best one is not significantly better, as they came."""
    if not found:
        return []
    best = int(np.argmax([entry["gain"] for entry in found]))
    similar = []
    for entry, margins in zip(found, margins_of, strict=True):
        if margin_gain(margins_of[best], margins).p_value > level:
            similar.append(entry)
    return similar
