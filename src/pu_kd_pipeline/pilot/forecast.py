"""What a full run will take, by what a pilot measured on the same machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.pilot.costs import TrainingCost, n_shared_views

if sys.platform != "win32":
    import resource

_FLOAT32_BYTES = 4
_SCORES_BYTES = 48  # of one image in pool_scores and manifest, measured


@dataclass(frozen=True)
class MeasuredCosts:
    """What a pilot measured; seconds are of this machine.

    Attributes:
        n_pool: images of the whole pool.
        n_sampled: of the sample.
        n_labeled: labeled images.
        n_test: test images.
        reading: seconds of an image until its pixels are in memory.
        teacher: seconds of an image for reading and teacher.
        prior: seconds of the class prior on the sample; None: no candidate needed it.
        classifier: seconds of PU classifier and scores on the sample, without held-out folds.
        step: seconds of an update of the student without its teacher.
        feature_bytes: of an image's features on disk.
        pixel_bytes: of an image in memory.
        peak_bytes: most memory that the process had.
    """

    n_pool: int
    n_sampled: int
    n_labeled: int
    n_test: int
    reading: float
    teacher: float
    prior: float | None
    classifier: float | None
    step: float
    feature_bytes: int
    pixel_bytes: int
    peak_bytes: int

    @property
    def network(self) -> float:
        """Seconds of an image in the teacher alone."""
        return max(self.teacher - self.reading, 0.0)


def forecast_run(
    costs: MeasuredCosts,
    n_selected: int,
    n_classes: int,
    distillation: DistillationParams,
    pu_training: PUTrainingParams,
) -> dict[str, Any]:
    """Return seconds by node of the pipeline `full`, memory and disk of its long stages.

    Reading the images for the first time, which happens before a pilot, is not among them, nor are
    nodes that take no time to speak of. Class prior and PU classifier are trained on
    `max_unlabeled` pool images at most. `unknown` holds long nodes that the pilot did not measure.

    Args:
        costs: measured.
        n_selected: pool images that the student learns from.
        n_classes: K.
        distillation: of the full run.
        pu_training: of the full run.
    """
    seconds = {
        "feature_extraction.extract_labeled_features": costs.n_labeled * costs.teacher,
        "feature_extraction.extract_pool_features": costs.n_pool * costs.teacher,
    }
    n_trained = _n_unlabeled(costs.n_pool, pu_training)
    growth = n_trained / _n_unlabeled(costs.n_sampled, pu_training)
    unknown = []
    if pu_training.class_prior is None:
        node = "pu_training.find_class_prior"
        if costs.prior is None:
            unknown.append(node)
        else:
            seconds[node] = costs.prior * growth
    node = "pu_training.train_pu_classifier"
    if costs.classifier is None or pu_training.backbone != "frozen":
        unknown.append(node)
    else:
        n_classifiers = 1 + pu_training.held_out_folds
        seconds[node] = costs.classifier * growth * n_classifiers
    trainings = {
        "distillation.distill_student": n_selected,
        "random_baseline.distill_student": n_selected,
        "random_baseline.distill_whole_pool_student": costs.n_pool,
    }
    for node, n_images in trainings.items():
        cost = TrainingCost(distillation, n_images + costs.n_labeled, costs.step, costs.network)
        seconds[node] = cost.seconds(distillation.n_updates)
    for node in ("evaluation.evaluate", "evaluation.write_certificate"):
        seconds[node] = costs.n_test * costs.teacher
    return {
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "unknown": unknown,
        "memory_bytes": _memory(costs, n_classes, distillation, pu_training),
        "disk_bytes": costs.n_pool * (costs.feature_bytes + _SCORES_BYTES),
    }


def _n_unlabeled(n_images: int, pu_training: PUTrainingParams) -> int:
    """Return how many of the unlabeled images class prior and PU classifier are trained on."""
    return min(n_images, pu_training.max_unlabeled)


def _memory(
    costs: MeasuredCosts,
    n_classes: int,
    distillation: DistillationParams,
    pu_training: PUTrainingParams,
) -> int:
    """Return the peak of the pilot, and what the rest of the pool adds to it."""
    n_more = costs.n_pool - costs.n_sampled
    n_trained = _n_unlabeled(costs.n_pool, pu_training)
    n_more_trained = n_trained - _n_unlabeled(costs.n_sampled, pu_training)
    limit = distillation.compute.resident_limit_gb * 1e9
    # Features are float16 on disk, and the PU classifier reads them in float32.
    features = n_more_trained * 2 * costs.feature_bytes
    outputs = n_shared_views(distillation) * n_classes * _FLOAT32_BYTES
    # What does not fit the limit is read batch by batch.
    pixels = min(n_more * costs.pixel_bytes, limit)
    return int(costs.peak_bytes + features + min(n_more * outputs, limit) + pixels)


def peak_memory_bytes() -> int:
    """Return the most memory that this process had until now; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, and bytes on macOS.
    return peak if sys.platform == "darwin" else 1024 * peak
