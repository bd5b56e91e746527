"""Target 1: batches from a packed store against an image folder, and feature extraction against the bare network."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import naive
from benchmarks.harness import Measurement, Ratio, ratio
from pu_kd_pipeline.devices import inference_batch_size
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize, n_views, take_views
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams
from pu_kd_pipeline.training.batches import augmented_batches

COLOR = InputSpec(
    size_px=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
GRAY = InputSpec(size_px=32, channels=1, mean=(0.1307,), std=(0.3081,))
AUGMENTATION = AugmentationParams(padding_px=4, horizontal_flip=True)
# resident: as conf/base/globals.yml has it; n_threads: what python -m benchmarks chose
RESIDENT = ComputeParams(
    device="cpu",
    precision="float32",
    n_threads=None,
    resident_limit_gb=4,
    inference_batch_size=None,
)
MAPPED = RESIDENT.model_copy(update={"resident_limit_gb": 1e-9})

N_IMAGES, BATCH_SIZE = 8192, 256
PASSES = 10  # ours make so many while the naive loop makes one: one pass is too short for the clock
LARGE, LARGE_ARCHITECTURE, N_LARGE = (
    COLOR.model_copy(update={"size_px": 224}),
    "mobilenet_v3_small",
    192,
)
LARGE_FILE_PX = 512  # of the files, which are decoded and made smaller
N_BY_ARCHITECTURE = {"lenet5": 8192, "cifar_resnet": 2048}


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 1."""
    photos = naive.encoded_images(images, "cifar10_train", N_IMAGES, ("JPEG", 3, 32))
    folder = naive.write_folder(work / "loading" / "photos", photos)
    store = packed_store(folder, COLOR, work / "loading" / "photos_store")
    yield from _plain_batches(folder, store)
    yield from _augmented_batches(folder, store)
    digits = naive.encoded_images(
        images, "mnist_train", N_BY_ARCHITECTURE["lenet5"], ("PNG", 1, 28)
    )
    gray = naive.write_folder(work / "loading" / "digits", digits)
    gray_store = packed_store(gray, GRAY, work / "loading" / "digits_store")
    yield _extraction("lenet5", {}, GRAY, gray_store)
    few = naive.write_folder(
        work / "loading" / "few_photos", photos[: N_BY_ARCHITECTURE["cifar_resnet"]]
    )
    few_store = packed_store(few, COLOR, work / "loading" / "few_photos_store")
    yield _extraction("cifar_resnet", {"depth": 8, "width": 32}, COLOR, few_store)
    yield _large_images(photos[:N_LARGE], work / "loading")


def packed_store(folder: Path, spec: InputSpec, where: Path) -> ImageStore:
    """Return a packed store of a folder of images."""
    return _store(folder, spec, where, naive.PACKED)


def _store(folder: Path, spec: InputSpec, where: Path, kept: ImageStoreParams) -> ImageStore:
    source = ImageSource(type="folder", path=str(folder), labels="ignore")
    return write_store(
        IngestionPlan(folder.name, (source,), spec.size_px, spec.channels, ("no",), kept, 0), where
    )


# --- batches ----------------------------------------------------------------------------------------------------------


