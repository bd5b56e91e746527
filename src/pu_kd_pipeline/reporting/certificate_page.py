"""The page that shows a certificate: one sentence, tables, and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pu_kd_pipeline.reporting.html import render_page
from pu_kd_pipeline.reporting.sections.line_chart import Line, LineChart, Scale, line_chart
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

# Name in the certificate -> title, role and style of its line in the reliability diagram.
_LINES: dict[str, tuple[str, str, str]] = {
    "student": ("student", "student", ""),
    "scaled_student": ("student, temperature-scaled", "student", "dashed hollow"),
    "teacher": ("teacher", "teacher", "dotted"),
}


def render_certificate(certificate: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        certificate: result of `certificate.make_certificate`.
    """
    return render_page(
        "certificate.html.jinja",
        title="Certificate of a student",
        findings=certificate_sentences(certificate),
        warnings=certificate["warnings"],
        tiles=_tiles(certificate),
        classes=_class_rows(certificate),
        confusions=_confusion_rows(certificate),
        calibration=_calibration_rows(certificate),
        costs=_cost_rows(certificate),
        hardware=certificate["cost"]["hardware"],
        reliability=_reliability_sentence(certificate),
        chart=reliability_chart(certificate),
        scaling=_scaling_sentence(certificate["calibration"]),
        provenance=_provenance_rows(certificate),
    )


def certificate_sentences(certificate: Mapping[str, Any]) -> list[str]:
    """Return what a certificate says in sentences, the most important one first."""
    images = certificate["images"]
    agreement = certificate["agreement"]
    sentences = [
        f"The student gives the teacher's class in {share_text(agreement)} of the cases, on "
        f"{_images_text(agreement['n'])}."
    ]
    teacher = certificate["teacher_accuracy"]
    bound = certificate["accuracy_bound"]
    if certificate["accuracy"] is not None:
        sentences.append(f"It is right on {share_text(certificate['accuracy'])} of them.")
    if bound is not None:
        of_teacher = (
            f"that of the teacher, {share_text(teacher)} on the {teacher['images']}, less the "
            "images on which they disagree"
        )
        if certificate["accuracy"] is not None:
            sentences.append(
                "From the teacher's accuracy and the agreement alone it would be known to be right "
                f"on at least {percent(bound)}: {of_teacher}."
            )
        else:
            sentences.append(
                f"Its accuracy is at least {percent(bound)}: {of_teacher}. This holds where the "
                "labeled images are like the test images and the teacher did not learn from them."
            )
    if not images["has_labels"]:
        sentences.append(
            "The test images have no labels: the certificate says how well the student follows "
            "its teacher, and not how often both are right."
        )
        if bound is None:
            sentences.append(
                "Nothing is known of its accuracy, because the teacher was not tested on other "
                "images with labels either."
            )
    # A certificate of before has no such number.
    if certificate.get("n_compared") == 0:
        sentences.append(
            "Whether the test images are of the kind that the teacher knows was not tested: there "
            "were no labeled images to compare them with."
        )
    sources = ", ".join(f"{name} ({n:,})" for name, n in images["n_per_source"].items())
    sentences.append(
        f"All numbers are about images like these, from {sources}. Intervals have a level of "
        f"{percent(certificate['level'], 0)} (Clopper and Pearson 1934)."
    )
    return sentences


def _images_text(n: int) -> str:
    return "one test image" if n == 1 else f"{n:,} test images"


def share_text(share: Mapping[str, Any]) -> str:
    """Return a share with its interval, such as "98.8 % (97.4 to 99.6)"."""
    if share["value"] is None:
        return UNKNOWN
    limits = f"{100 * share['lower']:.1f} to {100 * share['upper']:.1f}"
    return f"{percent(share['value'])} ({limits})"


def reliability_chart(certificate: Mapping[str, Any]) -> LineChart | None:
    """Return the reliability diagram: the share right over the confidence, in bins.

    Right is what the labels say, or what the teacher says where test images have none. Larger
    points hold more images.
    """
    models, truth = _calibrated(certificate)
    ends = np.array([0.0, 1.0])
    no_dots = np.zeros(2)
    name = "confidence equals accuracy"
    lines = [Line(name, "muted-line", ends, ends, radii=no_dots, shows_last=False)]
    for name, measured in models.items():
        title, role, style = _LINES[name]
        bins = measured["bins"]
        n_images = np.array([entry["n"] for entry in bins], dtype=np.float64)
        lines.append(
            Line(
                title,
                role,
                np.array([entry["confidence"] for entry in bins], dtype=np.float64),
                np.array([entry["right"] for entry in bins], dtype=np.float64),
                style,
                radii=2 + 5 * (n_images / n_images.sum()) ** 0.25,
                shows_last=False,
            )
        )
    scale = Scale(is_log=False, covers=(0.0, 1.0))
    return line_chart(
        f"share that is {truth}",
        "confidence (mean of a bin)",
        lines,
        x_scale=scale,
        y_scale=scale,
        height=300,
    )


