"""Image stores as batches on a device: whole passes for inference, random rows for training."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import (
    autocast,
    explain_memory_shortage,
    inference_batch_size,
    is_memory_error,
    prepare_device,
)
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.resizing import input_text
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.progress import count_images

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ImageRows:
    """Rows of one or more stores as one sequence of uint8 images.

    The images are held on the device if they fit `resident_limit_gb`, else read batch by batch.

    Args:
        parts: pairs of a store and (n,) rows of it, in the order of the sequence.
        compute: device and limit.
    """

    def __init__(
        self, parts: Sequence[tuple[ImageStore, np.ndarray]], compute: ComputeParams
    ) -> None:
        self._parts: list[tuple[ImageStore, np.ndarray]] = []
        starts = [0]
        n_bytes = 0
        for store, rows in parts:
            # Parts without rows would share the start of the next part.
            n_rows = len(rows)
            if n_rows == 0:
                continue
            part = (store, np.asarray(rows, dtype=np.int64))
            self._parts.append(part)
            starts.append(starts[-1] + n_rows)
            bytes_per_image = math.prod(store.image_shape)  # uint8
            n_bytes += n_rows * bytes_per_image
        self._starts = np.array(starts)

        self.device = prepare_device(compute)
        self._resident: Tensor | None = None
        limit_bytes = compute.resident_limit_gb * 1e9
        if self._parts and n_bytes <= limit_bytes:
            images_of_parts = [store.read(rows) for store, rows in self._parts]
            images = np.concatenate(images_of_parts)
            self._resident = torch.from_numpy(images).to(self.device)
        elif self._parts:
            _check_cache(self._parts, n_bytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; the sequence must not be empty."""
        first_store, _ = self._parts[0]
        return first_store.image_shape

    @property
    def is_resident(self) -> bool:
        """Whether the images are held on the device."""
        return self._resident is not None

    def batch(self, indices: Tensor) -> Tensor:
        """Return the (N, C, H, W) uint8 images at (N,) int64 positions, on the device."""
        if self._resident is not None:
            own_indices = indices.to(self.device)
            # Several times as fast as `[indices]`.
            return self._resident.index_select(0, own_indices)

        # At most one read per part, each straight into its places of the batch.
        positions = indices.cpu().numpy()
        part_numbers = np.searchsorted(self._starts, positions, side="right") - 1
        shape = (len(positions), *self.image_shape)
        images = np.empty(shape, dtype=np.uint8)
        for number, (store, rows) in enumerate(self._parts):
            is_in_part = part_numbers == number
            if not is_in_part.any():
                continue
            positions_in_part = positions[is_in_part] - self._starts[number]
            part_rows = rows[positions_in_part]
            images[is_in_part] = store.read(part_rows)

        return torch.from_numpy(images).to(self.device, non_blocking=True)


def _check_cache(parts: Sequence[tuple[ImageStore, np.ndarray]], n_bytes: int) -> None:
    """Check that the shards of images that are read in random order stay in the cache.

    Otherwise nearly every batch would download shards again.

    Args:
        parts: pairs of a store and rows of it.
        n_bytes: of the images as pixels.

    Raises:
        InputError: the cache of stores on an object store is too small.
    """
    needed_bytes = 0
    limits_bytes = []
    for store, rows in parts:
        if not isinstance(store.folder, Path):
            needed_bytes += store.pixel_bytes(rows)
            limits_bytes.append(store.folder.cache_bytes)
    if not limits_bytes or needed_bytes <= min(limits_bytes):
        return
    needed_gb = needed_bytes / 1e9
    raise InputError(
        f"images are read in random order from shards of {needed_gb:.3g} GB on an object store, "
        f"and their copies may take {min(limits_bytes) / 1e9:.3g} GB, so that each batch would "
        f"download shards again: set cache_gb to {needed_gb * 1.1:.3g} or more; or set "
        f"compute.resident_limit_gb to {n_bytes / 1e9 * 1.01:.3g}, if the images fit into the "
        "memory of the device"
    )


