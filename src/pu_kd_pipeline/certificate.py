"""What is known of a student in the end: how often it answers as its teacher, and where not.

It needs no labels of the test images: the teacher's accuracy, and how often the student agrees with
it, bound the accuracy of the student.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from pu_kd_pipeline import __version__
from pu_kd_pipeline.devices import cpu_name
from pu_kd_pipeline.errors import InputError, LimitMissedError
from pu_kd_pipeline.evaluation import model_costs
from pu_kd_pipeline.features.reading import read_log_odds
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick, yardstick_logits
from pu_kd_pipeline.learning.calibration import measure_calibration
from pu_kd_pipeline.learning.certified import (
    Share,
    accuracy_bound,
    share_of,
    shares_of_classes,
    worst_confusions,
)
from pu_kd_pipeline.learning.confidence import class_confidence
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.proportions import LEVEL, Interval
from pu_kd_pipeline.learning.yardstick import closeness
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.certificate import CertificateParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.provenance.commits import commit_of_package
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.yardstick import check_yardstick
from pu_kd_pipeline.training.recipes import TRAINING

VERSION = 1
N_CONFUSIONS = 10
# Teacher surer of the labeled than of the test images: for this share of the pairs of them, and
# with this probability by chance, the certificate warns.
SHIFT_AUC = 0.6
SHIFT_P_VALUE = 0.01
_LIBRARIES = ("torch", "torchvision", "numpy")


def make_certificate(
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    yardstick: Yardstick,
    labeled_features: ShardedTable | None,
    teacher_check: Mapping[str, Any] | None,
    params: EvaluationParams,
    *,
    is_yardstick_learned: bool = False,
) -> dict[str, Any]:
    """Return the certificate of a student, as JSON can hold it.

    Shares have the keys `n_hits`, `n`, `value`, and the limits `lower` and `upper` of their 95 %
    interval (Clopper and Pearson 1934). Values are None where they need labels that are missing.
    `n_compared` is the number of labeled images that `shift` compares the test images with; with 0
    of them it is not known.

    Args:
        teacher: the teacher.
        student: a student of it.
        test_images: what the certificate is about; their labels are used where all have one.
        yardstick: images that the factor of the student's logits is fitted on.
        labeled_features: of the labeled images, by the teacher; None: there are none.
        teacher_check: the teacher on the labeled images, see `features.teacher_check`; None: it was
            not tested on any.
        params: where the networks run.
        is_yardstick_learned: whether the yardstick holds images that the teacher learned from.

    Raises:
        InputError: there are no test images, a model gives no numbers for some of them, or the
            labeled features or the yardstick are of another teacher.
    """
    if not len(test_images):
        raise InputError(
            "certificate: there are no test images: give data_ingestion.test a source, with or "
            "without labels"
        )
    if labeled_features is not None:
        check_teacher(labeled_features, teacher.fingerprint(), "labeled_features")
    of_teacher = _answers("teacher_model", teacher, test_images, params)
    of_student = _answers("student_model", student, test_images, params)
    labels = _labels(test_images)
    is_equal = of_student.classes == of_teacher.classes
    agreement = share_of(is_equal)
    accuracy = None
    if labels is not None:
        accuracy = share_of(of_student.classes == labels)._asdict()
    teacher_accuracy = _teacher_accuracy(of_teacher, labels, teacher_check)
    bound = None
    if teacher_accuracy is not None:
        of_the_teacher = Interval(teacher_accuracy["lower"], teacher_accuracy["upper"])
        bound = accuracy_bound(Interval(agreement.lower, agreement.upper), of_the_teacher)
    factor = _factor(student, yardstick, teacher, params)
    shift = None
    n_compared = 0
    if labeled_features is not None and len(labeled_features):
        n_compared = len(labeled_features)
        shift = _shift(read_log_odds(labeled_features), of_teacher.log_odds)
    warnings = _warnings(agreement, shift, _learned_elsewhere(student, teacher))
    if factor is not None and is_yardstick_learned:
        warnings.append(
            "The factor of the scaled student was fitted on images that the teacher learned from, "
            "and of which it is surer than of others."
        )
    costs = model_costs({"teacher": teacher, "student": student}, params)
    return {
        "version": VERSION,
        "level": LEVEL,
        "images": _images(test_images, labels is not None),
        "agreement": agreement._asdict(),
        "agreement_of_classes": _of_classes(is_equal, of_teacher.classes, teacher.card.classes),
        "accuracy": accuracy,
        "teacher_accuracy": teacher_accuracy,
        "accuracy_bound": bound,
        "calibration": {
            "factor": factor,
            "n_yardstick": None if factor is None else len(yardstick),
            **_calibrations(of_teacher, of_student, labels, factor),
        },
        "confusions": _confusions(of_teacher, of_student, teacher.card.classes),
        "shift": shift,
        "n_compared": n_compared,
        "warnings": warnings,
        "cost": {**costs, "hardware": cpu_name()},
        "provenance": _provenance(teacher, student, test_images, yardstick),
    }


def check_certificate(
    certificate: Mapping[str, Any],
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    params: CertificateParams,
) -> dict[str, Any]:
    """Return the limits that a certificate keeps.

    Raises:
        LimitMissedError: it does not keep one.
        InputError: it is of another teacher, student or images, or no limit is given.
    """
    check_is_of(certificate, teacher, student, test_images, "certify")
    if params.min_agreement is None and params.min_accuracy is None:
        raise InputError(
            "certify: there is no limit to check: set certificate.min_agreement or "
            "certificate.min_accuracy, such as --params=certificate.min_agreement=0.95"
        )
    agreement = certificate["agreement"]["lower"]
    accuracy = certified_accuracy(certificate)
    source = "labels" if certificate["accuracy"] is not None else "bound"
    if params.min_accuracy is not None and source == "bound":
        _check_bound(certificate)
    faults = []
    for name, found, limit in (
        ("agreement with the teacher", agreement, params.min_agreement),
        ("accuracy", accuracy, params.min_accuracy),
    ):
        if limit is not None and found is not None and found < limit:
            faults.append(
                f"the {name} is only known to be at least {found:.4f}, and {limit} is asked for"
            )
    if faults:
        raise LimitMissedError(f"certify: {'; '.join(faults)}")
    return {
        "student": student.fingerprint(),
        "test_images": test_images.fingerprint,
        "agreement_lower": agreement,
        "accuracy_lower": accuracy,
        "accuracy_source": None if accuracy is None else source,
        "min_agreement": params.min_agreement,
        "min_accuracy": params.min_accuracy,
        "warnings": list(certificate["warnings"]),
    }


def check_is_of(
    certificate: Mapping[str, Any],
    teacher: Model,
    student: Model,
    test_images: ImageStore,
    stage: str,
) -> None:
    """Check that a certificate is about this student of this teacher, on these test images.

    Raises:
        InputError: it is about another one; `stage` begins the message.
    """
    present = (
        ("student", "student_model", student.fingerprint()),
        ("teacher", "teacher_model", teacher.fingerprint()),
        ("test_images", "test_images", test_images.fingerprint),
    )
    for key, shown, fingerprint in present:
        if certificate["provenance"][key] != fingerprint:
            raise InputError(
                f"{stage}: certificate.json is not about the present {shown}: run the stage that "
                "evaluates the student, such as `kedro run --pipeline=evaluation`"
            )


def _check_bound(certificate: Mapping[str, Any]) -> None:
    """Refuse a bound on the accuracy that is not known, or whose assumptions are in doubt."""
    if certificate["accuracy_bound"] is None:
        raise InputError(
            "certify: certificate.min_accuracy needs labels of the test images (`labels: classes` "
            "on the sources of data_ingestion.test), or, in the pipeline `full`, labeled images "
            "that the teacher was tested on; then run the stages from `data_ingestion` on again"
        )
    if certificate["shift"] is not None:
        raise InputError(
            "certify: certificate.min_accuracy: without labels of the test images the accuracy is "
            "known from that of the teacher on the labeled images, and these seem to be of "
            "another kind (`warnings` in certificate.json): give the test images labels, or set "
            "certificate.min_agreement alone"
        )


def certified_accuracy(certificate: Mapping[str, Any]) -> float | None:
    """Return what the student's accuracy is at least: by the labels, or by the bound without any.

    None where neither is known.
    """
    if certificate["accuracy"] is not None:
        return float(certificate["accuracy"]["lower"])
    bound = certificate["accuracy_bound"]
    return None if bound is None else float(bound)


def _answers(name: str, model: Model, images: ImageStore, params: EvaluationParams) -> _Answers:
    """Return the answers of a model.

    Raises:
        InputError: some are no numbers.
    """
    logits = predict_logits(model, images, params.compute)
    # Minus infinity excludes a class; plus infinity is an overflow.
    is_unusable = (logits.isnan() | logits.isposinf()).any(dim=1)
    n_unusable = int(is_unusable.sum())
    if n_unusable:
        raise InputError(
            f"certificate: {name} gives no numbers for {n_unusable:,} of {len(images):,} test "
            "images: set compute.precision to float32, or train it again"
        )
    return _Answers(logits)


class _Answers:
    """The logits of a model for (N,) images.

    Args:
        logits: (N, K).
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        found = class_confidence(logits)
        self.classes: np.ndarray = found.classes.numpy()
        self.confidence: np.ndarray = found.confidence.numpy()
        self.log_odds: np.ndarray = found.log_odds.numpy()

    def scaled(self, factor: float) -> _Answers:
        """Return the answers with logits times a factor, which changes no class."""
        return _Answers(self.logits.double() * factor)


