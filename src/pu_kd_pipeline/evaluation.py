"""What the student is worth: the one look at the test images, and what selection did."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.store import ImageStore, rows_of
from pu_kd_pipeline.learning.metrics import (
    accuracy,
    agreement,
    area_under_roc,
    per_class_accuracy,
    selection_quality,
)
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.storage.manifest import check_manifest
from pu_kd_pipeline.storage.sharded_table import ShardedTable

EXCLUDED = (
    "n_excluded_pool",
    "n_excluded_labeled",
)  # copies of test images that the manifest leaves out

logger = logging.getLogger(__name__)


def compare_models(
    models: dict[str, Model], test_images: ImageStore, params: EvaluationParams
) -> dict[str, Any]:
    """Return for each model its accuracy, agreement with `models["teacher"]`, and cost.

    Raises:
        InputError: there are no labeled test images.
    """
    labels = test_images.index["label"]
    if not len(labels) or labels.isna().any():
        raise InputError(
            "evaluation: the test images need labels: set `labels: classes` on the sources of data_ingestion.test"
        )
    for name, model in models.items():
        if model.card.origin.get("teacher", teacher := models["teacher"].fingerprint()) != teacher:
            logger.warning(
                "%s_model learned from another teacher than teacher_model: distill it again", name
            )
    truth = labels.to_numpy(dtype=np.int64)
    predicted = {
        name: predict_logits(model, test_images, params.compute).argmax(dim=1).numpy()
        for name, model in models.items()
    }
    return {
        name: {
            "accuracy": accuracy(predicted[name], truth),
            "agreement": agreement(predicted[name], predicted["teacher"]),
            "per_class_accuracy": _json(
                per_class_accuracy(predicted[name], truth, model.n_classes)
            ),
            **cost_of(model, params),
        }
        for name, model in models.items()
    }


def _json(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def cost_of(model: Model, params: EvaluationParams) -> dict[str, float | int]:
    """Return what a model costs: parameters, FLOPs and median CPU latency of one image, bytes of its weights file.

    FLOPs count a multiply-add as two. Latency is one thread, float32, batch 1.
    """
    from safetensors.torch import save

    network = model.network.cpu().eval()
    image = torch.zeros(1, *model.image_shape)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(image)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": int(counter.get_total_flops()),
        "size_bytes": len(
            save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
        ),
        "latency_ms": _median_latency_ms(network, image, params.latency_repeats),
    }


def _median_latency_ms(network: torch.nn.Module, image: Tensor, repeats: int) -> float:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        with torch.inference_mode():
            for _ in range(repeats + 1):
                start = time.perf_counter()
                network(image)
                times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times[1:])  # the first call warms up
    finally:
        torch.set_num_threads(n_threads)


def describe_selection(
    manifest: pd.DataFrame,
    pool_scores: ShardedTable,
    pool_images: ImageStore,
    class_prior: dict[str, Any],
) -> dict[str, Any]:
    """Return what was selected, and where the pool's truth is known how well."""
    check_manifest(manifest)
    facts = {
        name: manifest.attrs.get(name)
        for name in (
            "rule",
            "criterion",
            "threshold",
            "estimated_precision",
            "n_selected",
            "n_pool",
            "n_labeled",
            *EXCLUDED,
        )
    }
    facts["class_prior"] = class_prior["value"]
    facts["class_prior_lower"] = class_prior["lower"]
    facts["class_prior_upper"] = class_prior["upper"]
    facts["class_prior_method"] = class_prior["method"]
    relevant = pool_images.index["relevant"]
    if not len(relevant) or relevant.isna().any():
        return facts
    is_relevant = relevant.to_numpy(dtype=bool)
    is_selected = np.zeros(len(relevant), dtype=bool)
    is_selected[
        rows_of(pool_images, manifest["id"][manifest["origin"] == "pool"].to_numpy(), "manifest")
    ] = True
    precision, recall = selection_quality(is_selected, is_relevant)
    scores = pool_scores.to_pandas()
    of_scores = is_relevant[rows_of(pool_images, scores["id"].to_numpy(), "pool_scores")]
    auc = area_under_roc(scores["pu_score"].to_numpy(), of_scores)
    truth = {
        "precision": precision,
        "recall": recall,
        "auc": auc,
        "true_class_prior": float(is_relevant.mean()),
    }
    return {
        **facts,
        **{name: None if np.isnan(value) else float(value) for name, value in truth.items()},
    }
