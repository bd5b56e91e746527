"""The only module that imports torchvision; import it from here.

A CPU build of torch with PyPI's torchvision wheel (linked against CUDA) cannot load the compiled
operators, and `import torchvision` then fails because the schema of `nms` is missing. Models,
transforms, data sets and feature extraction are pure Python and only need the two schemas to exist,
so they are defined here. Where torch and torchvision match, nothing is defined.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _load_extension() -> bool:
    """Return whether torchvision's compiled operators load with this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _define_missing_schemas() -> None:
    for name, schema in _SCHEMAS.items():
        try:
            torch.library.define(name, schema)
        except RuntimeError:  # another package with the same workaround has defined it
            continue


if not _load_extension():
    _define_missing_schemas()

import torchvision  # noqa: E402  (the schemas must exist first)
from torchvision import datasets, models  # noqa: E402
from torchvision.models import feature_extraction  # noqa: E402

__all__ = ["datasets", "feature_extraction", "models", "torchvision"]
