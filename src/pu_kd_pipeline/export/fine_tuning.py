"""Fine-tuning of a student so that it loses little in int8."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pu_kd_pipeline.export.quantization import CalibrationImages
from pu_kd_pipeline.images.batches import ImageRows, input_normalization, predict_logits
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.fake_quantization import input_ranges, with_rounding
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.learning.losses.distillation import soft_divergence
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.export import FineTuningParams

logger = logging.getLogger(__name__)

_BATCH_SIZE = 64
_N_RECORDS = 4
_TEMPERATURE = 1.0  # of the probabilities that are deployed


@dataclass(frozen=True)
class TuningImages:
    """Images that a student learned from, besides those that calibrate int8.

    Attributes:
        learned: fine-tuning learns from them.
        checked: whether int8 changes classes, and whether fine-tuning helps, is measured on them.
    """

    learned: CalibrationImages
    checked: CalibrationImages


def split_images(
    drawn: CalibrationImages, taken: CalibrationImages, n_checked: int, seed: int
) -> TuningImages:
    """Split images, without those that are taken, into some to check and the others.

    Args:
        drawn: all images.
        taken: images that are left out.
        n_checked: images to check, at most half of what there is.
        seed: of the split.
    """
    left = []
    for store, rows in drawn.parts:
        used = [rows for other, rows in taken.parts if other.fingerprint == store.fingerprint]
        left.append((store, np.setdiff1d(rows, np.concatenate([*used, rows[:0]]))))
    n_left = sum(len(rows) for _, rows in left)
    is_checked = np.zeros(n_left, dtype=bool)
    order = np.random.default_rng(seed).permutation(n_left)
    is_checked[order[: min(n_checked, n_left // 2)]] = True
    checked = []
    learned = []
    start = 0
    for store, rows in left:
        is_checked_part = is_checked[start : start + len(rows)]
        start += len(rows)
        checked.append((store, rows[is_checked_part]))
        learned.append((store, rows[~is_checked_part]))
    return TuningImages(
        CalibrationImages(learned, drawn.source), CalibrationImages(checked, drawn.source)
    )


def fine_tune(
    student: Model,
    calibration: CalibrationImages,
    images: CalibrationImages,
    params: FineTuningParams,
    compute: ComputeParams,
    seed: int,
) -> Model:
    """Return a copy of a student that was trained with the rounding of int8.

    It learns to answer as the student does: the loss is KL(softmax(z) || softmax(z')) of the
    student's logits z and those with rounding z'. BatchNorm keeps its statistics, because
    quantization merges it with the layer before.

    Args:
        student: is not changed.
        calibration: images that set the ranges of the activations.
        images: images to learn from.
        params: length and learning rate.
        compute: device and limits.
        seed: of the order of the images.

    Raises:
        FloatingPointError: the loss is not finite.
        Exception: of any kind, where the network cannot be trained in this way.
    """
    rows = ImageRows(images.parts, compute)
    normalize = input_normalization(student.card.input, rows.device)
    network = copy.deepcopy(student.network).to(rows.device).float().eval()
    targets = _logits(network, rows, normalize)
    # Classes that the student excludes have no logit to learn.
    is_class = torch.isfinite(targets).all(dim=0)
    targets = targets[:, is_class]
    ranges = input_ranges(network, _inputs(ImageRows(calibration.parts, compute), normalize))
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed), with_rounding(network, ranges):

        def step(indices: Tensor) -> dict[str, Tensor]:
            logits = network(normalize(rows.batch(indices)))[:, is_class]
            own_targets = targets[indices.to(targets.device)]
            return {"loss": soft_divergence(logits, own_targets, _TEMPERATURE).mean()}

        optimizer = make_optimizer(
            network,
            algorithm="adam",
            learning_rate=params.learning_rate,
            momentum=0.9,
            weight_decay=0.0,
        )
        for record in fit(
            step,
            shuffled_batches(len(rows), _BATCH_SIZE, generator),
            optimizer,
            n_updates=params.n_updates,
            record_every=max(1, params.n_updates // _N_RECORDS),
            schedule="cosine",
        ):
            logger.info(
                "export: fine-tuning for int8, update %d of %d, divergence %.4g",
                int(record["update"]),
                params.n_updates,
                record["loss"],
            )
    return Model(network.cpu(), student.card)


def predict_classes(model: Model, images: CalibrationImages, compute: ComputeParams) -> np.ndarray:
    """Return the (n,) classes that a model gives images."""
    classes = [np.empty(0, dtype=np.int64)]
    for store, rows in images.parts:
        if len(rows):
            logits = predict_logits(model, store, compute, rows=rows)
            classes.append(logits.argmax(dim=1).numpy())
    return np.concatenate(classes)


def _logits(network: nn.Module, rows: ImageRows, normalize: Normalize) -> Tensor:
    # Not in inference mode: what a network keeps of it would not allow gradients later.
    with torch.no_grad():
        return torch.cat([network(batch) for batch in _inputs(rows, normalize)])


def _inputs(rows: ImageRows, normalize: Normalize) -> Iterator[Tensor]:
    for indices in torch.arange(len(rows)).split(_BATCH_SIZE):
        yield normalize(rows.batch(indices))
