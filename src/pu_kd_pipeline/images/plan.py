"""What a store shall hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import (
        DataIngestionParams,
        ImageSource,
        ImageStoreParams,
    )
    from pu_kd_pipeline.params.teacher import TeacherParams


@dataclass(frozen=True)
class IngestionPlan:
    """What a store shall hold; nothing is listed or read before it is written.

    Attributes:
        name: what messages call the store, such as `pool`.
        sources: where the images come from; none makes an empty store.
        size_px, channels: the teacher's input, (channels, size_px, size_px).
        class_names: of the teacher's classes 0..K-1.
        store: how the images are kept.
        seed: draws the samples, and the split of the demo.
    """

    name: str
    sources: tuple[ImageSource, ...]
    size_px: int
    channels: int
    class_names: tuple[str, ...]
    store: ImageStoreParams
    seed: int


def plan_store(
    name: str, sources: tuple[ImageSource, ...], params: DataIngestionParams, teacher: TeacherParams
) -> IngestionPlan:
    """Return the plan of a store of images as the teacher wants them; without sources, of an empty store."""
    from pu_kd_pipeline.models.factory import input_contract  # imports torch

    expected, class_names = input_contract(teacher)
    return IngestionPlan(
        name=name,
        sources=sources,
        size_px=expected.size_px,
        channels=expected.channels,
        class_names=class_names,
        store=params.store,
        seed=params.seed,
    )