def _reliability_sentence(certificate: Mapping[str, Any]) -> str:
    models, truth = _calibrated(certificate)
    error = models["student"]["error"]
    return (
        f"The student's confidence is off by {100 * error:.1f} points on average: its expected "
        f"calibration error against {truth}."
    )


def _calibrated(certificate: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the calibration of each model, and what is right in it."""
    calibration = certificate["calibration"]
    if calibration["against_labels"] is not None:
        return calibration["against_labels"], "the label"
    return calibration["against_teacher"], "the teacher's class"


def _tiles(certificate: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = [
        {
            "name": "agreement, at least",
            "value": percent(certificate["agreement"]["lower"]),
            "role": "student",
        }
    ]
    accuracy = certificate["accuracy"]
    if accuracy is not None:
        name, value = "accuracy, at least", accuracy["lower"]
    else:
        name, value = "accuracy by the bound, at least", certificate["accuracy_bound"]
    tiles.append({"name": name, "value": percent(value), "role": "student"})
    error = certificate["calibration"]["against_teacher"]["student"]["error"]
    tiles.append(
        {"name": "calibration error, to the teacher", "value": percent(error), "role": "teacher"}
    )
    return tiles


def _scaling_sentence(calibration: Mapping[str, Any]) -> str:
    n = calibration["n_yardstick"]
    if n is None:
        return (
            "The student was not scaled: there is no yardstick, or it was trained with another one."
        )
    return (
        f"The scaled student has its logits times {calibration['factor']:.3g}, which was fitted to "
        f"the teacher on the {n:,} images of the yardstick, without labels. Fitted on fewer than a "
        "hundred, it may make the error larger."
    )


def _class_rows(certificate: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and a row per class of the teacher, the lowest agreement first."""
    rows = [["class (by the teacher)", "images", "same class by the student", "95 % interval"]]
    entries = certificate["agreement_of_classes"]
    # Classes without images last.
    for entry in sorted(entries, key=lambda entry: (entry["value"] is None, entry["value"] or 0)):
        interval = UNKNOWN
        if entry["value"] is not None:
            interval = f"{percent(entry['lower'])} to {percent(entry['upper'])}"
        rows.append([entry["class"], f"{entry['n']:,}", percent(entry["value"]), interval])
    return rows


def _confusion_rows(certificate: Mapping[str, Any]) -> list[list[str]]:
    rows = [["teacher", "student", "images", "of the teacher's class"]]
    for entry in certificate["confusions"]:
        share = percent(entry["share"])
        rows.append([entry["teacher"], entry["student"], f"{entry['n']:,}", share])
    return rows


def _calibration_rows(certificate: Mapping[str, Any]) -> list[list[str]]:
    rows = [["expected calibration error", "against the teacher's class", "against the labels"]]
    calibration = certificate["calibration"]
    of_labels = calibration["against_labels"] or {}
    for name, (title, _, _) in _LINES.items():
        of_teacher = calibration["against_teacher"].get(name)
        by_label = of_labels.get(name)
        if of_teacher is None and by_label is None:
            continue
        cells = [
            UNKNOWN if found is None else percent(found["error"])
            for found in (of_teacher, by_label)
        ]
        rows.append([title, *cells])
    return rows


def _cost_rows(certificate: Mapping[str, Any]) -> list[list[str]]:
    costs = certificate["cost"]
    rows = [["", "teacher", "student"]]
    quantities = (
        ("parameters", "parameters", "{:,.0f}"),
        ("FLOPs per image", "flops", "{:,.0f}"),
        ("size of the weights, bytes", "size_bytes", "{:,.0f}"),
        ("latency of one image, ms", "latency_ms", "{:.3g}"),
    )
    for title, key, form in quantities:
        cells = [form.format(costs[name][key]) for name in ("teacher", "student")]
        rows.append([title, *cells])
    return rows


def _provenance_rows(certificate: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in certificate["provenance"].items():
        if name == "libraries":
            rows += [(library, number) for library, number in value.items()]
        else:
            rows.append((name.replace("_", " "), UNKNOWN if value is None else str(value)))
    return rows