def _labels(images: ImageStore) -> np.ndarray | None:
    """Return the (N,) class of each image, None if one has none."""
    labels = images.index["label"]
    if labels.isna().any():
        return None
    classes: np.ndarray = labels.to_numpy(dtype=np.int64)
    return classes


def _images(images: ImageStore, has_labels: bool) -> dict[str, Any]:
    sources = images.index["source"].value_counts(sort=False)
    return {
        "store": "test_images",
        "n": len(images),
        "n_per_source": {str(name): int(n) for name, n in sources.items()},
        "has_labels": has_labels,
        "fingerprint": images.fingerprint,
    }


def _teacher_accuracy(
    teacher: _Answers, labels: np.ndarray | None, check: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the teacher's accuracy on the test images, or on the labeled ones, or None."""
    if labels is not None:
        return {**share_of(teacher.classes == labels)._asdict(), "images": "test images"}
    if check is None or "untested" in check:
        return None
    n = check["n_images"]
    return {
        "n_hits": round(check["accuracy"] * n),
        "n": n,
        "value": check["accuracy"],
        "lower": check["lower"],
        "upper": check["upper"],
        "images": "labeled images",
    }


def _of_classes(
    is_equal: np.ndarray, classes: np.ndarray, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    entries = []
    shares = shares_of_classes(is_equal, classes, len(names))
    for name, share in zip(names, shares, strict=True):
        facts: dict[str, Any] = {"n_hits": 0, "n": 0, "value": None, "lower": None, "upper": None}
        if share is not None:
            facts = share._asdict()
        entries.append({"class": name, **facts})
    return entries


def _factor(
    student: Model, yardstick: Yardstick, teacher: Model, params: EvaluationParams
) -> float | None:
    """Return the factor of the student's logits that brings it closest to the teacher.

    Fitted on the yardstick, which the student did not learn from. None where there is none.
    """
    own = student.card.origin.get("yardstick") or {}
    if not len(yardstick) or own.get("fingerprint") != yardstick.fingerprint:
        return None
    check_yardstick(yardstick.table, teacher.fingerprint(), teacher.n_classes)
    return closeness(*yardstick_logits(student, yardstick, params.compute)).factor


def _calibrations(
    teacher: _Answers, student: _Answers, labels: np.ndarray | None, factor: float | None
) -> dict[str, Any]:
    """Return the calibration of the student against the teacher's classes and the labels."""
    models = {"student": student}
    if factor is not None:
        models["scaled_student"] = student.scaled(factor)
    found: dict[str, Any] = {"against_teacher": {}, "against_labels": None}
    for name, answers in models.items():
        found["against_teacher"][name] = _calibration(answers, teacher.classes)
    if labels is not None:
        models["teacher"] = teacher
        of_labels = {name: _calibration(answers, labels) for name, answers in models.items()}
        found["against_labels"] = of_labels
    return found


def _calibration(answers: _Answers, truth: np.ndarray) -> dict[str, Any]:
    found = measure_calibration(answers.confidence, answers.classes == truth)
    bins = []
    for n, confidence, right in zip(found.counts, found.confidence, found.right, strict=True):
        if n:
            bins.append({"n": int(n), "confidence": float(confidence), "right": float(right)})
    return {"error": found.error, "bins": bins}


def _confusions(
    teacher: _Answers, student: _Answers, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    found = worst_confusions(student.classes, teacher.classes, len(names), N_CONFUSIONS)
    return [
        {
            "teacher": names[confusion.teacher_class],
            "student": names[confusion.student_class],
            "n": confusion.n,
            "share": confusion.share,
        }
        for confusion in found
    ]


def _learned_elsewhere(student: Model, teacher: Model) -> bool:
    """Return whether the student's card names another teacher."""
    own_teacher = student.card.origin.get("teacher", teacher.fingerprint())
    return bool(own_teacher != teacher.fingerprint())


def _warnings(agreement: Share, shift: float | None, learned_elsewhere: bool) -> list[str]:
    warnings = []
    if learned_elsewhere:
        warnings.append(
            "student_model learned from another teacher than teacher_model: distill it again."
        )
    if agreement.upper - agreement.lower > 0.1:
        limits = f"{100 * agreement.lower:.1f} to {100 * agreement.upper:.1f} %"
        warnings.append(f"There are few images: the agreement may be anything from {limits}.")
    if shift is not None:
        warnings.append(
            f"The teacher is surer of a labeled image than of a test image in {100 * shift:.0f} % "
            "of the pairs: they may be of different kinds, or the teacher learned from the labeled "
            "ones. The certificate is about images like the test images."
        )
    return warnings


def _shift(labeled: np.ndarray, test: np.ndarray) -> float | None:
    """Return the share of pairs in which the labeled image has more, None if it is not large."""
    # imported late: it takes a second
    from scipy import stats

    values = np.concatenate([labeled, test])
    is_labeled = np.arange(len(values)) < len(labeled)
    auc = area_under_roc(values, is_labeled)
    p_value = stats.mannwhitneyu(labeled, test, alternative="greater").pvalue
    if auc > SHIFT_AUC and p_value < SHIFT_P_VALUE:
        return auc
    return None


def _provenance(
    teacher: Model, student: Model, test_images: ImageStore, yardstick: Yardstick
) -> dict[str, Any]:
    recipe = student.card.origin.get(TRAINING) or {}
    block = recipe.get("distillation") or {}
    commit = commit_of_package()
    return {
        "teacher": teacher.fingerprint(),
        "student": student.fingerprint(),
        "manifest": recipe.get("manifest"),
        "code_of_training": recipe.get("code"),
        "seed": block.get("seed"),
        # Of the evaluation. The card has none: a commit with equal code makes the same student.
        "commit": commit.name if commit else None,
        "commit_has_changes": commit.is_changed if commit else None,
        "test_images": test_images.fingerprint,
        "yardstick": yardstick.fingerprint if len(yardstick) else None,
        "python": platform.python_version(),
        "libraries": {
            "pu_kd_pipeline": __version__,
            **{name: version(name) for name in _LIBRARIES},
        },
    }
