"""Static quantization to int8 by ONNX Runtime, and the images that calibrate it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.graph import PIXELS
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.storage.manifest import (
    SAMPLING_PROBABILITY,
    check_manifest,
    is_preferred,
    manifest_digest,
)
from pu_kd_pipeline.training.manifest_images import labeled_first, manifest_parts
from pu_kd_pipeline.training.recipes import learned_manifest, learned_store

# Where nearly all of the time goes. Layers in between stay in float32, as do normalization and
# softmax, whose small numbers would lose the most.
_QUANTIZED = ("Conv", "Gemm", "MatMul")
_BATCH_SIZE = 32


@dataclass(frozen=True)
class CalibrationImages:
    """Images that the ranges of int8 are set by.

    Attributes:
        parts: each store with the (n,) rows of it.
        source: where they come from, in words.
    """

    parts: list[tuple[ImageStore, np.ndarray]]
    source: str

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    def batches(self) -> Iterator[np.ndarray]:
        """Yield (N, H, W, C) uint8 pixels."""
        for store, rows in self.parts:
            for start in range(0, len(rows), _BATCH_SIZE):
                images = store.read(rows[start : start + _BATCH_SIZE])
                yield np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def choose_calibration_images(
    card: ModelCard,
    manifests: Mapping[str, pd.DataFrame | None],
    stores: Mapping[str, ImageStore],
    training_images: ImageStore,
    n_images: int,
    seed: int,
) -> CalibrationImages:
    """Return images that a student learned from, drawn by a seed.

    These are the labeled images and those that the rule preferred, of the manifest that the
    student's card names; with the probabilities of the manifest, where it has some. A student
    without a manifest learned from the teacher's training images.

    Args:
        card: of the student.
        manifests: by name, None for one that does not exist.
        stores: by the origin that manifests name.
        training_images: of the teacher.
        n_images: how many are drawn, all where there are fewer.
        seed: of the draw.

    Raises:
        InputError: the student learned from images that are not here any more.
    """
    rng = np.random.default_rng(seed)
    learned = learned_manifest(card)
    for name, manifest in manifests.items():
        if manifest is None or learned is None:
            continue
        check_manifest(manifest)
        if manifest_digest(manifest) == learned:
            rows = _drawn_rows(manifest, n_images, rng)
            source = f"{name}: labeled images, and those that its rule preferred"
            return CalibrationImages(manifest_parts(labeled_first(rows), stores), source)
    if len(training_images) and learned_store(card) == training_images.fingerprint:
        n_drawn = min(n_images, len(training_images))
        drawn = np.sort(rng.choice(len(training_images), n_drawn, replace=False))
        return CalibrationImages([(training_images, drawn)], "teacher_training_images")
    raise InputError(
        "export: int8 is calibrated on images that the student learned from, and neither the "
        "present manifests nor teacher_training_images are those that student_model learned from: "
        "distill it again, or leave int8 out of export.formats"
    )


def _drawn_rows(manifest: pd.DataFrame, n_images: int, rng: np.random.Generator) -> pd.DataFrame:
    is_labeled = manifest["origin"] == "labeled"
    candidates = manifest[is_labeled | is_preferred(manifest)]
    probabilities = None
    if SAMPLING_PROBABILITY in candidates:
        weights = candidates[SAMPLING_PROBABILITY].fillna(0.0).to_numpy(dtype=float)
        is_drawable = weights > 0
        candidates = candidates[is_drawable]
        probabilities = weights[is_drawable] / weights.sum()
    n_drawn = min(n_images, len(candidates))
    drawn = rng.choice(len(candidates), n_drawn, replace=False, p=probabilities)
    return candidates.iloc[np.sort(drawn)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The batches of calibration images, as ONNX Runtime asks for them."""

    def __init__(self, images: CalibrationImages) -> None:
        self._batches = images.batches()

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next batch, None after the last one."""
        pixels = next(self._batches, None)
        return None if pixels is None else {PIXELS: pixels}


def quantize(model: bytes, images: CalibrationImages) -> onnx.ModelProto:
    """Return a model with int8 weights and uint8 activations, in the QDQ format.

    Weights have a scale per output channel and use 7 of their 8 bits: with 8, processors without
    VNNI instructions add products in 16 bits that overflow, and give other classes than this one.

    Raises:
        InputError: ONNX Runtime cannot quantize it.
    """
    with tempfile.TemporaryDirectory() as name, _without_advice():
        folder = Path(name)
        (folder / "float32.onnx").write_bytes(model)
        try:
            quant_pre_process(
                str(folder / "float32.onnx"),
                str(folder / "prepared.onnx"),
                skip_symbolic_shape=True,
            )
            quantize_static(
                str(folder / "prepared.onnx"),
                str(folder / "int8.onnx"),
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except InputError:
            raise
        except Exception as exc:  # of any kind, by ONNX Runtime or onnx
            raise InputError(
                f"export: ONNX Runtime cannot quantize the student ({exc}): leave int8 out of "
                "export.formats"
            ) from exc
        return onnx.load(str(folder / "int8.onnx"))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence what ONNX Runtime's quantizer logs on the root logger about its own options."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
