"""How good the student is, measured once on the test images, and how good the selection was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.images.yardstick import Yardstick, yardstick_logits
from pu_kd_pipeline.learning.latency import network_latencies
from pu_kd_pipeline.learning.metrics import (
    accuracy,
    agreement,
    area_under_roc,
    per_class_accuracy,
    selection_quality,
)
from pu_kd_pipeline.learning.proportions import clopper_pearson_interval
from pu_kd_pipeline.learning.yardstick import closeness
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.storage.manifest import (
    check_manifest,
    is_preferred,
    prefers_images,
    reason_counts,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.yardstick import check_yardstick, yardstick_facts

# Numbers of images that the manifest leaves out: copies of test images, and the yardstick.
EXCLUDED = (
    "n_excluded_pool",
    "n_excluded_labeled",
    "n_yardstick_pool",
    "n_yardstick_labeled",
)

logger = logging.getLogger(__name__)


def compare_models(
    models: dict[str, Model], test_images: ImageStore, params: EvaluationParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return for each model its accuracy, agreement with `models["teacher"]`, and cost.

    Returns:
        The metrics by model, and the predictions: one row per test image with `id`, `label`, and
        the class that each model predicts, in a column named after the model.

    Raises:
        InputError: there are no test images, or some have no label.
    """
    labels = test_images.index["label"]
    if not len(labels) or labels.isna().any():
        raise InputError(
            "evaluation: the test images need labels: set `labels: classes` on the sources of "
            "data_ingestion.test. A certificate needs none, such as by "
            "`kedro run --pipeline=evaluation --to-nodes=evaluation.write_certificate`"
        )
    truth = labels.to_numpy(dtype=np.int64)
    teacher = models["teacher"].fingerprint()
    # All before any metric: agreement needs the teacher's classes.
    predicted: dict[str, np.ndarray] = {}
    for name, model in models.items():
        # A model whose card states no teacher is taken as a student of this one.
        own_teacher = model.card.origin.get("teacher", teacher)
        if own_teacher != teacher:
            logger.warning(
                "%s_model learned from another teacher than teacher_model: distill it again", name
            )
        logits = predict_logits(model, test_images, params.compute)
        predicted[name] = logits.argmax(dim=1).numpy()

    costs = model_costs(models, params)
    metrics: dict[str, Any] = {}
    for name, model in models.items():
        of_model = predicted[name]
        per_class = per_class_accuracy(of_model, truth, model.n_classes)
        metrics[name] = {
            "accuracy": accuracy(of_model, truth),
            "agreement": agreement(of_model, predicted["teacher"]),
            "per_class_accuracy": [_null_if_nan(value) for value in per_class],
            **costs[name],
        }
    predictions = pd.DataFrame(
        {"id": test_images.index["id"].to_numpy(), "label": truth, **predicted}
    )
    predictions = predictions.astype(dict.fromkeys(("label", *models), "int32"))
    # With the same fingerprint, tables of several runs are of the same images.
    predictions.attrs["test_images"] = test_images.fingerprint
    predictions.attrs["classes"] = list(models["teacher"].card.classes)
    return metrics, predictions


def measure_students(
    metrics: dict[str, Any],
    models: Mapping[str, Model],
    yardstick: Yardstick,
    params: EvaluationParams,
) -> None:
    """Add how close each student comes to the teacher on the yardstick, and which images these are.

    Each student gets `yardstick_agreement` with its 95 % interval (`_lower`, `_upper`, Clopper and
    Pearson 1934) and `yardstick_kl` in nats; `yardstick` holds the facts of the yardstick. Nothing
    is added for an empty one. A student whose training left out other images may have learned from
    these: it gets a `yardstick_note` instead.

    Args:
        metrics: those of `compare_models`.
        models: the teacher and its students, by name.
        yardstick: the images, and the logits of this teacher.
        params: where the students run.

    Raises:
        InputError: the yardstick is of another teacher or of other images.
    """
    if not len(yardstick):
        return
    teacher = models["teacher"]
    check_yardstick(yardstick.table, teacher.fingerprint(), teacher.n_classes)
    for name, model in models.items():
        if name == "teacher":
            continue
        own = model.card.origin.get("yardstick") or {}
        if own.get("fingerprint") != yardstick.fingerprint:
            metrics[name]["yardstick_note"] = (
                f"{name}_model was trained with another yardstick, and may have learned from "
                "images of this one: it is not measured on it. Distill it again."
            )
            continue
        found = closeness(*yardstick_logits(model, yardstick, params.compute))
        n_agreed = round(found.agreement * len(yardstick))
        interval = clopper_pearson_interval(n_agreed, len(yardstick))
        metrics[name] |= {
            "yardstick_agreement": found.agreement,
            "yardstick_agreement_lower": interval.lower,
            "yardstick_agreement_upper": interval.upper,
            "yardstick_kl": found.kl,
        }
    metrics["yardstick"] = yardstick_facts(yardstick.table)


