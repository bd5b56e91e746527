"""The teacher's logits for the views that a student sees: at every step, or once per view."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.progress import count_images
from pu_kd_pipeline.training.batches import Batch, views_of
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits

logger = logging.getLogger(__name__)

_FLOAT32_BYTES = 4
_VALUES_PER_MESSAGE = 2**23  # between workers

Make = Callable[[], Tensor | None]


def n_views_to_cache(
    params: DistillationParams, n_images: int, *, is_for_many: bool = False
) -> int | None:
    """Return the number of views of each image to cache; None where caching does not pay.

    Args:
        params: the block `distillation`.
        n_images: of the training.
        is_for_many: many trainings read the outputs for all views of the same images.
    """
    if params.teacher_cache == "off":
        return None
    n_cached = views_of(params.augmentation).n_views
    if params.teacher_cache == "views":
        n_cached = min(n_cached or params.cached_views, params.cached_views)
    # Continuous views cannot all be cached.
    if n_cached is None:
        return None
    # Mixed batches do not read the cache.
    n_shown = (1.0 - params.mixed_share) * params.n_updates * params.batch_size
    if is_for_many and params.teacher_cache == "exact" and params.mixed_share == 0:
        return n_cached
    if n_images * n_cached >= n_shown:
        return None
    return n_cached


def _call(make: Make) -> Tensor | None:
    return make()


@dataclass(frozen=True, eq=False)
class KnownImages:
    """The images of a training, for logits that several trainings share.

    Attributes:
        logits: the shared logits.
        teacher: fingerprint of the teacher.
        fingerprints: one for each image.
    """

    logits: SharedTeacherLogits
    teacher: str
    fingerprints: Sequence[str]


class TeacherOutputs:
    """The teacher's logits for batches of views, by `params.teacher_cache`.

    `off` runs the teacher at every step. `exact` runs it once for every possible view; the same
    views are drawn as with `off`, and batches of the same size make the logits the same to the last
    bit on a CPU. `views` runs it once for `cached_views` random views of each image, and training
    draws from these: less work, and less variety. Both are `off` where they would take more views
    than training shows, and `exact` also where the logits do not fit, or where views are
    continuous. A batch that is mixed always runs the teacher.

    Args:
        images: the training images.
        teacher: in eval mode, on the images' device.
        normalize: on the images' device.
        params: the block `distillation`.
        remember: returns the result of its argument, from this run or from an interrupted one.
        known_images: the images, for `exact` on a CPU to find logits that another training has
            computed; None: all are computed.
        workers: that train together; each computes its part of what is cached, and holds all.

    Attributes:
        note: why the teacher runs although `teacher_cache` asks for a cache, for the student's
            card; None where it does not, or where a cache would be more work or does not fit.

    Raises:
        InputError: the logits of `views` do not fit `compute.resident_limit_gb`.
    """

    def __init__(
        self,
        images: ImageRows,
        teacher: nn.Module,
        normalize: Normalize,
        params: DistillationParams,
        remember: Callable[[Make], Tensor | None] = _call,
        known_images: KnownImages | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self._images = images
        self._workers = workers
        self._teacher = teacher
        self._normalize = normalize
        self._params = params
        self._views = views_of(params.augmentation)
        self.note = self._reason_to_ask()
        if self.note is not None:
            logger.info("distillation: teacher_cache: %s", self.note)
        self._fixed_views: Tensor | None = None  # (N, cached_views) int64, the views of each image
        self._logits: Tensor | None = None  # (N, views, K) float32
        is_for_many = (
            known_images is not None
            and known_images.logits.is_for_many
            and images.device.type == "cpu"  # where outputs are shared
        )
        n_cached = n_views_to_cache(params, len(images), is_for_many=is_for_many)
        if n_cached is None:
            return
        views = self._views_to_cache(n_cached)
        logits = remember(lambda: self._logits_of_all(views, known_images))
        if logits is not None:
            self._logits = logits.to(images.device)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N,) int64 random views for the images at (N,) positions."""
        if self._fixed_views is None:
            return self._views.draw(len(rows), generator)
        n_views_each = self._fixed_views.shape[1]
        which = torch.randint(
            n_views_each, (len(rows),), generator=generator, device=generator.device
        )
        return self._fixed_views[rows, which]

    def __call__(self, batch: Batch) -> Tensor:
        """Return (N, K) float32 logits of the images of a batch, or of a worker's part of it."""
        if self._logits is None or batch.is_mixed:
            return self._compute(batch.images)
        if self._fixed_views is None:
            return self._logits[batch.rows, batch.views]
        # The first match: the same view of an image may have been drawn twice.
        is_match = self._fixed_views[batch.rows] == batch.views.unsqueeze(1)
        which = is_match.int().argmax(dim=1)
        return self._logits[batch.rows, which]

    def _reason_to_ask(self) -> str | None:
        """Return why the teacher runs for all or some batches in spite of a cache, in words."""
        params = self._params
        if params.teacher_cache == "off":
            return None
        if params.teacher_cache == "exact" and self._views.n_views is None:
            return (
                "exact cannot hold views that are continuous (resized crops, changed colors), so "
                "that the teacher runs at every step; views would hold cached_views of each image"
            )
        if params.mixed_share > 0:
            batches = "every batch"
            if params.mixed_share < 1:
                batches = f"{params.mixed_share:.0%} of the batches, which are mixed"
            return f"mixed images cannot be cached, so that the teacher runs for {batches}"
        return None

    def _views_to_cache(self, n_cached: int) -> Tensor:
        """Return (N, n_cached) int64 views; random ones become those that training draws from."""
        n = len(self._images)
        device = self._images.device
        if n_cached == self._views.n_views:
            return torch.arange(n_cached, device=device).expand(n, n_cached)
        # A generator of its own, so that the batches of `views` start like those of `off`.
        generator = torch.Generator(device).manual_seed(self._params.seed)
        drawn = self._views.draw(n * n_cached, generator)
        self._fixed_views = drawn.view(n, n_cached)
        return self._fixed_views

    def _compute(self, images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self._params.compute, self._images.device):
            logits: Tensor = self._teacher(images)
            return logits.float()

    def _logits_of_all(self, views: Tensor, known_images: KnownImages | None) -> Tensor | None:
        """Return the (N, V, K) logits of (N, V) views of every image; None if they do not fit."""
        positions = torch.arange(len(views))
        # Random views are this training's own. On a GPU logits depend on the rest of the batch, so
        # that those of a comparison would depend on the order of its students.
        is_shared = self._fixed_views is None and self._images.device.type == "cpu"
        if known_images is None or not is_shared:
            return self._logits_at(positions, views)
        return known_images.logits.get(
            self._setting(known_images.teacher),
            known_images.fingerprints,
            lambda missing: self._logits_at(missing, views),
            limit_bytes=self._params.compute.resident_limit_gb * 1e9,
        )

    def _setting(self, teacher: str) -> tuple[Any, ...]:
        """Return all but the image that its logits depend on."""
        params = self._params
        blocks = (params.compute, params.augmentation)
        return (teacher, params.batch_size, *(block.model_dump_json() for block in blocks))

    def _logits_at(self, positions: Tensor, views: Tensor) -> Tensor | None:
        """Return the (n, V, K) logits of the images at (n,) positions, of (N, V) views."""
        device = self._images.device
        positions = positions.to(device)
        n_views_each = views.shape[1]
        n_rows = len(positions) * n_views_each
        rows = positions.repeat_interleave(n_views_each)
        views_of_rows = views[positions].reshape(-1)
        cached: Tensor | None = None
        size = self._params.batch_size
        workers = self._workers
        starts = range(0, n_rows, size)
        # The first batch is computed by all workers, who learn the number of classes from it.
        is_own = [place == 0 or place % workers.n == workers.rank for place in range(len(starts))]
        n_own_rows = min(n_rows, size * sum(is_own))
        with count_images("teacher outputs", n_own_rows) as count:
            for start in itertools.compress(starts, is_own):
                end = start + size
                # Full batches of the training's size to the last: others may round differently.
                taken = torch.arange(start, end, device=device).clamp(max=n_rows - 1)
                images = self._batch(rows[taken], views_of_rows[taken])
                logits = self._compute(images)

                # The number of classes is known after the first batch.
                if cached is None:
                    n_classes = logits.shape[1]
                    # Of all images, whoever computes their logits.
                    if not self._fits(views.numel(), n_classes):
                        return None
                    cached = torch.zeros(n_rows, n_classes, device=device)

                n_left = min(size, n_rows - start)
                # Zeros where another worker has the logits: the sum below has all of them.
                if start > 0 or workers.is_first:
                    cached[start:end] = logits[:n_left]
                count(n_left)

        if cached is None:
            return None
        if workers.n > 1:
            # In place, block by block: a sum of all would be a second copy.
            for block in cached.split(max(1, _VALUES_PER_MESSAGE // cached.shape[1])):
                block.copy_(workers.sum(block))
        return cached.view(len(positions), n_views_each, -1)

    def _fits(self, n_rows: int, n_classes: int) -> bool:
        gigabytes = n_rows * n_classes * _FLOAT32_BYTES / 1e9
        limit = self._params.compute.resident_limit_gb
        if gigabytes <= limit:
            return True
        what = (
            f"distillation: {gigabytes:.1f} GB of teacher logits do not fit "
            f"compute.resident_limit_gb of {limit}"
        )
        if self._fixed_views is not None:
            # Without the cache, training would draw other views than was asked for.
            raise InputError(f"{what}: raise it, lower cached_views, or set teacher_cache to off")
        logger.info("%s, so the teacher runs at every step", what)
        return False

    def _batch(self, rows: Tensor, views: Tensor) -> Tensor:
        pixels = self._images.batch(rows)
        return self._normalize(self._views.take(pixels, views))
