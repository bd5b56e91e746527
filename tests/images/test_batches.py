"""Batches read ahead: the same items in the same order, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from pu_kd_pipeline.images.batches import ImageRows, read_ahead
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams
from pu_kd_pipeline.training.batches import augmented_batches


def threads() -> int:
    return sum(thread.name == "read_ahead" for thread in threading.enumerate())


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(read_ahead(iter(range(50)))) == list(range(50))
    assert list(read_ahead(iter([]))) == []
    assert list(read_ahead(iter([None, None]))) == [None, None]
    assert threads() == 0


def test_it_stays_a_few_items_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with closing(read_ahead(items(), n_ahead=3)) as batches:
        assert next(batches) == 0
        deadline = time.monotonic() + 10
        while len(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(taken) == 5  # one given, three waiting, one in hand
    assert threads() == 0


def test_what_reading_raises_is_raised_where_it_is_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    batches = read_ahead(items())
    assert next(batches) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert threads() == 0


class Store:
    """What `ImageRows` asks of a store."""

    image_shape = (3, 8, 8)

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def test_streamed_training_sees_the_batches_that_resident_training_sees() -> None:
    def batches(limit_gb: float) -> list[Any]:
        compute = ComputeParams(
            device="cpu",
            precision="float32",
            n_threads=1,
            resident_limit_gb=limit_gb,
            inference_batch_size=8,
        )
        rows = ImageRows([(Store(), np.arange(5, 40))], compute)  # type: ignore[list-item]
        assert rows.is_resident == (limit_gb > 1e-6)
        augmentation = AugmentationParams(padding_px=2, horizontal_flip=True)
        found = augmented_batches(
            rows, Normalize([0.5] * 3, [0.25] * 3), augmentation, batch_size=16, seed=3
        )
        first = [next(found) for _ in range(7)]
        found.close()  # type: ignore[attr-defined]
        return first

    for streamed, resident in zip(batches(1e-9), batches(1.0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))
    assert threads() == 0


@pytest.mark.parametrize("n_passed", [0, 1, 4, 9])
@pytest.mark.parametrize("limit_gb", [1e-9, 1.0], ids=["streamed", "resident"])
@pytest.mark.parametrize("is_drawn", [False, True], ids=["passes", "drawn"])
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "views"])
def test_batches_that_were_seen_are_passed_over_without_reading_an_image(
    n_passed: int, limit_gb: float, is_drawn: bool, flip: bool
) -> None:
    compute = ComputeParams(
        device="cpu",
        precision="float32",
        n_threads=1,
        resident_limit_gb=limit_gb,
        inference_batch_size=8,
    )

    def batches(n_passed: int, n: int) -> tuple[list[Any], int]:
        rows = ImageRows([(Store(), np.arange(5, 40))], compute)  # type: ignore[list-item]
        n_read, read = 0, rows.batch

        def counted(indices: torch.Tensor) -> torch.Tensor:
            nonlocal n_read
            n_read += 1
            return read(indices)

        rows.batch = counted  # type: ignore[method-assign]
        augmentation = AugmentationParams(padding_px=1 if flip else 0, horizontal_flip=flip)
        probabilities = (
            torch.rand(35, generator=torch.Generator().manual_seed(0)) if is_drawn else None
        )
        found = augmented_batches(
            rows,
            Normalize([0.5] * 3, [0.25] * 3),
            augmentation,
            16,
            3,
            None,
            probabilities,
            n_passed,
        )
        with closing(found):  # type: ignore[type-var]
            return [next(found) for _ in range(n)], n_read

    everything, _ = batches(0, n_passed + 3)
    later, n_read = batches(n_passed, 3)
    assert n_read <= 3 + 4  # what is read ahead
    for one, other in zip(later, everything[n_passed:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert threads() == 0
