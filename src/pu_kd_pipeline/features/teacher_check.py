"""Testing a teacher on labeled images, and what it would be with another input or class order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pu_kd_pipeline.features.input_alternatives import InputAlternative, input_alternatives
from pu_kd_pipeline.features.labeled_images import (
    LabeledImages,
    changed_fields,
    logits_with,
    pixels_with,
)
from pu_kd_pipeline.features.margin_alternatives import larger_margins
from pu_kd_pipeline.features.reading import as_tensor
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.features.teacher_advice import CLASS_ORDER, advice_of
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.learning.class_order import in_matched_order, outputs_of_classes
from pu_kd_pipeline.learning.metrics import accuracy
from pu_kd_pipeline.learning.proportions import (
    clopper_pearson_interval,
    count_discordant,
    mcnemar_p_value,
)
from pu_kd_pipeline.learning.teacher_check import (
    Verdict,
    balanced_draw,
    labeled_accuracy,
    seems_softened_twice,
)
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import TeacherCheckParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable

NO_LABELS = (
    "the labeled images have no class of the teacher (set `labels: classes` on the sources of "
    "data_ingestion.labeled, if their classes are known)"
)
_MAX_BYTES = 2**28  # of the sample
SIGNIFICANCE = 0.05  # of all alternatives together
INPUT = "input"  # kind of an alternative, next to CLASS_ORDER


@dataclass(frozen=True)
class LabeledLogits:
    """A teacher's outputs for labeled images.

    Attributes:
        logits: (N, K) float32.
        labels: (N,) int64 classes of the teacher.
        rows: (n,) which of the N images are the sample.
        sample: the n images on which alternatives are measured.
    """

    logits: Tensor
    labels: np.ndarray
    rows: np.ndarray
    sample: LabeledImages


def check_on_images(
    model: Model, images: LabeledImages, params: TeacherCheckParams, *, states_input: bool
) -> dict[str, Any]:
    """Return what `describe_check` returns, of a few labeled images."""
    configured = InputAlternative("", model.card.input)
    logits = logits_with(model, images.pixels, configured, params.compute)
    rows = np.arange(len(images.labels))
    labeled = LabeledLogits(logits, images.labels, rows, images)
    return describe_check(model, labeled, params, states_input=states_input)


def check_on_features(
    model: Model,
    features: ShardedTable,
    images: ImageStore,
    params: TeacherCheckParams,
    *,
    states_input: bool,
) -> dict[str, Any]:
    """Return what `describe_check` returns, of all labeled images of a store.

    Args:
        model: the teacher.
        features: of the images.
        images: the store.
        params: of the check.
        states_input: see `teacher_advice.advice_of`.
    """
    check_teacher(features, model.fingerprint(), "labeled_features")
    ids = []
    parts = []
    for table in features.shards(["id", "logits"]):
        ids.append(table["id"].to_pandas().to_numpy())
        parts.append(as_tensor(table["logits"]))
    store_rows = find_rows(images, np.concatenate(ids), "labeled_features")
    labels = images.index["label"].iloc[store_rows]
    is_labeled = labels.notna().to_numpy()
    if not is_labeled.any():
        return {"untested": NO_LABELS}
    labeled_rows = store_rows[is_labeled]
    classes = labels[is_labeled].to_numpy(dtype=np.int64)
    # A copy: torch takes no memory that is read-only.
    mask = torch.from_numpy(is_labeled.copy())
    logits = torch.cat(parts)[mask]

    n_drawn = sample_size(params, model.image_shape)
    drawn = balanced_draw(classes, n_drawn, params.seed)
    pixels = images.read(labeled_rows[drawn])
    sample = LabeledImages(pixels, classes[drawn])
    labeled = LabeledLogits(logits, classes, drawn, sample)
    return describe_check(model, labeled, params, states_input=states_input)


def describe_check(
    model: Model, labeled: LabeledLogits, params: TeacherCheckParams, *, states_input: bool
) -> dict[str, Any]:
    """Return what the labeled images say about a teacher, as JSON can hold it.

    `accuracy`, `lower`, `upper`, `chance`, `verdict` and `is_refused` are those of
    `learning.teacher_check.LabeledAccuracy`; `better_alternatives` those of `better_alternatives`;
    `larger_margins` those of `margin_alternatives.larger_margins`, which are measured for a usable
    teacher without better alternatives; `advice` those of `teacher_advice.advice_of`.
    """
    classes = labeled.logits.argmax(dim=1).numpy()
    found = labeled_accuracy(classes, labeled.labels, model.n_classes)
    of_sample = classes[labeled.rows]
    sample = labeled.sample
    n_alternatives, better = better_alternatives(model, of_sample, sample, params.compute)
    margins = []
    if found.verdict == Verdict.USABLE and not better:
        logits = labeled.logits[torch.from_numpy(labeled.rows)].numpy()
        level = SIGNIFICANCE / n_alternatives
        margins = larger_margins(model, logits, sample, level, params.compute)
    check = {
        "accuracy": found.accuracy,
        "lower": found.interval.lower,
        "upper": found.interval.upper,
        "chance": found.chance,
        "n_images": found.n_images,
        "n_classes": found.n_classes,
        "verdict": str(found.verdict),
        "is_refused": found.is_refused,
        "is_softened_twice": seems_softened_twice(labeled.logits.numpy()),
        "n_alternatives": n_alternatives,
        "n_sample": len(labeled.rows),
        "sample_accuracy": accuracy(of_sample, sample.labels),
        "better_alternatives": better,
        "larger_margins": margins,
    }
    check["advice"] = advice_of(check, model.card, states_input=states_input)
    return check


def sample_size(params: TeacherCheckParams, image_shape: tuple[int, int, int]) -> int:
    """Return the most images that alternatives are measured on; fewer if they are very large."""
    n_fitting = _MAX_BYTES // math.prod(image_shape)
    return min(params.max_images, max(1, n_fitting))


# --- alternatives ---------------------------------------------------------------------------------


def better_alternatives(
    model: Model, classes: np.ndarray, sample: LabeledImages, compute: ComputeParams
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many alternatives there are, and those that are significantly better, best first.

    Significant: McNemar's exact test on the same images, with the level divided by the number of
    alternatives (Bonferroni).

    Args:
        model: the teacher.
        classes: (n,) its answers on the sample as it is configured.
        sample: the images.
        compute: device, precision and batch size.
    """
    has_files = sample.decode is not None
    alternatives = input_alternatives(model.card.input, sample.pixels, has_files=has_files)
    n_alternatives = len(alternatives) + 1  # and the order of the classes
    level = SIGNIFICANCE / n_alternatives
    was_correct = classes == sample.labels
    better = []
    n_wrong = int((~was_correct).sum())
    # Needs no forward pass; where it explains nearly every error, no input can explain more.
    class_order = _class_order(model, classes, sample.labels, was_correct)
    if class_order is not None and class_order["p_value"] <= level:
        better.append(class_order)
        n_wrong = round(len(classes) * (1 - class_order["accuracy"]))
    # Not even an alternative without errors could be significantly better: nothing is measured.
    if _may_be_significant(n_wrong, level):
        measurement = _Measurement(model, sample, was_correct, level, compute)
        better += measurement.better_inputs(alternatives)
    # A class order comes last among equals: it seldom explains what an input explains, too.
    better.sort(key=lambda entry: entry["kind"] == CLASS_ORDER)
    return n_alternatives, best_first(better)


