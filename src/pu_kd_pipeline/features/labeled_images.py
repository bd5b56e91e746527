"""A few labeled images, and a teacher's outputs for them with another input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pu_kd_pipeline.devices import autocast, inference_batch_size, prepare_device
from pu_kd_pipeline.features.input_alternatives import InputAlternative, geometry_of, to_gray
from pu_kd_pipeline.images.batches import input_normalization
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import InputSpec


@dataclass(frozen=True)
class LabeledImages:
    """A few labeled images in the teacher's size.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64 classes of the teacher.
        decode: returns the same images as another input asks for them; None: the files are not at
            hand.
    """

    pixels: np.ndarray
    labels: np.ndarray
    decode: Callable[[InputSpec], np.ndarray] | None = None


def pixels_with(
    images: LabeledImages, spec: InputSpec, alternative: InputAlternative
) -> np.ndarray:
    """Return the (N, C, H, W) uint8 images as an alternative to `spec` asks for them."""
    if alternative.is_gray:
        return to_gray(images.pixels)
    if alternative.geometry != geometry_of(spec):
        assert images.decode is not None
        return images.decode(alternative.spec)
    return images.pixels


def logits_with(
    model: Model, pixels: np.ndarray, alternative: InputAlternative, compute: ComputeParams
) -> Tensor:
    """Return the (n, K) float32 logits of uint8 images, on the CPU."""
    device = prepare_device(compute)
    network = model.network.to(device).eval()
    normalize = input_normalization(alternative.spec, device)
    size = inference_batch_size(compute, device, model.image_shape)
    parts = []
    with torch.inference_mode(), autocast(compute, device):
        for start in range(0, len(pixels), size):
            batch = np.ascontiguousarray(pixels[start : start + size])
            images = torch.from_numpy(batch).to(device)
            parts.append(network(normalize(images)).float().cpu())
    return torch.cat(parts)


def changed_fields(spec: InputSpec, alternative: InputAlternative) -> dict[str, Any]:
    """Return the fields of the input that differ."""
    changes = {}
    content = alternative.spec.model_dump(mode="json")
    for name in type(spec).model_fields:
        value = getattr(alternative.spec, name)
        if value != getattr(spec, name) and not (name == "crop_ratio" and name not in content):
            changes[name] = list(value) if isinstance(value, tuple) else value
    return changes