def labeled_metrics(teacher_check: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher's accuracy on the labeled images with its interval, and what is wrong.

    Args:
        teacher_check: see `features.teacher_check.describe_check`.
    """
    if "untested" in teacher_check:
        note = f"The teacher was not tested on labeled images: {teacher_check['untested']}."
        return {"labeled_note": note}
    facts = {
        "labeled_accuracy": teacher_check["accuracy"],
        "labeled_accuracy_lower": teacher_check["lower"],
        "labeled_accuracy_upper": teacher_check["upper"],
        "labeled_chance": teacher_check["chance"],
        "n_labeled": teacher_check["n_images"],
    }
    if teacher_check["advice"]:
        advice = ". ".join(teacher_check["advice"])
        facts["labeled_note"] = f"The teacher on the labeled images: {advice}."
    return facts


def _null_if_nan(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    if np.isnan(value):
        return None
    return float(value)


def model_costs(
    models: dict[str, Model], params: EvaluationParams
) -> dict[str, dict[str, float | int]]:
    """Return each model's number of parameters, FLOPs and latency per image, and size of weights.

    FLOPs count a multiply-add as two. Latencies are those of the CPU (one thread, float32, batch
    size 1), measured in turns; a difference between models within `latency_spread_ms` means
    nothing. Size is that of the safetensors file.
    """
    from safetensors.torch import save

    costs: dict[str, dict[str, float | int]] = {}
    networks = {}
    image_shapes = {}
    for name, model in models.items():
        network = model.network.cpu().eval()
        networks[name] = network
        image_shapes[name] = model.image_shape
        image = torch.zeros(1, *model.image_shape)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(image)
        n_parameters = sum(parameter.numel() for parameter in network.parameters())

        # safetensors refuses tensors that are not contiguous, such as channels-last weights.
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        content = save(state)
        costs[name] = {
            "parameters": n_parameters,
            "flops": int(counter.get_total_flops()),
            "size_bytes": len(content),
        }
    latencies = network_latencies(networks, image_shapes, params.latency_repeats)
    for name, latency in latencies.items():
        costs[name]["latency_ms"] = latency.ms
        costs[name]["latency_spread_ms"] = latency.spread_ms
    return costs


def describe_selection(
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
) -> dict[str, Any]:
    """Return what was selected and, if the truth about the pool is known, how well."""
    check_manifest(manifest)
    names = (
        "rule",
        "criterion",
        "threshold",
        "estimated_precision",
        "n_tied_at_cut",
        "n_selected",
        "size_source",
        "n_pool",
        "n_labeled",
        *EXCLUDED,
    )
    facts = {name: manifest.attrs.get(name) for name in names}
    facts["reasons"] = reason_counts(manifest)
    facts["n_preferred"] = None
    if prefers_images(manifest):
        facts["n_preferred"] = int(is_preferred(manifest).sum())
    facts["class_prior"] = class_prior["value"]
    facts["class_prior_lower"] = class_prior["lower"]
    facts["class_prior_upper"] = class_prior["upper"]
    facts["class_prior_method"] = class_prior["method"]
    # Missing in files of earlier versions, and where the prior was given.
    readings = class_prior.get("readings") or {}
    facts["class_prior_readings"] = dict(readings)
    facts["class_prior_flag"] = class_prior.get("flag")
    facts["class_prior_warning"] = class_prior.get("warning")

    # Only for pools whose images are labeled; a real pool's are not.
    relevant = pool_images.index["relevant"]
    if not len(relevant) or relevant.isna().any():
        return facts
    is_relevant = relevant.to_numpy(dtype=bool)
    truth = _selection_truth(manifest, pool_scores, pool_images, is_relevant)
    for name, value in truth.items():
        facts[name] = _null_if_nan(value)
    return facts


def _selection_truth(
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    pool_images: ImageStore,
    is_relevant: np.ndarray,
) -> dict[str, float]:
    """Return what only the true relevance of the pool images can tell; NaN where undefined.

    Precision and recall are those of the images that the rule preferred, see `is_preferred`.
    """
    selected_ids = manifest["id"][is_preferred(manifest)].to_numpy()
    selected_rows = find_rows(pool_images, selected_ids, "manifest")
    is_selected = np.zeros(len(is_relevant), dtype=bool)
    is_selected[selected_rows] = True
    precision, recall = selection_quality(is_selected, is_relevant)

    # Scores are in the order of their shards, which need not be the order of the store.
    scores = pool_scores.to_pandas()
    scored_ids = scores["id"].to_numpy()
    score_rows = find_rows(pool_images, scored_ids, "pool_scores")
    # A comparison ranks by the teacher where it trains no PU classifier.
    column = "teacher_log_odds"
    if "pu_score" in scores:
        column = "pu_score"
    auc = area_under_roc(scores[column].to_numpy(), is_relevant[score_rows])
    return {
        "precision": precision,
        "recall": recall,
        "auc": auc,
        "true_class_prior": float(is_relevant.mean()),
    }
