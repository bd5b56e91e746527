"""Testing a teacher on images from their sources, before any store is made."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from pu_kd_pipeline.features.labeled_images import LabeledImages
from pu_kd_pipeline.features.teacher_check import NO_LABELS, check_on_images, sample_size
from pu_kd_pipeline.images.decoding import Unusable
from pu_kd_pipeline.images.labeled_sample import LabeledSample, draw_labeled
from pu_kd_pipeline.images.plan import plan_store
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.teacher_check import balanced_draw
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherCheckParams, TeacherParams

NO_SOURCE = "data_ingestion.labeled has no source"
NO_IMAGE = "none of the labeled images that were drawn can be decoded"


def check_on_sources(
    model: Model,
    ingestion: DataIngestionParams,
    teacher: TeacherParams,
    params: TeacherCheckParams,
) -> dict[str, Any]:
    """Return what `teacher_check.describe_check` returns, of a few images of the labeled sources.

    The images are those that the store of labeled images would hold, with its labels. Where there
    are none, the only key is `untested`, with the reason.

    Raises:
        InputError: a source cannot be used.
    """
    if not ingestion.labeled:
        return {"untested": NO_SOURCE}
    plan = plan_store("labeled", ingestion.labeled, ingestion, teacher)
    draw = partial(balanced_draw, seed=params.seed)
    sample = draw_labeled(plan, sample_size(params, model.image_shape), draw)
    if not len(sample.labels):
        return {"untested": NO_LABELS}
    decoded = sample.decode(model.card.input, in_processes=True)
    is_usable = np.array([not isinstance(pixels, Unusable) for pixels in decoded])
    if not is_usable.any():
        return {"untested": NO_IMAGE}
    usable = LabeledSample(sample.rows[is_usable], sample.readers, plan)
    images = LabeledImages(
        np.stack([pixels for pixels in decoded if not isinstance(pixels, Unusable)]),
        usable.labels,
        partial(_decoded, usable),
    )
    # Whatever a user's network draws, the caller's random numbers stay the same.
    with seeded(0):
        return check_on_images(model, images, params, states_input=teacher.input is not None)


def _decoded(sample: LabeledSample, spec: InputSpec) -> np.ndarray:
    """Return the (N, C, H, W) uint8 images of a sample in which all are usable."""
    images = []
    for pixels in sample.decode(spec):
        # A file that is damaged since it was first read counts as wrong.
        if isinstance(pixels, Unusable):
            pixels = np.zeros((spec.channels, spec.size_px, spec.size_px), dtype=np.uint8)
        images.append(pixels)
    return np.stack(images)
