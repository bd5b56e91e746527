"""The sections of the page of a student of the pool alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.reporting.sections.album import POOL, TEST, Album
from pu_kd_pipeline.reporting.sections.classes import accuracy_table, balance_table
from pu_kd_pipeline.reporting.sections.confusion import confusion_of
from pu_kd_pipeline.reporting.sections.curves import student_curves
from pu_kd_pipeline.reporting.sections.cut import cut_of
from pu_kd_pipeline.reporting.sections.gallery import counts_by_class, selected_by_class
from pu_kd_pipeline.reporting.sections.origin import origin_of
from pu_kd_pipeline.reporting.sections.page import Pictures, Sections
from pu_kd_pipeline.reporting.sections.pool import Pool
from pu_kd_pipeline.reporting.sections.quarantine import quarantine_of
from pu_kd_pipeline.reporting.summary import MODEL_TITLES

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.models.model import Model

_AGAIN = "unlabeled_distillation --nodes=unlabeled_distillation.plot_unlabeled_students"


def unlabeled_sections(
    metrics: Mapping[str, Any],
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    test_images: ImageStore,
    test_predictions: pd.DataFrame,
    certificate: Mapping[str, Any],
    histories: Mapping[str, pd.DataFrame],
    class_names: Sequence[str],
    student: Model,
    parameters: Mapping[str, Any],
) -> Sections:
    """Return the sections of a run of `full_unlabeled`; only images that are shown are read.

    Args:
        metrics: result of the evaluation.
        manifest: all pool images that may be drawn, with their probabilities.
        pool_images: the pool.
        test_images: the test images.
        test_predictions: the class that each model gives to each test image.
        certificate: the student's.
        histories: of the trainings, by the student's key in the metrics.
        class_names: names of the teacher's classes.
        student: the saved student.
        parameters: blocks of parameters by name.
    """
    album = Album()
    pool = Pool.of_draws(manifest, pool_images, class_names)
    origin = origin_of(certificate, parameters, "full_unlabeled", manifest, student, _AGAIN)
    sections = Sections(origin, has_truth=pool.has_truth)
    sections.gallery = selected_by_class(pool, manifest, None, album)
    sections.cut = cut_of(pool)
    counts = counts_by_class(pool, manifest, None)
    sections.balance = balance_table(counts, class_names, None, is_uneven=pool.is_uneven)
    sections.accuracy = accuracy_table(metrics, class_names)
    sections.confusion = confusion_of(test_predictions, class_names, album)
    roles = {"random_student": "random", "student": "student"}
    curves = student_curves(
        {MODEL_TITLES[name]: (role, histories[name]) for name, role in roles.items()}
    )
    sections.curves = [curves] if curves is not None else []
    stores = {POOL: pool_images, TEST: test_images}
    sections.refused = quarantine_of({f"{name} images": store for name, store in stores.items()})
    sections.pictures = Pictures(album.pictures(stores))
    sections.facts = album.facts()
    sections.replaced = frozenset({"distillation_curves", "per_class_accuracy_plot"})
    return sections
