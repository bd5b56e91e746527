"""The node of the stage `export`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.export import ExportParams


def export_student(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    certificate: dict[str, Any],
    manifest: pd.DataFrame | None,
    preferential_manifest: pd.DataFrame | None,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher_training_images: ImageStore,
    params: ExportParams,
) -> tuple[dict[str, bytes], dict[str, Any], str]:
    """Return the files of the student, the report on them, and its page.

    A system writes one of the two manifests, or learns from the teacher's training images.
    """
    from pu_kd_pipeline.export.student import export_student
    from pu_kd_pipeline.reporting.export_page import render_export

    files, report = export_student(
        teacher,
        student,
        test_images,
        certificate,
        {"manifest": manifest, "preferential_manifest": preferential_manifest},
        {"labeled": labeled_images, "pool": pool_images},
        teacher_training_images,
        params,
    )
    return files, report, render_export(report)