def map_images(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    store: ImageStore,
    rows: np.ndarray,
    normalize: Normalize,
    compute: ComputeParams,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield a function of the normalized images of some rows, batch by batch, on the CPU.

    If memory runs out, this batch and those after it are halved, once.

    Args:
        function: maps (N, C, H, W) float32 images on the device to tensors.
        store: the images.
        rows: (n,) int64 row numbers.
        normalize: normalization of the network's input, on the device.
        compute: device, precision and batch size.

    Raises:
        MemoryShortage: half a batch does not fit into memory either.
    """
    device = prepare_device(compute)
    size = inference_batch_size(compute, device, store.image_shape)

    def outputs(batch: np.ndarray) -> tuple[Tensor, ...]:
        with torch.inference_mode(), autocast(compute, device):
            uint8_images = torch.from_numpy(batch).to(device)
            inputs = normalize(uint8_images)
            results = function(inputs)
            return tuple(result.cpu() for result in results)

    chunks = (rows[start : start + size] for start in range(0, len(rows), size))
    read = map(store.read, chunks)
    is_halved = False
    # Closed explicitly, so that the reading thread ends with this generator.
    with closing(read_ahead(read)) as batches, count_images(store.folder.name, len(rows)) as count:
        for batch in batches:
            found = None
            if not is_halved:
                found = _unless_out_of_memory(outputs, batch)
            if found is None:
                if not is_halved:
                    is_halved = True
                    logger.warning(
                        "memory is not enough for %d images at once: continuing with half as many",
                        len(batch),
                    )
                found = _in_halves(outputs, batch)
            count(len(batch))
            yield found


def _in_halves(
    outputs: Callable[[np.ndarray], tuple[Tensor, ...]], batch: np.ndarray
) -> tuple[Tensor, ...]:
    """Return the outputs of a batch, computed for one half after the other."""
    # A batch of one image has an empty second half.
    smaller_batches = [half for half in np.array_split(batch, 2) if len(half)]
    with explain_memory_shortage("inference"):
        halves = [outputs(half) for half in smaller_batches]
    pairs = zip(*halves, strict=True)
    return tuple(torch.cat(pair) for pair in pairs)


def _unless_out_of_memory(outputs: Callable[[np.ndarray], T], batch: np.ndarray) -> T | None:
    """Return the outputs of a batch, or None if memory runs out, which is then freed."""
    try:
        return outputs(batch)
    except (RuntimeError, MemoryError) as exc:
        if not is_memory_error(exc):
            raise
    # Outside of the handler: there, the traceback would still hold the tensors of the attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def read_ahead(items: Iterator[T], n_ahead: int = 2) -> Generator[T, None, None]:
    """Yield the items of an iterator that runs in its own thread, at most `n_ahead` items ahead.

    Reading and decoding continue while the network computes. What the iterator raises is raised
    here; the thread ends when the items do, or when the generator is closed.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=n_ahead)
    is_wanted = threading.Event()
    is_wanted.set()

    def put(item: T | None, error: BaseException | None) -> None:
        # With a timeout, so that a reader that is gone is noticed and the thread can end.
        while is_wanted.is_set():
            with suppress(queue.Full):
                return ready.put((item, error), timeout=0.1)

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if not is_wanted.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # of any kind: the reader has to see it
            put(None, error)

    thread = threading.Thread(target=work, name="read_ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_wanted.clear()
        thread.join()


def normalization(model: Model, device: torch.device, *stores: ImageStore) -> Normalize:
    """Return the input normalization that a model's card states.

    Args:
        model: the model.
        device: where the images are.
        stores: those that the images are read from.

    Raises:
        InputError: the images of a store were not resized to what the model expects.
    """
    for store in stores:
        check_images_fit(store, model.card.input)
    return input_normalization(model.card.input, device)


def check_images_fit(store: ImageStore, spec: InputSpec) -> None:
    """Check that the images of a store were resized to what a network expects.

    Raises:
        InputError: they were not; the store is older than the network, or the other way round.
    """
    about = store.specification
    resize = (about.shorter_side_px, about.interpolation)
    stored = (about.channels, about.size_px, *resize)
    expected = (spec.channels, spec.size_px, spec.shorter_side_px, spec.interpolation)
    if len(store) and stored != expected:
        raise InputError(
            f"{store.folder} holds images of {input_text(*stored)}, and the network expects "
            f"{input_text(*expected)} (`input` in its card): run "
            "`kedro run --pipeline=data_ingestion`, and the stages after it"
        )


def input_normalization(spec: InputSpec, device: torch.device) -> Normalize:
    """Return what turns the uint8 images of a store into the input that a network expects."""
    return Normalize(
        spec.mean,
        spec.std,
        device,
        value_range=spec.value_range,
        is_reversed=spec.channel_order == "bgr",
    )


def predict_logits(
    model: Model,
    store: ImageStore,
    compute: ComputeParams,
    network: nn.Module | None = None,
    rows: np.ndarray | None = None,
) -> Tensor:
    """Return the (N, K) float32 logits of images of a store.

    Raises:
        InputError: the images were not resized to what the model expects.

    Args:
        model: the model, whose card gives the normalization.
        store: the images.
        compute: device, precision and batch size.
        network: used in place of the model's own network.
        rows: (N,) int64 row numbers; None: every image.
    """
    device = prepare_device(compute)
    network = network or model.network
    network = network.to(device).eval()
    normalize = normalization(model, device, store)
    if rows is None:
        rows = np.arange(len(store), dtype=np.int64)

    batches = map_images(lambda images: (network(images),), store, rows, normalize, compute)
    # In float32 also where autocast computed in bf16.
    logits = [batch.float() for (batch,) in batches]
    if not logits:
        return torch.empty(0, model.n_classes)
    return torch.cat(logits)
