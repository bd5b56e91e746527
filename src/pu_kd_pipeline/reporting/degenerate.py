"""Runs whose numbers say less than they seem to: each in one sentence, with what to do.

Each check reads the metrics alone, and returns nothing where a fact is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.reporting.gains import is_entire_pool
from pu_kd_pipeline.reporting.style import percent
from pu_kd_pipeline.reporting.summary import MODEL_QUANTITIES, MODEL_TITLES

SMALL_TEST_SET = 100  # images; the 95 % interval of an accuracy is up to 10 points wide to a side
LARGE_OVERLAP = 0.5  # share of the chosen images that the random student learns from, too
SLOWER = 1.05  # times the teacher's latency: less is within the error of the measurement
ONE_SIDED_95 = 1.645  # standard errors above chance
_MAX_NAMED = 5  # classes in a sentence

Metrics = Mapping[str, Any]


def degenerate_findings(metrics: Metrics) -> list[str]:
    """Return a sentence for everything that makes the numbers of a run doubtful."""
    sentences = []
    for check in _CHECKS:
        sentences += check(metrics)
    return sentences


# --- selection ---


def _selection_size(metrics: Metrics) -> list[str]:
    selection = metrics.get("selection") or {}
    n_selected = selection.get("n_selected")
    # Where images are drawn by relatedness, the entire pool takes part on purpose.
    if n_selected is None or selection.get("effective_sample_size") is not None:
        return []
    if n_selected == 0:
        return [
            "No pool image was selected: student and control learned from the labeled images "
            "alone. Choose another subset_materialization.rule, or a larger budget."
        ]
    # Rules that draw some images more often than others select on purpose from the entire pool.
    rule = RULES.get(str(selection.get("rule")))
    draws_unevenly = rule is not None and rule.draws_unevenly
    if is_entire_pool(selection) and not draws_unevenly:
        return [
            f"All {n_selected:,} pool images were selected: student and control learned from the "
            "same images, so that their difference shows chance alone. Set "
            "subset_materialization.budget below the size of the pool, or choose another rule."
        ]
    batch_size = _checks(metrics).get("batch_size")
    if batch_size is not None and n_selected < batch_size:
        return [
            f"Only {n_selected:,} pool images were selected, fewer than one batch ({batch_size:,}):"
            " the selection hardly decides what the student learns. Raise "
            "subset_materialization.budget, choose another rule, or lower distillation.batch_size."
        ]
    return []


def _overlap(metrics: Metrics) -> list[str]:
    selection = metrics.get("selection") or {}
    n_selected = selection.get("n_selected")
    n_shared = _checks(metrics).get("n_shared_with_random")
    # All of the pool has a sentence of its own.
    if not n_selected or n_shared is None or is_entire_pool(selection):
        return []
    # Metrics are read from a file: a rule in it may come from a newer version.
    rule = RULES.get(str(selection.get("rule")))
    n_by_chance = round(n_selected * rule.random_share) if rule else 0
    # The random part is the same in both on purpose, so that it does not blur the difference.
    n_chosen = n_selected - n_by_chance
    n_shared_chosen = max(n_shared - n_by_chance, 0)
    if n_shared_chosen < LARGE_OVERLAP * n_chosen:
        return []
    share = percent(n_shared_chosen / n_chosen)
    return [
        f"The random student learned from {n_shared_chosen:,} of the {n_chosen:,} images that the "
        f"rule chose ({share}), too: the gain shows only what the others do. Select a smaller "
        "share of the pool, or give data_ingestion.pool more images."
    ]


def _classes_without_images(metrics: Metrics) -> list[str]:
    checks = _checks(metrics)
    sentences = []
    selected = checks.get("classes_without_selected_images")
    n_selected = (metrics.get("selection") or {}).get("n_selected")
    # Without any selected image, every class lacks them.
    if selected and n_selected:
        sentences.append(
            f"No selected image is of {_named(selected)}, as far as the teacher sees: the student "
            "learns these classes from labeled images alone. Select more images, or give "
            "data_ingestion.pool images of these classes."
        )
    labeled = checks.get("classes_without_labeled_images")
    if labeled:
        sentences.append(
            f"No labeled image is of {_named(labeled)}: the selection does not look for these "
            "classes. Give data_ingestion.labeled images of them."
        )
    tested = checks.get("classes_without_test_images")
    # A test set of one class has a sentence of its own.
    if tested and checks.get("n_test_classes") != 1:
        sentences.append(
            f"No test image is of {_named(tested)}: the accuracies say nothing about these "
            "classes. Give data_ingestion.test images of them."
        )
    return sentences


# --- test set ---


def _test_set(metrics: Metrics) -> list[str]:
    sentences = []
    n_test = metrics.get("n_test")
    if n_test is not None and n_test < SMALL_TEST_SET:
        margin = 196 * math.sqrt(0.25 / max(n_test, 1))
        sentences.append(
            f"There are only {n_test:,} test images: chance moves each accuracy by up to "
            f"±{margin:.0f} points (95 %). Give data_ingestion.test more images."
        )
    if _checks(metrics).get("n_test_classes") == 1:
        sentences.append(
            "All test images are of one class: a model that always predicts this class would be "
            "right on all of them. Give data_ingestion.test images of every class."
        )
    return sentences


# --- models ---


def _chance_level(metrics: Metrics) -> list[str]:
    checks = _checks(metrics)
    n_test = metrics.get("n_test")
    # With one class in the test set, every accuracy is that of chance.
    if not n_test or checks.get("n_test_classes") == 1:
        return []
    sentences = []
    for name, chance in (checks.get("chance_accuracy") or {}).items():
        accuracy = (metrics.get(name) or {}).get("accuracy")
        if accuracy is None or _is_above(accuracy, chance, n_test):
            continue
        if _may_be_good(accuracy, chance, n_test):
            sentences.append(
                f"Chance can explain the accuracy of the {_title(name)}, {percent(accuracy)} of "
                f"{n_test:,} test images: guessing as it does would reach {percent(chance)}. Give "
                "data_ingestion.test more images."
            )
            continue
        fix = "check its weights, teacher.input and the order of teacher.classes"
        if name != "teacher":
            fix = (
                "check that its training loss falls, distillation.optimizer.learning_rate and "
                "distillation.n_updates"
            )
        sentences.append(
            f"The {_title(name)} is no better than chance: it classifies {percent(accuracy)} of "
            f"the test images correctly, and guessing as it does would reach {percent(chance)}. "
            f"Do not use it; {fix}."
        )
    return sentences


def _agreement(metrics: Metrics) -> list[str]:
    checks = _checks(metrics)
    n_test = metrics.get("n_test")
    sentences = []
    for name, chance in (checks.get("chance_agreement") or {}).items():
        agreement = (metrics.get(name) or {}).get("agreement")
        if agreement is None or not n_test or checks.get("n_test_classes") == 1:
            continue
        if agreement > 0 and _is_above(agreement, chance, n_test):
            continue
        if agreement > 0 and _may_be_good(agreement, chance, n_test):
            sentences.append(
                f"Chance can explain that the {_title(name)} agrees with the teacher on "
                f"{percent(agreement)} of {n_test:,} test images: it would on {percent(chance)}. "
                "Give data_ingestion.test more images."
            )
            continue
        sentences.append(
            f"The {_title(name)} agrees with the teacher on {percent(agreement)} of the test "
            "images, no more than by chance: it did not learn from this teacher, or counts the "
            "classes in another order. Distill it again from teacher_model."
        )
    return sentences


def _is_above(share: float, chance: float, n: int) -> bool:
    """Return whether a share of n images exceeds chance by more than chance explains."""
    standard_error = math.sqrt(chance * (1 - chance) / n)
    return share > chance + ONE_SIDED_95 * standard_error


def _may_be_good(share: float, chance: float, n: int) -> bool:
    """Return whether the share may be in the upper half between chance and 1.

    The interval of few images holds both: nothing is known then.
    """
    interval = clopper_pearson_interval(round(share * n), n)
    return interval.upper >= (1 + chance) / 2


def _costs(metrics: Metrics) -> list[str]:
    student = metrics.get("student") or {}
    teacher = metrics.get("teacher") or {}
    larger = []
    for quantity in MODEL_QUANTITIES:
        of_student = student.get(quantity.key)
        of_teacher = teacher.get(quantity.key)
        limit = _COST_LIMITS.get(quantity.key)
        if limit is None or not of_student or not of_teacher:
            continue
        spread = 0.0
        if quantity.spread_key is not None:
            spreads = [model.get(quantity.spread_key) or 0.0 for model in (student, teacher)]
            spread = max(spreads)
        is_noise = of_student - of_teacher <= spread
        if of_student > limit * of_teacher and not is_noise:
            values = f"{quantity.to_text(of_student)} against {quantity.to_text(of_teacher)}"
            larger.append(f"{quantity.title} ({values})")
    if not larger:
        return []
    return [
        f"The student costs more than its teacher in {' and '.join(larger)}: it saves nothing "
        "there. Choose a smaller distillation.student_architecture or student_options, such as a "
        "smaller width."
    ]


_COST_LIMITS = {"parameters": 1.0, "flops": 1.0, "latency_ms": SLOWER}


def _equal_students(metrics: Metrics) -> list[str]:
    names = _checks(metrics).get("students_with_equal_weights") or []
    sentences = []
    for name in names:
        sentences.append(
            f"The student and the {_title(name)} are the same network, with equal weights: a "
            "comparison of the two says nothing. Check that they learn from different images or "
            "with different parameters, and that neither folder in 06_models is a copy."
        )
    return sentences


# --- words ---


def _checks(metrics: Metrics) -> Metrics:
    checks: Metrics = metrics.get("checks") or {}
    return checks


def _title(name: str) -> str:
    return MODEL_TITLES.get(name, name.replace("_", " "))


def _named(classes: list[str]) -> str:
    """Return class names as a part of a sentence, the first few of many."""
    if len(classes) == 1:
        return f"class {classes[0]!r}"
    named = ", ".join(repr(name) for name in classes[:_MAX_NAMED])
    if len(classes) > _MAX_NAMED:
        named += ", …"
    return f"{len(classes):,} classes ({named})"


_CHECKS = (
    _selection_size,
    _overlap,
    _classes_without_images,
    _test_set,
    _chance_level,
    _agreement,
    _costs,
    _equal_students,
)
