"""The node of the stage `certify`."""

from __future__ import annotations

from typing import Any

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.certificate import CertificateParams


def certify_student(
    certificate: dict[str, Any],
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    params: CertificateParams,
) -> dict[str, Any]:
    """Return the limits that the student keeps; a limit that it does not keep stops the run."""
    from pu_kd_pipeline.certificate import check_certificate

    return check_certificate(certificate, teacher, student, test_images, params)
