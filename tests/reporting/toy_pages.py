"""Toy inputs of the pages besides the report of `full`: a certificate, an export, and others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pu_kd_pipeline.pipelines.critic_distillation.nodes import plot_critic
from pu_kd_pipeline.reporting.audit_result import render_result
from pu_kd_pipeline.reporting.certificate_page import render_certificate
from pu_kd_pipeline.reporting.export_page import render_export
from pu_kd_pipeline.reporting.pilot_page import render_pilot
from pu_kd_pipeline.reporting.student_search_page import render_student_search
from tests.reporting.test_pilot_page import pilot_of
from tests.reporting.toy_run import (
    CERTIFICATE,
    INGESTION,
    class_names,
    history,
    metrics_of,
    model,
    predicted,
    saved_student,
)

# As long as hashes are, without a place to break.
DIGEST = "5e10ea0f" * 8
SHARE = {"n_hits": 492, "n": 500, "value": 0.984, "lower": 0.968, "upper": 0.993}


def critic_page(names: tuple[str, ...], student: str = "57d7") -> str:
    """Return the page of `critic_distillation`.

    Args:
        names: of the ten classes.
        student: hash of the saved student, by which the certificate knows it or not.
    """
    metrics = metrics_of(gain=None)
    metrics["student_without_critic"] = model(0.94)
    metrics["critic"] = {"collapse": None, "gain": 0.01}
    test_images, predictions = predicted(400, 10)
    original, _ = predicted(40, 10)
    curves = history(
        20,
        yardstick_agreement=0.9,
        critic_auc=0.8,
        clamped_share=0.2,
        kl_loss=[1 / number for number in range(1, 21)],
        attention_loss=0.1,
        student_critic_loss=0.3,
    )
    _, _, page = plot_critic(
        metrics,
        curves,
        history(20, yardstick_agreement=0.8),
        SimpleNamespace(card=SimpleNamespace(classes=list(names))),  # type: ignore[arg-type]
        saved_student(student),
        test_images,
        original,
        predictions,
        CERTIFICATE,
        INGESTION,
        *[{}] * 5,  # type: ignore[arg-type]
        params={"seed": 0, "lr": 0.1},  # type: ignore[arg-type]
    )
    return page


def certificate() -> dict[str, Any]:
    """Return a certificate with every part that the page shows."""
    bins = [
        {"n": 3, "confidence": 0.5, "right": 0.0},
        {"n": 40, "confidence": 0.8, "right": 0.7},
        {"n": 457, "confidence": 0.99, "right": 1.0},
    ]
    measured = {"error": 0.013, "bins": bins}
    calibrated = {"student": measured, "scaled_student": measured}
    cost = {"parameters": 58474, "flops": 3580928, "size_bytes": 236784, "latency_ms": 0.2}
    return {
        "level": 0.95,
        "images": {"n": 500, "n_per_source": {"demo": 500}, "has_labels": True},
        "agreement": SHARE,
        "agreement_of_classes": [{"class": name, **SHARE} for name in class_names(10)],
        "accuracy": SHARE,
        "teacher_accuracy": SHARE | {"images": "test images"},
        "accuracy_bound": 0.94,
        "calibration": {
            "factor": 1.6,
            "n_yardstick": 49,
            "against_teacher": calibrated,
            "against_labels": calibrated | {"teacher": measured},
        },
        "confusions": [{"teacher": "1", "student": "3", "n": 1, "share": 0.02}],
        "n_compared": 0,
        "warnings": ["The factor was fitted on images that the teacher learned from."],
        "cost": {"teacher": cost, "student": cost, "hardware": "a processor"},
        "provenance": CERTIFICATE["provenance"] | {"teacher": DIGEST, "student": DIGEST},
    }


def student_search() -> dict[str, Any]:
    """Return the result of a search for a student with two rounds."""
    names = ("digits_cnn, width 2", "digits_cnn, width 4", "digits_cnn, width 8")
    costs = {"teacher": {"latency_ms": 0.9, "size_bytes": 3e5, "flops": 4e6, "parameters": 60_000}}
    trials = []
    students = []
    for number, name in enumerate(names, start=1):
        costs[name] = {key: value * number / 8 for key, value in costs["teacher"].items()}
        costs[name]["parameters"] = 1000 * number
        students.append(
            {
                "name": name,
                "costs": costs[name],
                "keeps_limits": True,
                "is_trained": True,
                "refused": None,
            }
        )
        for of_round in (1, 2):
            trials.append(
                {
                    "candidate": name,
                    "is_control": False,
                    "round": of_round,
                    "n_updates": 100 * of_round,
                    "seconds": 1.0,
                    "n_pool_images": 1200,
                    "failure": None,
                    "agreement": {"value": 0.62, "lower": 0.55, "upper": 0.7},
                    "kl": 0.5 / (number * of_round),
                }
            )
    return {
        "winner": names[1],
        "closest": names[2],
        "present": names[0],
        "present_keeps_limits": True,
        "difference_to_present": 0.1,
        "costs": costs,
        "trials": trials,
        "students": students,
        "limits": {"latency_ms": 0.5},
        "yardstick": {"n_images": 150},
        "note": None,
        "n_sampled": 1000,
        "n_pool": 3000,
        "hardware": "a processor",
    }


def export_report() -> dict[str, Any]:
    """Return the report of an export."""
    found = {"n": 500, "n_agreed": 500, "agreement": 1.0, "max_difference": 1e-6}
    measured = {"agreement_with_teacher": SHARE, "accuracy": SHARE, "latency_ms": 0.2}
    return {
        "images": {"n": 500},
        "parity": {
            "files": {"onnx": found, "torch_export": found, "safetensors": {}},
            "n_changed": 0,
            "allowed": 1e-4,
            "tolerance": 1e-5,
            "largest_logit": 10.0,
        },
        "int8": found
        | {
            "calibration": {"n": 200, "images": "manifest"},
            "fine_tuning": {
                "n_checked": 1000,
                "n_agreed_float32": 950,
                "n_agreed": 930,
                "n_agreed_after": 945,
                "is_used": True,
                "failure": None,
            },
        },
        "models": {"student": measured, "onnx": measured, "int8": measured},
        "files": {"student.onnx": {"bytes": 12345, "sha256": DIGEST}},
        "warnings": ["Of the int8 file, 1 class changed."],
        "hardware": "a processor",
        "opset": 20,
        "provenance": {"student": DIGEST, "libraries": {"torch": "2.13.0"}},
    }


def audit_result() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the result of an audit, and the precision of the selection by it."""
    prior = {"value": 0.1, "lower": 0.05, "upper": 0.2}
    audit = {
        "class_prior": prior,
        "level": 0.95,
        "n_images": 100,
        "n_answered": 100,
        "cannot_tell": ["pool/" + DIGEST],
        "negatives": [f"pool/a/long/path/of/an/image/{number}.png" for number in range(40)],
        "strata": [
            {
                "first_rank": 1,
                "last_rank": 1000,
                "weight": 0.3,
                "n": 40,
                "yes": 20,
                "no": 19,
                "cannot_tell": 1,
            }
        ],
        "ranking": [{"n_pool": 1000, "n": 40, **prior}],
        "provenance": {"teacher": DIGEST},
    }
    return audit, {"rule": "mixture", "n_selected": 300, "n": 40, **prior}


def small_pages() -> dict[str, str]:
    """Return the pages without a script, by name."""
    yaml = "distillation:\n  student_options: {width: 4}\n"
    command = f"kedro run --pipeline=full --params=distillation.note={DIGEST}"
    return {
        "certificate": render_certificate(certificate()),
        "pilot": render_pilot(pilot_of("gain"), yaml, command),
        "student_search": render_student_search(student_search(), yaml, command),
        "export": render_export(export_report()),
        "audit_result": render_result(*audit_result()),
    }
