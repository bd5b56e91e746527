"""A first student for a teacher: one that costs much less and can read its images."""

from __future__ import annotations

from typing import Any

import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model

_Candidate = tuple[str, dict[str, Any]]  # architecture and its options
# From large to small. Those for 32x32 images keep their resolution in the first layers, which costs
# too much on large ones.
_SMALL_IMAGES: tuple[_Candidate, ...] = (
    ("cifar_resnet", {"depth": 20, "width": 16}),
    ("cifar_resnet", {"depth": 8, "width": 16}),
    ("cifar_resnet", {"depth": 8, "width": 8}),
    ("cifar_resnet", {"depth": 8, "width": 4}),
    ("digits_cnn", {"width": 4}),
)
_LARGE_IMAGES: tuple[_Candidate, ...] = (
    ("resnet18", {}),
    ("shufflenet_v2_x1_0", {}),
    ("shufflenet_v2_x0_5", {}),
)
_SMALL_PX = 64  # largest size of the first list
_MAX_SHARE = 0.5  # of the teacher's parameters and FLOPs


def choose_student(teacher: Model) -> tuple[str, dict[str, Any]] | None:
    """Return name and options of the largest candidate with half of the teacher's cost or less.

    None if there is none.
    """
    size_px = teacher.card.input.size_px
    candidates = _LARGE_IMAGES
    if size_px <= _SMALL_PX or teacher.card.input.channels == 1:
        candidates = _SMALL_IMAGES
    teacher_parameters = n_parameters(teacher)
    teacher_flops = n_flops(teacher)
    for architecture, options in candidates:
        try:
            student = new_student(teacher, architecture, options, {})
        except InputError:  # it cannot read images of this size
            continue
        is_small = n_parameters(student) <= _MAX_SHARE * teacher_parameters
        if is_small and n_flops(student) <= _MAX_SHARE * teacher_flops:
            return architecture, options
    return None


def n_parameters(model: Model) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in model.network.parameters())


def n_flops(model: Model) -> int:
    """Return the FLOPs of one image, two for each multiplication with an addition."""
    from torch.utils.flop_counter import FlopCounterMode

    network = model.network.eval()
    image = torch.zeros(1, *model.image_shape)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())
