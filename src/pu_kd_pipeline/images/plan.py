"""What an image store should hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.images.store_file import Specification

if TYPE_CHECKING:
    from pu_kd_pipeline.params.data_ingestion import (
        DataIngestionParams,
        ImageSource,
        ImageStoreParams,
    )
    from pu_kd_pipeline.params.engine import EngineParams
    from pu_kd_pipeline.params.teacher import TeacherParams


@dataclass(frozen=True)
class IngestionPlan:
    """What a store should hold; nothing is listed or read before the store is written.

    Attributes:
        name: name of the store in messages, such as `pool`.
        sources: where the images come from; no source makes an empty store.
        size_px, channels: the teacher's input, (channels, size_px, size_px).
        shorter_side_px, interpolation: how images are resized, see `resizing.to_square`.
        class_names: names of the teacher's classes 0..K-1.
        store: how the images are kept.
        seed: seeds the draws of samples, and the split of the demo.
        engine: who decodes; the store does not depend on it.
    """

    name: str
    sources: tuple[ImageSource, ...]
    size_px: int
    channels: int
    class_names: tuple[str, ...]
    store: ImageStoreParams
    seed: int
    shorter_side_px: int | None = None
    interpolation: str = "bilinear"
    engine: EngineParams = LOCAL


def plan_store(
    name: str,
    sources: tuple[ImageSource, ...],
    params: DataIngestionParams,
    teacher: TeacherParams,
    engine: EngineParams = LOCAL,
) -> IngestionPlan:
    """Return the plan of a store of images in the teacher's input format; it may have no source."""
    # Imported here: it imports torch, and modules that only handle plans should stay cheap.
    from pu_kd_pipeline.models.factory import input_contract

    expected, class_names = input_contract(teacher)
    return IngestionPlan(
        name=name,
        sources=sources,
        size_px=expected.size_px,
        channels=expected.channels,
        class_names=class_names,
        store=params.store,
        seed=params.seed,
        shorter_side_px=expected.shorter_side_px,
        interpolation=expected.interpolation,
        engine=engine,
    )


def choose_specification(plan: IngestionPlan, n_images: int, maker: str) -> Specification:
    """Return how a store of that many images keeps them: packed, or encoded.

    Args:
        plan: what the store should hold.
        n_images: how many images the sources have.
        maker: fingerprint of the code and the libraries that make shards.
    """
    params = plan.store
    bytes_per_image = plan.channels * plan.size_px**2
    packed_bytes = n_images * bytes_per_image
    budget_bytes = params.disk_budget_gb * 10**9
    is_small_image = plan.size_px <= params.packed_max_size_px

    # `auto` packs what is small: packed pixels need no decoding, but more disk than the files.
    kind: Literal["packed", "encoded"] = "encoded"
    if params.kind != "auto":
        kind = params.kind
    elif is_small_image or packed_bytes <= budget_bytes:
        kind = "packed"
    return Specification(
        kind,
        plan.channels,
        plan.size_px,
        params.max_image_pixels,
        maker,
        shorter_side_px=plan.shorter_side_px,
        interpolation=plan.interpolation,
    )
