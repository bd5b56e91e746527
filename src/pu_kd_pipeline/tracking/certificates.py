"""What MLflow stores of a certificate with the model that it describes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CERTIFICATE_FILE = "certificate.json"
UNKNOWN = "unknown"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CertificateRecord:
    """A certificate, and how its model is found.

    Attributes:
        student: fingerprint of the model that it describes, which its tag `fingerprint` has.
        text: the file, JSON.
        tags: of the logged model and of its versions in the registry.
    """

    student: str
    text: str
    tags: Mapping[str, str]


def certificate_record(certificate: Mapping[str, Any]) -> CertificateRecord:
    """Return what MLflow stores of a certificate.

    Args:
        certificate: result of `certificate.make_certificate`.

    Raises:
        ValueError: it is something else.
    """
    try:
        student = certificate["provenance"]["student"]
        tags = certificate_tags(certificate)
        text = json.dumps(certificate, indent=2)
    except (LookupError, TypeError, ArithmeticError) as exc:
        raise ValueError(f"it is not a certificate ({type(exc).__name__}: {exc})") from exc
    if not isinstance(student, str) or not _FINGERPRINT.fullmatch(student):
        raise ValueError("it is not a certificate (provenance.student is not a fingerprint)")
    return CertificateRecord(student, text, tags)


def certificate_tags(certificate: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers of a certificate that a registry shows: lower limits, rounded down.

    All tags are there in every case, so that those of a later certificate replace all of an earlier
    one. An accuracy by the bound is left out where the certificate doubts its assumptions, as the
    stage `certify` does.
    """
    # Imported here: it imports torch, which a run with a certificate has imported anyway.
    from pu_kd_pipeline.certificate import certified_accuracy

    accuracy = certified_accuracy(certificate)
    source = "labels" if certificate["accuracy"] is not None else "bound"
    is_doubted = source == "bound" and certificate["shift"] is not None
    if accuracy is None or is_doubted:
        accuracy = None
        source = UNKNOWN
    return {
        "certified_agreement": _rounded_down(certificate["agreement"]["lower"]),
        "certified_accuracy": _rounded_down(accuracy),
        "certified_accuracy_by": source,
        "certified_images": str(certificate["images"]["n"]),
        "certificate_warnings": str(len(certificate["warnings"])),
    }


def _rounded_down(limit: float | None) -> str:
    if limit is None:
        return UNKNOWN
    # Rounded to the nearest, a lower limit might promise more than it holds.
    return f"{math.floor(limit * 10_000) / 10_000:.4f}"
