"""The classes that the student gives to image files, read and computed batch by batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pu_kd_pipeline.devices import (
    autocast,
    explain_memory_shortage,
    inference_batch_size,
    prepare_device,
)
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.packages import check_packages
from pu_kd_pipeline.export.student import FILES, exported_fingerprint
from pu_kd_pipeline.images.batches import normalization
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.found_files import FoundFiles, find_files
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.predict import PredictParams
from pu_kd_pipeline.progress import count_images

logger = logging.getLogger(__name__)

# Maps (N, C, H, W) uint8 images to (N, K) float32 logits.
Classifier = Callable[[np.ndarray], np.ndarray]
_N_NAMED = 3  # files in the log
# The fault of a file that was read, for which logits are NaN or plus infinity.
NO_NUMBERS = "the student computes no probabilities"


def predict_files(student: Model, exported: Path | None, params: PredictParams) -> pd.DataFrame:
    """Return one row for each image file that `params.images` names, in order.

    Columns: `file` (relative to `folder` in the attrs), `class` and `probability`, `classes` and
    `probabilities` (the `top_k` best ones, in order), and `fault`: why a file could not be read, or
    that the student computes no probabilities for it, in place of all of these. Only a few images
    are in memory at a time.

    Args:
        student: the student of the run.
        exported: the folder of its exported files; None: there is none.
        params: the block `predict`.

    Raises:
        InputError: no image is named or found, or the exported files are missing or those of
            another student.
    """
    if params.images is None:
        raise InputError(
            "predict.images: name the images to classify, a folder, a file or a pattern: "
            "--params=predict.images=FOLDER"
        )
    found = find_files(params.images, "predict.images")
    classify, batch_size = _classifier(student, exported, params)
    spec = student.card.input
    decoder = Decoder(
        spec.channels,
        spec.size_px,
        params.max_image_pixels,
        spec.shorter_side_px,
        spec.interpolation,
    )
    best: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    faults: list[str | None] = []
    top_k = min(params.top_k, student.n_classes)
    decoded = (pixels for _, pixels in decoder.decode_all(found.read(), params.n_workers))
    with explain_memory_shortage("predict"), count_images("predict", len(found)) as count:
        for batch in _batches(decoded, batch_size):
            images = [pixels for pixels in batch if not isinstance(pixels, Unusable)]
            is_computed = np.empty(0, dtype=bool)
            if images:
                classes, of_classes = _best(classify(np.stack(images)), top_k)
                is_computed = np.isfinite(of_classes).all(axis=1)
                best.append(classes[is_computed])
                probabilities.append(of_classes[is_computed])
            faults += _faults(batch, is_computed)
            count(len(batch))
    table = _table(found, student, faults, best, probabilities)
    table.attrs = {
        "folder": found.root,
        "student": student.fingerprint(),
        "model": params.model,
        "n_without_class": int(table["fault"].notna().sum()),
    }
    _log(table)
    return table


def _classifier(
    student: Model, exported: Path | None, params: PredictParams
) -> tuple[Classifier, int]:
    """Return what maps images to logits, and how many images it takes at a time."""
    shape = student.image_shape
    if params.model != "student":
        file = _exported_file(student, exported, params)
        # imported late: onnxruntime is in an extra
        from pu_kd_pipeline.export.sessions import fingerprint_of, open_session, session_logits

        session = open_session(file, params.compute.n_threads)
        # The folder's facts may be those of the student while a file in it is another one.
        if fingerprint_of(session) != student.fingerprint():
            raise _another_student(file, params)
        compute = session_logits(session)
        size = inference_batch_size(params.compute, torch.device("cpu"), shape)
        return lambda images: compute(np.ascontiguousarray(images.transpose(0, 2, 3, 1))), size
    device = prepare_device(params.compute)
    network = student.network.to(device).eval()
    normalize = normalization(student, device)

    def classify(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast(params.compute, device):
            logits = network(normalize(torch.from_numpy(images).to(device)))
        found: np.ndarray = logits.float().cpu().numpy()
        return found

    return classify, inference_batch_size(params.compute, device, shape)


def _exported_file(student: Model, exported: Path | None, params: PredictParams) -> Path:
    """Return the ONNX file that the parameters ask for, if it is that of the student."""
    where = f"predict.model: {params.model}"
    check_packages([params.model], where)
    if exported is None or not (exported / FILES[params.model]).is_file():
        raise InputError(
            f"{where}: there is no {FILES[params.model]}: run `kedro run --pipeline=export` "
            f"with {params.model} among export.formats, or set predict.model to student"
        )
    if exported_fingerprint(exported) != student.fingerprint():
        raise _another_student(exported, params)
    return exported / FILES[params.model]


def _another_student(path: Path, params: PredictParams) -> InputError:
    return InputError(
        f"predict.model: {params.model}: {path} holds another student than student_model: run "
        "`kedro run --pipeline=export` first, or set predict.model to student"
    )


def _batches(
    items: Iterator[np.ndarray | Unusable], size: int
) -> Iterator[list[np.ndarray | Unusable]]:
    while batch := list(islice(items, size)):
        yield batch


def _faults(batch: list[np.ndarray | Unusable], is_computed: np.ndarray) -> list[str | None]:
    """Return why there is no class, for each file of a batch; None: there is one.

    Args:
        batch: pixels, or why there are none.
        is_computed: of those with pixels, whether they have probabilities.
    """
    computed = iter(is_computed)
    faults: list[str | None] = []
    for pixels in batch:
        if isinstance(pixels, Unusable):
            faults.append(str(pixels.reason))
        else:
            faults.append(None if next(computed) else NO_NUMBERS)
    return faults


def _best(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (N, top_k) best classes and their probabilities, the best first."""
    found = torch.softmax(torch.from_numpy(logits).double(), dim=1)
    best = torch.topk(found, top_k, dim=1)
    return best.indices.numpy(), best.values.float().numpy()


def _table(
    found: FoundFiles,
    student: Model,
    faults: list[str | None],
    best: list[np.ndarray],
    probabilities: list[np.ndarray],
) -> pd.DataFrame:
    names = student.card.classes
    rows = iter(np.concatenate(best) if best else [])
    shares = iter(np.concatenate(probabilities) if probabilities else [])
    columns: dict[str, list[Any]] = {
        "class": [],
        "probability": [],
        "classes": [],
        "probabilities": [],
    }
    for fault in faults:
        if fault is not None:
            for values in columns.values():
                values.append(None)
            continue
        classes = [names[number] for number in next(rows)]
        of_classes = next(shares)
        columns["class"].append(classes[0])
        columns["probability"].append(float(of_classes[0]))
        columns["classes"].append(classes)
        columns["probabilities"].append(of_classes.tolist())
    table = pd.DataFrame({"file": [file.path for file in found.files], **columns, "fault": faults})
    # Not "str", with which pandas 2 turns a missing class into the text "None".
    texts = dict.fromkeys(("file", "class", "fault"), "string")
    return table.astype({**texts, "probability": "float32"})


def _log(table: pd.DataFrame) -> None:
    is_faulty = table["fault"].notna()
    n_faulty = int(is_faulty.sum())
    logger.info(
        "predict: %s of %s files classified", f"{len(table) - n_faulty:,}", f"{len(table):,}"
    )
    if not n_faulty:
        return
    for reason, n in Counter(table["fault"][is_faulty]).most_common():
        names = table["file"][table["fault"] == reason].head(_N_NAMED)
        logger.warning(
            "predict: %s not classified (%s), such as %s", f"{n:,}", reason, ", ".join(names)
        )