def best_first(alternatives: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the alternatives by accuracy; those that so few images cannot tell apart as they came.

    They come in the order of how usual they are. Those are taken as equal whose accuracy is within
    the interval of the highest one.
    """
    if not alternatives:
        return []
    highest = max(alternatives, key=lambda entry: entry["accuracy"])

    def rank(entry: dict[str, Any]) -> float:
        if entry["accuracy"] >= highest["lower"]:
            return -float(highest["accuracy"])
        return -float(entry["accuracy"])

    return sorted(alternatives, key=rank)


def _may_be_significant(n_gained: int, level: float) -> bool:
    """Return whether so many gained images are significant if no other image is lost."""
    return mcnemar_p_value(n_gained, 0, alternative="greater") <= level


@dataclass(frozen=True)
class _Measurement:
    """What alternatives are compared with."""

    model: Model
    sample: LabeledImages
    was_correct: np.ndarray
    level: float
    compute: ComputeParams

    def better_inputs(self, alternatives: list[InputAlternative]) -> list[dict[str, Any]]:
        """Return the inputs that are significantly better."""
        better = []
        for alternative in alternatives:
            answers = self._answers(alternative)
            if answers is None:
                continue
            entry = _entry(alternative.name, answers, self.sample.labels, self.was_correct)
            if entry["p_value"] <= self.level:
                changes = changed_fields(self.model.card.input, alternative)
                better.append({**entry, "kind": INPUT, "changes": changes})
        return better

    def _answers(self, alternative: InputAlternative) -> np.ndarray | None:
        """Return the (n,) answers with another input; None if it cannot be significantly better.

        The images that are wrong now come first: they decide which alternatives are hopeless.
        """
        pixels = pixels_with(self.sample, self.model.card.input, alternative)
        labels = self.sample.labels
        was_wrong = ~self.was_correct
        new_answers = self._classes(pixels[was_wrong], alternative)
        is_gained = new_answers == labels[was_wrong]
        n_gained = int(is_gained.sum())
        if not _may_be_significant(n_gained, self.level):
            return None
        answers = np.empty(len(labels), dtype=np.int64)
        answers[was_wrong] = new_answers
        if self.was_correct.any():
            answers[self.was_correct] = self._classes(pixels[self.was_correct], alternative)
        return answers

    def _classes(self, pixels: np.ndarray, alternative: InputAlternative) -> np.ndarray:
        logits = logits_with(self.model, pixels, alternative, self.compute)
        return logits.argmax(dim=1).numpy()


def _class_order(
    model: Model, classes: np.ndarray, labels: np.ndarray, was_correct: np.ndarray
) -> dict[str, Any] | None:
    """Return the order of classes that matches best; None if it is the configured one."""
    answers = in_matched_order(classes, labels, model.n_classes)
    outputs = outputs_of_classes(classes, labels, model.n_classes)
    moved = {}
    for number, output in outputs.items():
        if number != output:
            moved[str(number)] = output
    if not moved:
        return None
    entry = _entry("the classes in another order", answers, labels, was_correct)
    return {**entry, "kind": CLASS_ORDER, "outputs": moved}


def _entry(
    name: str, answers: np.ndarray, labels: np.ndarray, was_correct: np.ndarray
) -> dict[str, Any]:
    is_correct = answers == labels
    n_correct = int(is_correct.sum())
    interval = clopper_pearson_interval(n_correct, len(labels))
    n_gained, n_lost = count_discordant(is_correct, was_correct)
    return {
        "name": name,
        "accuracy": accuracy(answers, labels),
        "lower": interval.lower,
        "upper": interval.upper,
        "p_value": mcnemar_p_value(n_gained, n_lost, alternative="greater"),
    }
