"""Target 7: photos and a real teacher. What each step costs, and what a usual script needs.

The teacher is that of conf/caltech, at its own size and at 224 pixels, with random weights: what a
network costs does not depend on them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.harness import Measurement, Ratio, cpu_seconds, ratio, share_of_limit
from benchmarks.loading import CPU, RESIDENT, image_store, run_network
from benchmarks.pu_stage_cost import caltech_teacher
from pu_kd_pipeline.devices import inference_batch_size
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import make_optimizer, seeded
from pu_kd_pipeline.learning.losses.distillation import kd
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import InputSpec

SIZES_PX = (128, 224)
N_PHOTOS = 192
FILE_PX = 300  # of generated photos; those of Caltech-101 are about as large
STUDENT_BATCH = 64
ENCODED = naive.PACKED.model_copy(update={"kind": "encoded"})
REPEATS = 3


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 7."""
    folder = work / "photos"
    photos = naive.encoded_images(images, "caltech101_photos", N_PHOTOS, ("JPEG", 3, FILE_PX))
    files = naive.write_folder(folder / "files", photos)
    for size_px in SIZES_PX:
        try:
            teacher = caltech_teacher(size_px)
        except ValueError as exc:  # the extra `caltech` is not installed
            yield Measurement("7", _what(size_px), None, None, None, "x", ">=", 95, note=str(exc))
            continue
        yield _extraction_row(teacher, photos, files, folder / f"store_{size_px}")
    yield _tar_row(photos, files, folder)


def _what(size_px: int) -> str:
    what = (
        f"features of JPEGs at {size_px}x{size_px}x3 (EfficientNet-Lite0), against a script that "
    )
    return what + "decodes, resizes and asks the network image by image"


def _extraction_row(teacher: Model, photos: Sequence[bytes], files: Path, out: Path) -> Measurement:
    """Compare extraction with a script, and with the network and a decoder alone."""
    spec = teacher.card.input
    store = image_store(files, spec, out, ENCODED)
    (make_features,) = feature_shards(store, teacher, RESIDENT).values()
    n_images = len(store)
    size = inference_batch_size(RESIDENT, CPU, teacher.image_shape)
    batches = torch.rand(n_images, *teacher.image_shape).split(size)
    extractor = teacher.extractor()

    def network() -> None:
        run_network(extractor, batches)

    def decoding() -> None:
        for photo in photos:
            _decoded(photo, spec)

    def least_work() -> None:
        decoding()
        network()

    script = partial(_script, extractor, photos, spec)
    gain = ratio(script, make_features, REPEATS)
    least = ratio(script, least_work, REPEATS)
    steps = {
        "reading and decoding": _ms_each(partial(_read_all, store, size), n_images),
        "the network": _ms_each(network, n_images),
        "an update of the student": _ms_each(_student_step(teacher), STUDENT_BATCH),
    }
    costs = ", ".join(f"{step} {ms:.2f}" for step, ms in steps.items())
    return share_of_limit(
        "7",
        _what(spec.size_px),
        gain,
        least,
        95,
        "if decoding with Pillow and the network in batches were all",
        note=f"{n_images} photos; ms an image: {costs}",
        n_images=n_images,
    )


def _ms_each(work: Callable[[], object], n_images: int) -> float:
    work()
    seconds = [cpu_seconds(work) for _ in range(REPEATS)]
    return 1e3 * Ratio.of(seconds).median / n_images


def _decoded(photo: bytes, spec: InputSpec) -> Image.Image:
    image = Image.open(io.BytesIO(photo))
    return image.convert("RGB").resize((spec.size_px, spec.size_px), Image.Resampling.BILINEAR)


def _script(network: nn.Module, photos: Sequence[bytes], spec: InputSpec) -> None:
    """Ask a network about each photo, as the released code of the papers does."""
    transform = naive.transform_of(spec, resize=False)
    with torch.inference_mode():
        for photo in photos:
            network(transform(_decoded(photo, spec))[None])


def _read_all(store: ImageStore, batch_size: int) -> None:
    for start in range(0, len(store), batch_size):
        store.read(np.arange(start, min(start + batch_size, len(store))))


def _student_step(teacher: Model) -> Callable[[], None]:
    """Return an update of the student of conf/caltech, whose teacher's outputs are known."""
    options = {"depth": 8, "width": 16, "downscale": 3}
    with seeded(0):
        student = new_student(teacher, "cifar_resnet", options, {}).network.train()
    optimizer = make_optimizer(
        student, algorithm="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4
    )
    images = torch.rand(STUDENT_BATCH, *teacher.image_shape)
    answers = torch.rand(STUDENT_BATCH, teacher.n_classes)
    even_weights = torch.ones(1, teacher.n_classes)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits: Tensor = student(images)
        kd(logits, answers, even_weights, temperature=4.0)["loss"].backward()
        optimizer.step()

    return step


# --- ingestion ------------------------------------------------------------------------------------


def _tar_row(photos: Sequence[bytes], files: Path, work: Path) -> Measurement:
    """Compare the ingestion of tar shards with that of the same files in a folder."""
    shards = work / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    n_each = len(photos) // 2
    for number in range(2):
        _write_tar(shards / f"{number:05d}.tar", photos[number * n_each :][:n_each], number)
    spec = InputSpec(size_px=128, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    numbers = count()

    def ingest(source: ImageSource) -> None:
        plan = IngestionPlan("pool", (source,), spec.size_px, 3, ("no",), ENCODED, 0)
        # A store that exists would be kept.
        store = write_store(plan, work / f"ingested_{next(numbers)}")
        assert len(store) > 0

    tar = ImageSource(type="webdataset", path=str(shards), labels="ignore")
    folder = ImageSource(type="folder", path=str(files), labels="ignore")
    cost = ratio(partial(ingest, tar), partial(ingest, folder), REPEATS)
    reverse = ratio(partial(ingest, folder), partial(ingest, tar), REPEATS)
    return Measurement(
        "7",
        "ingestion of a pool in tar shards, over the same photos in a folder",
        cost.median,
        cost.low,
        cost.high,
        "x",
        "<=",
        1.2,
        note=f"{len(photos)} photos, checked by decoding them and kept as files",
        throughput=reverse.throughput(len(photos)),
    )


def _write_tar(file: Path, photos: Sequence[bytes], number: int) -> None:
    with tarfile.open(file, "w") as archive:
        for position, photo in enumerate(photos):
            member = tarfile.TarInfo(f"{number:02d}{position:06d}.jpg")
            member.size = len(photo)
            archive.addfile(member, io.BytesIO(photo))
