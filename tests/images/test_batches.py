"""Batches read ahead: the same items in the same order, and no thread left behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pu_kd_pipeline.images.batches import ImageRows, read_ahead
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams
from pu_kd_pipeline.training.batches import augmented_batches


def n_threads() -> int:
    """Return how many threads read ahead at the moment."""
    names = [thread.name for thread in threading.enumerate()]
    return names.count("read_ahead")


def compute_params(limit_gb: float) -> ComputeParams:
    return ComputeParams(
        device="cpu",
        precision="float32",
        n_threads=1,
        resident_limit_gb=limit_gb,
        inference_batch_size=8,
    )


# Images are held in memory, or read batch by batch because they do not fit the limit.
RESIDENT_GB = 1.0
STREAMED_GB = 1e-9


# None is also what an empty queue could give.
@pytest.mark.parametrize("items", [list(range(50)), [], [None, None]], ids=["many", "no", "None"])
def test_items_come_in_order_and_the_thread_ends(items: list[Any]) -> None:
    read = list(read_ahead(iter(items)))
    assert read == items
    assert n_threads() == 0


def test_reading_stays_a_few_items_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with closing(read_ahead(items(), n_ahead=3)) as batches:
        first = next(batches)
        assert first == 0
        # A busy computer may take a while until the thread has read that far.
        deadline = time.monotonic() + 10
        while len(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        # Long enough for the thread to read more, if it did.
        time.sleep(0.3)
        assert len(taken) == 5  # one given, three waiting, one in hand
    assert n_threads() == 0


def test_an_error_while_reading_is_raised_in_the_consumer() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    batches = read_ahead(items())
    first = next(batches)
    assert first == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert n_threads() == 0


def assert_equal_batches(some: list[Any], others: list[Any]) -> None:
    for batch, other in zip(some, others, strict=True):
        assert batch.is_mixed == other.is_mixed
        for tensor, other_tensor in zip(batch[:3], other[:3], strict=True):
            assert torch.equal(tensor, other_tensor)


NORMALIZE = Normalize([0.5] * 3, [0.25] * 3)


class Store:
    """The part of an image store that `ImageRows` uses."""

    image_shape = (3, 8, 8)
    folder = Path()

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def store_part() -> Any:
    """Return 35 rows of a store, as `ImageRows` takes them."""
    rows = np.arange(5, 40)
    return [(Store(), rows)]


def first_batches(rows: ImageRows, n: int, **options: Any) -> list[Any]:
    """Return the first n batches of training, and stop reading ahead."""
    batches = augmented_batches(rows, NORMALIZE, batch_size=16, seed=3, **options)
    with closing(batches):  # type: ignore[type-var]
        return list(itertools.islice(batches, n))


def test_streamed_training_sees_the_batches_that_resident_training_sees() -> None:
    streamed_rows = ImageRows(store_part(), compute_params(STREAMED_GB))
    resident_rows = ImageRows(store_part(), compute_params(RESIDENT_GB))
    assert not streamed_rows.is_resident
    assert resident_rows.is_resident

    # Two batches a pass: seven are three passes and a half.
    augmentation = AugmentationParams(padding_px=2, horizontal_flip=True)
    streamed = first_batches(streamed_rows, 7, augmentation=augmentation)
    resident = first_batches(resident_rows, 7, augmentation=augmentation)
    assert_equal_batches(streamed, resident)
    assert n_threads() == 0


class CountingRows(ImageRows):
    """Counts the batches that are read."""

    n_read = 0

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        self.n_read += 1
        return super().batch(indices)


@pytest.mark.parametrize("n_passed", [0, 1, 4, 9])
@pytest.mark.parametrize("limit_gb", [STREAMED_GB, RESIDENT_GB], ids=["streamed", "resident"])
@pytest.mark.parametrize("is_drawn", [False, True], ids=["passes", "drawn"])
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "views"])
def test_batches_that_were_seen_are_skipped_without_reading_an_image(
    n_passed: int, limit_gb: float, is_drawn: bool, flip: bool
) -> None:
    augmentation = AugmentationParams(padding_px=int(flip), horizontal_flip=flip)
    options: dict[str, Any] = {"augmentation": augmentation}
    if is_drawn:
        generator = torch.Generator().manual_seed(0)
        options["probabilities"] = torch.rand(35, generator=generator)
    compute = compute_params(limit_gb)

    all_rows = ImageRows(store_part(), compute)
    everything = first_batches(all_rows, n_passed + 3, **options)
    rows = CountingRows(store_part(), compute)
    later = first_batches(rows, 3, n_passed=n_passed, **options)

    # A run that resumes after a day must not read a day's images first.
    n_read_ahead = 4
    assert rows.n_read <= 3 + n_read_ahead
    assert_equal_batches(later, everything[n_passed:])
    assert n_threads() == 0