def _plain_batches(folder: Path, store: ImageStore) -> Iterator[Measurement]:
    indices = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).split(
        BATCH_SIZE
    )
    dataset = naive.image_folder(folder, COLOR, naive.transform_of(COLOR))
    rows = naive.rows_of_ids(dataset, store.index["id"])
    loader = naive.loader(dataset, [[rows[row] for row in batch.tolist()] for batch in indices])
    normalize = Normalize(COLOR.mean, COLOR.std)

    for how, compute in (("memory-mapped", MAPPED), ("held in memory", RESIDENT)):
        images = ImageRows([(store, np.arange(len(store)))], compute)

        def batches(images: ImageRows = images) -> Iterator[Tensor]:
            return (normalize(images.batch(batch)) for batch in indices)

        for ours, (theirs, _) in zip(batches(), loader, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        gain = _against_one_pass(lambda: _drain(loader), batches)
        yield Measurement(
            "1",
            f"shuffled batches of {BATCH_SIZE} at 32x32x3 from a packed store, {how}, against an image folder",
            *_numbers(gain),
            "x",
            ">=",
            40,
            limit=_share_of_limit(batches),
            note=f"{len(store):,} images; the batches are equal within 1e-5",
        )


def _augmented_batches(folder: Path, store: ImageStore) -> Iterator[Measurement]:
    padding, flip = AUGMENTATION.padding_px, AUGMENTATION.horizontal_flip
    normalize, n_batches = Normalize(COLOR.mean, COLOR.std), len(store) // BATCH_SIZE
    images = ImageRows([(store, np.arange(len(store)))], MAPPED)

    def batches() -> Iterator[Tensor]:
        endless = augmented_batches(images, normalize, AUGMENTATION, BATCH_SIZE, seed=0)
        return (batch.images for batch in islice(endless, n_batches))

    dataset = naive.image_folder(folder, COLOR, naive.transform_of(COLOR, padding, flip))
    rows = naive.rows_of_ids(dataset, store.index["id"])
    indices = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[
        : n_batches * BATCH_SIZE
    ]
    loader = naive.loader(
        dataset, [[rows[row] for row in batch.tolist()] for batch in indices.split(BATCH_SIZE)]
    )
    with seeded(0):
        for row in range(8):
            _check_is_a_view(
                dataset[rows[row]][0], torch.from_numpy(store.read(np.array([row]))), normalize
            )
        gain = _against_one_pass(lambda: _drain(loader), batches)
    yield Measurement(
        "1",
        "the same with random crops and flips, memory-mapped, against an image folder with per-sample transforms",
        *_numbers(gain),
        "x",
        ">=",
        None,
        limit=_share_of_limit(batches),
        note="pad 4, crop, flip; each naive view is one of the 162 that ours draw from",
    )
    transform = naive.transform_of(COLOR, padding, flip, resize=False)
    decoded = [naive.open_image(path, 3) for path, _ in dataset.samples[: n_batches * BATCH_SIZE]]
    with seeded(0):
        gain = _against_one_pass(lambda: _transform(transform, decoded), batches)
    yield Measurement(
        "1",
        "the same against the per-sample transforms alone, on images that are decoded already",
        *_numbers(gain),
        "x",
        ">=",
        13,
        note="ours reads the store, too",
    )


def _check_is_a_view(view: Tensor, image: Tensor, normalize: Normalize) -> None:
    padding, flip = AUGMENTATION.padding_px, AUGMENTATION.horizontal_flip
    numbers = torch.arange(n_views(padding, flip))
    # zeros are laid around the raw pixels by both
    views = normalize(
        take_views(image.expand(len(numbers), -1, -1, -1), numbers, padding=padding, flip=flip)
    )
    distance = (views - view).abs().flatten(1).amax(dim=1).min().item()
    assert distance < 1e-5, f"the naive view is none of ours, by {distance}"


def _transform(transform: naive.Transform, decoded: Sequence[Image.Image]) -> None:
    for start in range(0, len(decoded), BATCH_SIZE):
        torch.stack([transform(image) for image in decoded[start : start + BATCH_SIZE]])


def _against_one_pass(theirs: Callable[[], object], ours: Callable[[], Iterator[Tensor]]) -> Ratio:
    return ratio(theirs, lambda: [_drain(ours()) for _ in range(PASSES)], repeats=5).over(
        1 / PASSES
    )


def _share_of_limit(batches: Callable[[], Iterator[Tensor]]) -> str:
    """Return how near the batches are to the least that makes them: turning as many pixels in memory into floats."""
    pixels = [torch.zeros_like(batch, dtype=torch.uint8) for batch in batches()]
    least = ratio(
        lambda: _drain(batch.float() for batch in pixels), lambda: _drain(batches()), repeats=5
    )
    return f"{100 * least.median:.0f} % of the speed of turning uint8 in memory into floats"


def _drain(iterable: Iterable[object]) -> None:
    for _ in iterable:
        pass


# --- extraction -------------------------------------------------------------------------------------------------------


def _extraction(
    architecture: str, options: dict[str, int], spec: InputSpec, store: ImageStore
) -> Measurement:
    teacher = _teacher(architecture, options, spec)
    (make,) = feature_shards(store, teacher, RESIDENT).values()
    extractor = teacher.extractor()
    size = inference_batch_size(RESIDENT, torch.device("cpu"), teacher.image_shape)
    batches = torch.rand(len(store), *teacher.image_shape).split(size)

    def forward(network: torch.nn.Module) -> None:
        with torch.inference_mode():
            for batch in batches:
                network(batch)

    named = [f"{name} {value}" for name, value in options.items()]
    share = ratio(lambda: forward(extractor), make, repeats=3)
    plain = ratio(lambda: forward(teacher.network), make, repeats=1)
    return Measurement(
        "1",
        f"features of a packed store ({', '.join([architecture, *named])}), against the same extractor "
        "on random images in memory",
        *(100 * value for value in _numbers(share)),
        "%",
        ">=",
        95,
        limit=f"{100 * plain.median:.0f} % of the speed of the network alone, without descriptors",
        note=f"{len(store):,} images in batches of {size}; ours makes the table, too",
    )


def _large_images(photos: Sequence[bytes], work: Path) -> Measurement:
    """Measure by the clock, unlike the other rows: decoding and computing at once take no less CPU time."""
    files = [_enlarged(photo) for photo in photos]
    folder = naive.write_folder(work / "large_photos", files)
    store = _store(
        folder,
        LARGE,
        work / "large_photos_store",
        naive.PACKED.model_copy(update={"kind": "encoded"}),
    )
    teacher = _teacher(LARGE_ARCHITECTURE, {}, LARGE)
    (make,) = feature_shards(store, teacher, RESIDENT).values()
    extractor = teacher.extractor()
    size = inference_batch_size(RESIDENT, torch.device("cpu"), store.image_shape)
    batches = torch.rand(len(store), *store.image_shape).split(size)

    def decode() -> None:
        for start in range(0, len(store), size):
            store.read(np.arange(start, min(start + size, len(store))))

    def compute() -> None:
        with torch.inference_mode():
            for batch in batches:
                extractor(batch)

    works = (decode, compute, make)
    rounds = [[_wall_seconds(work) for work in works] for _ in range(4)][
        1:
    ]  # the first one warms up
    gains = sorted((decoding + computing) / ours for decoding, computing, ours in rounds)
    best = statistics.median(
        (decoding + computing) / max(decoding, computing) for decoding, computing, _ in rounds
    )
    return Measurement(
        "1",
        f"features of JPEGs of {LARGE_FILE_PX} px at 224x224x3 ({LARGE_ARCHITECTURE}): decoding, then computing, over "
        "decoding ahead in threads, by the clock",
        statistics.median(gains),
        gains[0],
        gains[-1],
        "x",
        ">=",
        None,
        limit=f"{best:.2f} x if the shorter of the two took no time",
        note=f"{len(store)} images, {os.cpu_count()} cores; decoding alone uses all of them, the network one",
    )


def _enlarged(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize(
        (LARGE_FILE_PX, LARGE_FILE_PX), Image.Resampling.BICUBIC
    ).save(buffer, "JPEG")
    return buffer.getvalue()


def _wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _teacher(architecture: str, options: dict[str, int], spec: InputSpec) -> Model:
    params = TeacherParams(
        architecture=architecture,
        architecture_options=options,
        weights=None,
        classes=10,
        input=spec,
        taps=None,
    )
    with seeded(0):
        return new_teacher(params)


def _numbers(gain: Ratio) -> tuple[float, float, float]:
    return gain.median, gain.low, gain.high
