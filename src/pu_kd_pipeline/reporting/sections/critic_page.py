"""The sections of the page of a student of the original images, trained with a critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pu_kd_pipeline.reporting.sections.album import TEST, Album
from pu_kd_pipeline.reporting.sections.classes import accuracy_table
from pu_kd_pipeline.reporting.sections.confusion import confusion_of
from pu_kd_pipeline.reporting.sections.curves import CurveGroup, column, student_curves
from pu_kd_pipeline.reporting.sections.line_chart import Line, line_chart
from pu_kd_pipeline.reporting.sections.origin import origin_of
from pu_kd_pipeline.reporting.sections.page import Pictures, Sections
from pu_kd_pipeline.reporting.sections.quarantine import quarantine_of
from pu_kd_pipeline.reporting.summary import MODEL_TITLES

if TYPE_CHECKING:
    import pandas as pd

    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.models.model import Model

PIPELINE = "critic_distillation"
CONTROL = "student_without_critic"
_AGAIN = "critic_distillation --nodes=critic_distillation.plot_critic"
_UPDATES = "student updates"
_LOSSES = (
    ("attention", "relevant", "attention_loss"),
    ("critic", "alert", "student_critic_loss"),
    ("divergence", "student", "kl_loss"),
)


def critic_sections(
    metrics: Mapping[str, Any],
    test_images: ImageStore,
    teacher_training_images: ImageStore,
    test_predictions: pd.DataFrame,
    certificate: Mapping[str, Any],
    histories: Mapping[str, pd.DataFrame],
    class_names: Sequence[str],
    student: Model,
    parameters: Mapping[str, Any],
) -> Sections:
    """Return the sections of a run of `critic_distillation`; only images that are shown are read.

    Nothing is selected in this pipeline: students learn from all original images.

    Args:
        metrics: result of the evaluation.
        test_images: the test images.
        teacher_training_images: what teacher and students learned from.
        test_predictions: the class that each model gives to each test image.
        certificate: the student's.
        histories: of the trainings, by the student's key in the metrics.
        class_names: names of the teacher's classes.
        student: the saved student.
        parameters: blocks of parameters by name.
    """
    album = Album()
    sections = Sections(origin_of(certificate, parameters, PIPELINE, None, student, _AGAIN))
    sections.accuracy = accuracy_table(metrics, class_names)
    sections.confusion = confusion_of(test_predictions, class_names, album)
    of_students = student_curves(
        {
            MODEL_TITLES[CONTROL]: ("random", histories[CONTROL]),
            MODEL_TITLES["student"]: ("student", histories["student"]),
        }
    )
    groups = [of_students, critic_curves(histories["student"])]
    sections.curves = [group for group in groups if group is not None]
    original = "teacher's training images"
    sections.refused = quarantine_of(
        {original: teacher_training_images, "test images": test_images}
    )
    sections.pictures = Pictures(album.pictures({TEST: test_images}))
    sections.facts = album.facts()
    sections.replaced = frozenset({"critic_curves", "per_class_accuracy_plot"})
    return sections


def critic_curves(history: pd.DataFrame) -> CurveGroup | None:
    """Return AUC and clamped steps of the critic, and the student's losses.

    None where the objective has no critic.

    Args:
        history: one row per record, see `plot_critic_history`.
    """
    update = column(history, "update")
    auc = Line("", "teacher", update, column(history, "critic_auc"))
    clamped = Line("", "alert", update, 100 * column(history, "clamped_share"))
    losses = []
    for name, role, key in _LOSSES:
        values = column(history, key)
        # A loss with weight 0 starts at 0, and has no course relative to its start.
        if len(values) and np.isfinite(values[0]) and values[0] > 0:
            losses.append(Line(name, role, update, values / values[0]))
    charts = [
        line_chart("critic's AUC; 0.5 is chance", _UPDATES, [auc], (0.5, 1.0)),
        line_chart("steps of the critic that were cut off (%)", _UPDATES, [clamped], (0.0, 100.0)),
        line_chart("student's losses, of their first values", _UPDATES, losses),
    ]
    if charts[0] is None:
        return None
    caption = (
        "The critic ranks teacher above student features. Where it always succeeds, or never, it "
        "hardly shows the student which way to go."
    )
    drawn = [chart for chart in charts if chart is not None]
    return CurveGroup("critic_curves", "The critic", caption, drawn)
