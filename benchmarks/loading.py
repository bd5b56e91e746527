"""Target 1: batches of a packed store against an image folder; extraction against the network."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.harness import Measurement, Ratio, ratio, repeated, speedup
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
from pu_kd_pipeline.training.batches import augmented, augmented_batches

COLOR = InputSpec(
    size_px=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
GRAY = InputSpec(size_px=32, channels=1, mean=(0.1307,), std=(0.3081,))
AUGMENTATION = AugmentationParams(padding_px=4, horizontal_flip=True)
# The memory limit is that of conf/base/globals.yml; `python -m benchmarks` sets the threads.
RESIDENT = ComputeParams(
    device="cpu",
    precision="float32",
    n_threads=None,
    resident_limit_gb=4,
    inference_batch_size=None,
)
MAPPED = RESIDENT.model_copy(update={"resident_limit_gb": 1e-9})
CPU = torch.device("cpu")

PHOTO_VIEWS = AugmentationParams(
    padding_px=0,
    horizontal_flip=True,
    resized_crop_scale=(0.3, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
)
PHOTO_SIZES_PX = (32, 64, 128, 224)
PHOTO_BATCH_SIZE = 64

N_IMAGES = 8192
BATCH_SIZE = 256
# Passes of ours for one of the naive loop: one pass is too short for the clock.
PASSES = 10
N_LENET = 8192
N_CIFAR_RESNET = 2048
LARGE = COLOR.model_copy(update={"size_px": 224})
LARGE_ARCHITECTURE = "mobilenet_v3_small"
N_LARGE = 192
LARGE_FILE_PX = 512  # size of the files, which are decoded and made smaller


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 1."""
    work = work / "loading"
    # All photos for batches, then fewer for the slower networks.
    photos = naive.encoded_images(images, "cifar10_train", N_IMAGES, ("JPEG", 3, 32))
    folder = naive.write_folder(work / "photos", photos)
    store = packed_store(folder, COLOR, work / "photos_store")
    yield from _plain_rows(folder, store)
    yield _verification_row(folder, store)
    yield from _augmented_rows(folder, store)
    for size_px in PHOTO_SIZES_PX:
        yield _photo_views_row(size_px)

    digits = naive.encoded_images(images, "mnist_train", N_LENET, ("PNG", 1, 28))
    digit_folder = naive.write_folder(work / "digits", digits)
    digit_store = packed_store(digit_folder, GRAY, work / "digits_store")
    yield _extraction_row("lenet5", {}, GRAY, digit_store)

    few_photos = naive.write_folder(work / "few_photos", photos[:N_CIFAR_RESNET])
    few_store = packed_store(few_photos, COLOR, work / "few_photos_store")
    yield _extraction_row("cifar_resnet", {"depth": 8, "width": 32}, COLOR, few_store)
    yield _large_images_row(photos[:N_LARGE], work)


def packed_store(folder: Path, spec: InputSpec, out: Path) -> ImageStore:
    """Return a packed store of a folder of images."""
    return image_store(folder, spec, out, naive.PACKED)


def image_store(folder: Path, spec: InputSpec, out: Path, params: ImageStoreParams) -> ImageStore:
    source = ImageSource(type="folder", path=str(folder), labels="ignore")
    plan = IngestionPlan(folder.name, (source,), spec.size_px, spec.channels, ("no",), params, 0)
    return write_store(plan, out)


# --- batches --------------------------------------------------------------------------------------


