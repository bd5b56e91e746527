"""Static quantization to int8 by ONNX Runtime, and the images that calibrate it."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    check_manifest,
    is_preferred,
    manifest_digest,
)
from pu_kd_pipeline.training.manifest_images import labeled_first, manifest_parts
from pu_kd_pipeline.training.recipes import SAMPLING, learned_manifest, learned_store
from pu_kd_pipeline.training.sampling import drawing_probabilities

if TYPE_CHECKING:
    from torch import Tensor

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

    These are labeled images and pool images that the rule preferred, of the manifest that the
    student's card names. Their shares are those of the student's batches, as far as there are
    images, and within an origin the manifest's probabilities count, where it has some. A student
    without a manifest learned from the teacher's training images.

    Args:
        card: of the student.
        manifests: by name, None for one that does not exist.
        stores: by the origin that manifests name.
        training_images: of the teacher.
        n_images: how many are drawn, all where there are fewer.
        seed: of the draw.

    Raises:
        InputError: the student learned from images that are not here any more, or none of them
            can be drawn.
    """
    rng = np.random.default_rng(seed)
    learned = learned_manifest(card)
    for name, manifest in manifests.items():
        if manifest is None or learned is None:
            continue
        check_manifest(manifest)
        if manifest_digest(manifest) == learned:
            rows = _drawn_rows(manifest, card, n_images, rng)
            n_labeled = int((rows["origin"] == "labeled").sum())
            source = (
                f"{name}: {n_labeled:,} labeled images, and {len(rows) - n_labeled:,} of the pool "
                "that its rule preferred"
            )
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


def _drawn_rows(
    manifest: pd.DataFrame, card: ModelCard, n_images: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the rows of the drawn images: the share of labeled ones is that of the batches."""
    is_labeled = manifest["origin"] == "labeled"
    candidates = manifest[is_labeled | is_preferred(manifest)]
    is_labeled_candidate = (candidates["origin"] == "labeled").to_numpy()
    of_labeled, of_pool = drawing_probabilities(candidates, is_labeled_candidate)
    labeled, labeled_p = _drawable(np.flatnonzero(is_labeled_candidate), of_labeled)
    pool, pool_p = _drawable(np.flatnonzero(~is_labeled_candidate), of_pool)
    n_drawable = len(labeled) + len(pool)
    if n_drawable == 0:
        raise InputError(
            "export: int8 is calibrated on images that the student learned from, and its manifest "
            "has no labeled image and no preferred pool image with a sampling_probability above 0: "
            "write it again with `kedro run --pipeline=subset_materialization` and distill the "
            "student again, or leave int8 out of export.formats"
        )
    n_drawn = min(n_images, n_drawable)
    share = _labeled_share(card, is_labeled_candidate)
    # Where one origin has too few images, the other one fills up.
    n_labeled = min(max(round(share * n_drawn), n_drawn - len(pool)), len(labeled))
    rows = np.concatenate(
        [
            rng.choice(labeled, n_labeled, replace=False, p=labeled_p),
            rng.choice(pool, n_drawn - n_labeled, replace=False, p=pool_p),
        ]
    )
    return candidates.iloc[np.sort(rows)]


def _drawable(
    rows: np.ndarray, probabilities: Tensor | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows that can be drawn, and their probabilities; None: equal ones."""
    if probabilities is None:
        return rows, None
    weights = probabilities.numpy()
    is_drawable = weights > 0
    if not is_drawable.any():
        return rows[:0], None
    return rows[is_drawable], weights[is_drawable] / weights[is_drawable].sum()


def _labeled_share(card: ModelCard, is_labeled: np.ndarray) -> float:
    """Return the labeled share of the student's batches; without a record, that of the images."""
    sampling = card.origin.get(SAMPLING)
    if isinstance(sampling, Mapping):
        share = sampling.get("labeled_share")
        if isinstance(share, int | float) and 0 <= share <= 1:
            return float(share)
    return float(is_labeled.mean())


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
    """Drop what ONNX Runtime's quantizer logs on the root logger about its own options."""
    thread = threading.get_ident()

    def is_kept(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    # A filter of a logger is not asked about the records of its children.
    logging.root.addFilter(is_kept)
    try:
        yield
    finally:
        logging.root.removeFilter(is_kept)
