"""The teacher's logits for whole images, kept for the trainings that follow in this process."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class SharedTeacherLogits:
    """The teacher's logits for all views of images, by the fingerprint of the image.

    Students of one teacher often learn from the same images. A training asks for the logits of its
    images, and only those that no earlier one asked for are computed.

    The logits of an image may not depend on the images that are computed with it. On a CPU they do
    not if all batches have the same size, see `teacher_cache.TeacherOutputs`.

    Logits of the last setting alone are kept.

    Args:
        is_for_many: many trainings of the same images follow, so that computing all views pays even
            where one training shows fewer.
    """

    def __init__(self, *, is_for_many: bool = False) -> None:
        self.is_for_many = is_for_many
        self._setting: Hashable = None
        self._logits: dict[str, Tensor] = {}

    def get(
        self,
        setting: Hashable,
        fingerprints: Sequence[str],
        compute: Callable[[Tensor], Tensor | None],
        limit_bytes: float,
    ) -> Tensor | None:
        """Return the (N, V, K) logits of all views of N images.

        Args:
            setting: all but the image that its logits depend on: teacher, views, precision, batch
                size.
            fingerprints: one for each image.
            compute: returns the (n, V, K) logits of images at (n,) int64 positions among the N, or
                None where they do not fit into memory.
            limit_bytes: how much to keep in all. What does not fit is computed, and not kept.
        """
        if setting != self._setting:
            self._setting = setting
            self._logits = {}
        # One position of each: an image may be there twice.
        missing = {name: at for at, name in enumerate(fingerprints) if name not in self._logits}
        found = self._logits
        if missing:
            computed = compute(torch.tensor(list(missing.values())))
            if computed is None:
                return None
            found = {**found, **dict(zip(missing, computed, strict=True))}
            bytes_per_image = computed[0].numel() * computed.element_size()
            if len(found) * bytes_per_image <= limit_bytes:
                self._logits = found
        return torch.stack([found[name] for name in fingerprints])
