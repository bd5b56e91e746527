"""What the teacher says of the views that a student sees: asked at every step, or once for each view and remembered."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize, draw_views, n_views, take_views
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import Batch

logger = logging.getLogger(__name__)


class TeacherOutputs:
    """The teacher's logits for batches of views, by `params.teacher_cache`.

    `off` asks the teacher at every step. `exact` asks once for every possible view; the same views are drawn as with
    `off`, and batches of the same size make the logits the same to the last bit on a CPU. `views` asks once for
    `cached_views` random views of each image, and training draws from these: less work, and less variety. Both are
    `off` where they would ask for more views than training shows, and `exact` also where the logits do not fit.

    Args:
        images: the training images.
        teacher: in eval mode, on the images' device.
        normalize: on the images' device.
        params: of the student.
        remembered: returns what its argument makes, or made in a run that was stopped.

    Raises:
        InputError: the logits of `views` do not fit `compute.resident_limit_gb`.
    """

    def __init__(
        self,
        images: ImageRows,
        teacher: nn.Module,
        normalize: Normalize,
        params: DistillationParams,
        remembered: Callable[[Callable[[], Tensor | None]], Tensor | None] = lambda make: make(),
    ) -> None:
        self._images, self._teacher, self._normalize, self._params = (
            images,
            teacher,
            normalize,
            params,
        )
        self._padding, self._flip = (
            params.augmentation.padding_px,
            params.augmentation.horizontal_flip,
        )
        self._fixed: Tensor | None = None  # (N, cached_views) int64, the views of each image
        self._known: Tensor | None = None  # (N, views, K) float32
        n_all, n_shown = n_views(self._padding, self._flip), params.n_updates * params.batch_size
        n_each = min(n_all, params.cached_views) if params.teacher_cache == "views" else n_all
        if params.teacher_cache == "off" or len(images) * n_each >= n_shown:
            return
        if n_each < n_all:
            generator = torch.Generator(images.device).manual_seed(params.seed)
            drawn = draw_views(
                len(images) * n_each, padding=self._padding, flip=self._flip, generator=generator
            )
            self._fixed = drawn.view(len(images), n_each)
        views = self._fixed
        if views is None:
            views = torch.arange(n_all, device=images.device).expand(len(images), n_all)
        known = remembered(lambda: self._ask_all(views, must_fit=self._fixed is not None))
        self._known = known if known is None else known.to(images.device)

    @property
    def is_cached(self) -> bool:
        """Whether the teacher is asked no more."""
        return self._known is not None

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N,) int64 random views for the images at (N,) positions."""
        if self._fixed is None:
            return draw_views(
                len(rows), padding=self._padding, flip=self._flip, generator=generator
            )
        which = torch.randint(
            self._fixed.shape[1], (len(rows),), generator=generator, device=generator.device
        )
        return self._fixed[rows, which]

    def __call__(self, batch: Batch) -> Tensor:
        """Return (N, K) float32 logits."""
        if self._known is None:
            return self._ask(batch.images)
        if self._fixed is None:
            return self._known[batch.rows, batch.views]
        # the first of the image's views that is this one: the same view may have been drawn twice
        which = (self._fixed[batch.rows] == batch.views.unsqueeze(1)).int().argmax(dim=1)
        return self._known[batch.rows, which]

    def _ask(self, images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self._params.compute, self._images.device):
            return self._teacher(images).float()  # type: ignore[no-any-return]

    def _ask_all(self, views: Tensor, *, must_fit: bool = False) -> Tensor | None:
        """Return the logits of (N, V) views of every image, asked for in batches of the training's size."""
        n, n_each = views.shape
        size, device = self._params.batch_size, self._images.device
        rows = torch.arange(n, device=device).repeat_interleave(n_each)
        views = views.reshape(-1)
        known: Tensor | None = None
        for start in range(0, len(rows), size):
            wanted = torch.arange(start, start + size, device=device).clamp(
                max=len(rows) - 1
            )  # full to the last
            logits = self._ask(self._batch(rows[wanted], views[wanted]))
            if known is None:
                if not self._fits(len(rows) * logits.shape[1] * 4 / 1e9, must_fit=must_fit):
                    return None
                known = torch.empty(len(rows), logits.shape[1], device=device)
            n_left = min(size, len(rows) - start)
            known[start : start + n_left] = logits[:n_left]
        return None if known is None else known.view(n, n_each, -1)

    def _fits(self, gigabytes: float, *, must_fit: bool) -> bool:
        limit = self._params.compute.resident_limit_gb
        if gigabytes <= limit:
            return True
        what = f"distillation: {gigabytes:.1f} GB of teacher logits do not fit compute.resident_limit_gb of {limit}"
        if must_fit:
            raise InputError(f"{what}: raise it, lower cached_views, or set teacher_cache to off")
        logger.info("%s, so the teacher is asked at every step", what)
        return False

    def _batch(self, rows: Tensor, views: Tensor) -> Tensor:
        images = self._images.batch(rows)
        return self._normalize(take_views(images, views, padding=self._padding, flip=self._flip))