def _shuffled_rows(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(n, generator=generator)


def _all_images(store: ImageStore, compute: ComputeParams) -> ImageRows:
    rows = np.arange(len(store))
    return ImageRows([(store, rows)], compute)


def _plain_rows(folder: Path, store: ImageStore) -> Iterator[Measurement]:
    """Compare shuffled batches without augmentation, which both sides make of the same rows."""
    n_images = len(store)
    shuffled = _shuffled_rows(n_images)
    indices = shuffled.split(BATCH_SIZE)
    transform = naive.transform_of(COLOR)
    dataset = naive.image_folder(folder, COLOR, transform)
    loader = _naive_loader(dataset, store, indices)
    # Without and with a copy of the whole store in memory.
    normalize = Normalize(COLOR.mean, COLOR.std)
    for how, compute in (("memory-mapped", MAPPED), ("held in memory", RESIDENT)):
        images = _all_images(store, compute)
        batches = partial(_plain, images, indices, normalize)
        yield _plain_row(how, n_images, loader, batches)


def _naive_loader(
    dataset: Any, store: ImageStore, indices: Sequence[Tensor]
) -> Iterable[list[Tensor]]:
    """Return a DataLoader over the same images as the store's batches at `indices`."""
    # The store and the folder list their images in different orders.
    rows = naive.rows_of_ids(dataset, store.index["id"])
    batches = []
    for batch in indices:
        of_store = batch.tolist()
        of_folder = [rows[row] for row in of_store]
        batches.append(of_folder)
    return naive.loader(dataset, batches)


def _plain(images: ImageRows, indices: Sequence[Tensor], normalize: Normalize) -> Iterator[Tensor]:
    for batch in indices:
        raw_images = images.batch(batch)
        yield normalize(raw_images)


def _plain_row(
    how: str,
    n_images: int,
    loader: Iterable[list[Tensor]],
    batches: Callable[[], Iterator[Tensor]],
) -> Measurement:
    # Equal batches first: otherwise their costs could not be compared.
    for ours, (theirs, _) in zip(batches(), loader, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    what = f"shuffled batches of {BATCH_SIZE} at 32x32x3 from a packed store, {how}, "
    what += "against an image folder"
    gain = _gain_per_pass(lambda: _drain(loader), batches)
    limit = _share_of_limit(batches)
    note = f"{n_images:,} images; the batches are equal within 1e-5"
    n_shown = PASSES * n_images
    return speedup("1", what, gain, 40, limit=limit, note=note, n_images=n_shown)


def _verification_row(folder: Path, store: ImageStore) -> Measurement:
    """Compare a first pass over a store, which verifies each image, with the naive loop."""
    shuffled = _shuffled_rows(len(store))
    indices = shuffled.split(BATCH_SIZE)
    dataset = naive.image_folder(folder, COLOR, naive.transform_of(COLOR))
    loader = _naive_loader(dataset, store, indices)
    normalize = Normalize(COLOR.mean, COLOR.std)
    verified = _all_images(store, MAPPED)

    def first_pass() -> None:
        # A store that is opened again has verified nothing.
        opened = ImageStore.open(store.folder)
        _drain(_plain(_all_images(opened, MAPPED), indices, normalize))

    def later_pass() -> None:
        _drain(_plain(verified, indices, normalize))

    gain = ratio(lambda: _drain(loader), first_pass, repeats=3)
    cost = ratio(first_pass, later_pass, repeats=7)
    what = "the first pass over a packed store, memory-mapped, which verifies the checksum of each "
    what += "image, against an image folder"
    note = f"{cost.median:.1f} times as long as later passes, which verify nothing"
    return speedup("1", what, gain, None, note=note, n_images=len(store))


def _augmented_rows(folder: Path, store: ImageStore) -> Iterator[Measurement]:
    """Compare random crops and flips, with and without the decoding of the naive side."""
    padding = AUGMENTATION.padding_px
    flip = AUGMENTATION.horizontal_flip
    normalize = Normalize(COLOR.mean, COLOR.std)
    n_batches = len(store) // BATCH_SIZE
    images = _all_images(store, MAPPED)

    def batches() -> Iterator[Tensor]:
        endless = augmented_batches(images, normalize, AUGMENTATION, BATCH_SIZE, seed=0)
        for batch in islice(endless, n_batches):
            yield batch.images

    transform = naive.transform_of(COLOR, padding, flip)
    dataset = naive.image_folder(folder, COLOR, transform)
    # As many images as ours shows: the last, smaller batch is left out.
    n_shown = n_batches * BATCH_SIZE
    shuffled = _shuffled_rows(len(store))
    shown = shuffled[:n_shown]
    indices = shown.split(BATCH_SIZE)
    loader = _naive_loader(dataset, store, indices)
    # The naive transforms draw from torch's global generator.
    with seeded(0):
        _check_views(dataset, store, normalize)
        gain = _gain_per_pass(lambda: _drain(loader), batches)
    what = "the same with random crops and flips, memory-mapped, "
    what += "against an image folder with per-sample transforms"
    note = "pad 4, crop, flip; each naive view is one of the 162 that ours draw from"
    limit = _share_of_limit(batches)
    yield speedup("1", what, gain, None, limit=limit, note=note, n_images=PASSES * n_shown)

    transform = naive.transform_of(COLOR, padding, flip, resize=False)
    # In the folder's order: what is decoded already costs the same in any order.
    samples = dataset.samples[:n_shown]
    decoded = [naive.open_image(path, 3) for path, _ in samples]
    with seeded(0):
        gain = _gain_per_pass(lambda: _transform_all(transform, decoded), batches)
    what = "the same against the per-sample transforms alone, on images that are decoded already"
    yield speedup("1", what, gain, 13, note="ours reads the store, too")


def _photo_views_row(size_px: int) -> Measurement:
    """Compare resized crops, flips and color jitter with torchvision's, image by image.

    Both start from the same uint8 tensors in memory and end in normalized floats.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PHOTO_BATCH_SIZE, 3, size_px, size_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    normalize = Normalize(COLOR.mean, COLOR.std)
    transform = naive.photo_transform(COLOR, PHOTO_VIEWS, size_px)

    def ours() -> Tensor:
        return augmented(images, normalize, PHOTO_VIEWS, generator)

    def image_by_image() -> Tensor:
        return torch.stack([transform(image) for image in images])

    # torchvision draws from torch's global generator.
    with seeded(0):
        gain = ratio(image_by_image, ours)
    what = f"random resized crops, flips and color jitter at {size_px}x{size_px}x3, "
    what += "against torchvision's transforms (v2) image by image"
    note = f"batches of {PHOTO_BATCH_SIZE} uint8 tensors in memory; "
    note += "torchvision resizes in uint8, ours in float32"
    return speedup("1", what, gain, None, note=note, n_images=PHOTO_BATCH_SIZE)


def _check_views(dataset: Any, store: ImageStore, normalize: Normalize) -> None:
    """Check a few images of the naive data set."""
    rows = naive.rows_of_ids(dataset, store.index["id"])
    for row in range(8):
        position = rows[row]
        view, _ = dataset[position]
        pixels = store.read(np.array([row]))
        image = torch.from_numpy(pixels)
        _check_is_a_view(view, image, normalize)


def _check_is_a_view(view: Tensor, image: Tensor, normalize: Normalize) -> None:
    """Check that a naive view is one of those that ours are drawn from."""
    padding = AUGMENTATION.padding_px
    flip = AUGMENTATION.horizontal_flip
    n = n_views(padding, flip)
    numbers = torch.arange(n)
    copies = image.expand(n, -1, -1, -1)
    # Both pad the raw pixels with zeros, before they normalize.
    raw_views = take_views(copies, numbers, padding=padding, flip=flip)
    views = normalize(raw_views)
    differences = (views - view).abs()
    distances = differences.flatten(1).amax(dim=1)
    distance = distances.min().item()
    assert distance < 1e-5, f"the naive view is none of ours, by {distance}"


def _transform_all(transform: naive.Transform, decoded: Sequence[Image.Image]) -> None:
    for start in range(0, len(decoded), BATCH_SIZE):
        batch = decoded[start : start + BATCH_SIZE]
        torch.stack([transform(image) for image in batch])


def _gain_per_pass(theirs: Callable[[], object], ours: Callable[[], Iterator[Tensor]]) -> Ratio:
    our_passes = repeated(lambda: _drain(ours()), PASSES)
    of_passes = ratio(theirs, our_passes, repeats=5)
    # Theirs made one pass, a fraction of the work.
    return of_passes.over(1 / PASSES)


def _share_of_limit(batches: Callable[[], Iterator[Tensor]]) -> str:
    """Return how near the batches are to the least work: turning as many pixels into floats."""
    # Their values do not matter for the speed.
    pixels = [torch.zeros_like(batch, dtype=torch.uint8) for batch in batches()]

    def least_work() -> None:
        _drain(batch.float() for batch in pixels)

    def our_work() -> None:
        _drain(batches())

    least = ratio(least_work, our_work, repeats=5)
    percent = 100 * least.median
    return f"{percent:.0f} % of the speed of turning uint8 in memory into floats"


def _drain(iterable: Iterable[object]) -> None:
    for _ in iterable:
        pass


# --- extraction -----------------------------------------------------------------------------------


def run_network(network: nn.Module, batches: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for batch in batches:
            network(batch)


def _extraction_row(
    architecture: str, options: dict[str, int], spec: InputSpec, store: ImageStore
) -> Measurement:
    teacher = new_untrained(architecture, options, spec)
    # The store has a single shard.
    (make_features,) = feature_shards(store, teacher, RESIDENT).values()
    extractor = teacher.extractor()
    n_images = len(store)
    size = inference_batch_size(RESIDENT, CPU, teacher.image_shape)
    images = torch.rand(n_images, *teacher.image_shape)
    batches = images.split(size)
    extract = partial(run_network, extractor, batches)
    share = ratio(extract, make_features, repeats=3)
    infer = partial(run_network, teacher.network, batches)
    plain = ratio(infer, make_features, repeats=1)
    network = architecture
    for name, value in options.items():
        network += f", {name} {value}"
    what = f"features of a packed store ({network}), against the same extractor "
    what += "on random images in memory"
    plain_percent = 100 * plain.median
    return Measurement(
        "1",
        what,
        100 * share.median,
        100 * share.low,
        100 * share.high,
        "%",
        ">=",
        95,
        limit=f"{plain_percent:.0f} % of the speed of the network alone, without descriptors",
        note=f"{n_images:,} images in batches of {size}; ours makes the table, too",
        throughput=share.throughput(n_images),
    )


def _large_images_row(photos: Sequence[bytes], work: Path) -> Measurement:
    """Measure by the clock, unlike the other rows.

    Decoding and computing at once take no less CPU time than one after the other.
    """
    files = [_enlarged(photo) for photo in photos]
    folder = naive.write_folder(work / "large_photos", files)
    encoded = naive.PACKED.model_copy(update={"kind": "encoded"})
    store = image_store(folder, LARGE, work / "large_photos_store", encoded)
    teacher = new_untrained(LARGE_ARCHITECTURE, {}, LARGE)
    (make_features,) = feature_shards(store, teacher, RESIDENT).values()
    extractor = teacher.extractor()
    n_images = len(store)
    size = inference_batch_size(RESIDENT, CPU, store.image_shape)
    images = torch.rand(n_images, *store.image_shape)
    batches = images.split(size)
    gains = []
    limits = []
    for number in range(4):
        decoding = _wall_seconds(lambda: _decode(store, size))
        computing = _wall_seconds(lambda: run_network(extractor, batches))
        ours = _wall_seconds(make_features)
        # The first round warms up.
        if number == 0:
            continue
        one_after_the_other = decoding + computing
        gains.append(one_after_the_other / ours)
        limits.append(one_after_the_other / max(decoding, computing))
    what = f"features of JPEGs of {LARGE_FILE_PX} px at 224x224x3 ({LARGE_ARCHITECTURE}): "
    what += "decoding, then computing, over decoding ahead in threads, by the clock"
    most = Ratio.of(limits).median
    limit = f"{most:.2f} x if the shorter of the two took no time"
    n_cores = os.cpu_count()
    note = f"{n_images} images, {n_cores} cores; decoding alone uses all of them, the network one"
    return speedup("1", what, Ratio.of(gains), None, limit=limit, note=note)


def _decode(store: ImageStore, batch_size: int) -> None:
    n_images = len(store)
    for start in range(0, n_images, batch_size):
        end = min(start + batch_size, n_images)
        rows = np.arange(start, end)
        store.read(rows)


def _enlarged(photo: bytes) -> bytes:
    size_px = (LARGE_FILE_PX, LARGE_FILE_PX)
    small = Image.open(io.BytesIO(photo))
    large = small.resize(size_px, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG")
    return buffer.getvalue()


def _wall_seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def new_untrained(architecture: str, options: dict[str, int], spec: InputSpec) -> Model:
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
