"""Target 8: ONNX Runtime against torch, for a teacher's outputs and for an exported student.

Torch runs the same network on the same pixels, in batches of the same size, with one thread. That
both give the same logits is asserted first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import naive
from benchmarks.harness import Measurement, has_native_bf16, ratio, speedup
from benchmarks.loading import COLOR, CPU, RESIDENT, new_untrained, packed_store
from pu_kd_pipeline.devices import autocast, inference_batch_size
from pu_kd_pipeline.export.graph import onnx_model, pixel_classifier, trace, with_facts
from pu_kd_pipeline.export.quantization import CalibrationImages, quantize
from pu_kd_pipeline.export.sessions import Logits, open_session, session_logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model

N_IMAGES = 512
N_CALIBRATION = 64
OPSET = 20
TOLERANCE = 1e-3
"""Largest difference between logits of both, whose size is about one."""

# Name of a row -> depth and width of a ResNet: those of conf/cifar10_small.
NETWORKS = {
    "the teacher's outputs (cifar_resnet, depth 8, width 32)": (8, 32),
    "the student's outputs (cifar_resnet, depth 8, width 16)": (8, 16),
}


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 8."""
    folder = work / "exported"
    photos = naive.encoded_images(images, "cifar10_train", N_IMAGES, ("JPEG", 3, 32))
    store = packed_store(naive.write_folder(folder / "files", photos), COLOR, folder / "store")
    pixels = store.read(np.arange(len(store)))
    channels_last = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    for what, (depth, width) in NETWORKS.items():
        model = new_untrained("cifar_resnet", {"depth": depth, "width": width}, COLOR)
        yield from _rows(what, model, store, channels_last)


def _rows(what: str, model: Model, store: ImageStore, pixels: np.ndarray) -> Iterator[Measurement]:
    size = inference_batch_size(RESIDENT, CPU, model.image_shape)
    batches = np.array_split(pixels, max(1, len(pixels) // size))
    float32 = with_facts(onnx_model(trace(model), OPSET), {})
    runtime = session_logits(open_session(float32))
    torch_logits = _torch_logits(model, "float32")
    difference = np.abs(runtime(batches[0]) - torch_logits(batches[0])).max()
    assert difference < TOLERANCE, f"the logits of torch and ONNX Runtime differ by {difference}"

    def row(name: str, logits: Logits) -> Measurement:
        gain = ratio(partial(_ask, torch_logits, batches), partial(_ask, logits, batches))
        note = f"{len(pixels)} images in batches of {len(batches[0])}; one thread"
        full_name = f"{what}: {name}, against torch in float32"
        return speedup("8", full_name, gain, None, note=note, n_images=len(pixels))

    yield row("ONNX Runtime in float32", runtime)
    rows = np.arange(N_CALIBRATION)
    int8 = quantize(float32, CalibrationImages([(store, rows)], "the first images"))
    yield row("ONNX Runtime in int8", session_logits(open_session(int8.SerializeToString())))
    if has_native_bf16():
        yield row("torch in bf16", _torch_logits(model, "bf16"))


def _torch_logits(model: Model, precision: str) -> Logits:
    network = pixel_classifier(model)
    compute = RESIDENT.model_copy(update={"precision": precision})

    def logits(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast(compute, CPU):
            found, _ = network(torch.from_numpy(pixels))
        return found.float().numpy()

    return logits


def _ask(logits: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> None:
    for batch in batches:
        logits(batch)
