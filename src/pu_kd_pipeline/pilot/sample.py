"""The images of a pilot: a random sample of the pool, and what the teacher says about it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSample
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.pilot import HalvingParams
from pu_kd_pipeline.selection.tie_breaks import tie_breaks
from pu_kd_pipeline.storage.sharded_table import InMemoryTable

logger = logging.getLogger(__name__)

_FIRST = 256  # images that show the pace
_FEWEST = 10  # pool images of a pilot


@dataclass(frozen=True)
class Pace:
    """How long one image takes, in seconds.

    Attributes:
        reading: until its pixels are in memory.
        teacher: reading, and the teacher's features.
    """

    reading: float
    teacher: float

    @property
    def network(self) -> float:
        """The teacher alone."""
        return max(self.teacher - self.reading, 0.0)


@dataclass(frozen=True)
class PoolSample:
    """Pool images with their teacher features.

    Attributes:
        images: the sample.
        features: of the sample.
        pace: of this machine.
    """

    images: ImageSample
    features: InMemoryTable
    pace: Pace


def draw_sample(
    pool_images: ImageStore,
    teacher: Model,
    compute: ComputeParams,
    params: HalvingParams,
    n_views: int,
) -> PoolSample:
    """Return the pool images of a pilot.

    They are the beginning of one random order of the pool, so that a faster machine adds images to
    those of a slower one.

    Args:
        pool_images: the whole pool.
        teacher: the network to compress.
        compute: where it runs.
        params: time and limits.
        n_views: views of each image that the trainings ask the teacher for.

    Raises:
        InputError: the pool is too small, or memory runs out.
    """
    if len(pool_images) < _FEWEST:
        raise InputError(
            f"{params.key}: the pool has {len(pool_images)} images, and short trainings need "
            f"{_FEWEST}: add images to data_ingestion.pool"
        )
    order = np.argsort(tie_breaks(pool_images.index["id"], params.seed), kind="stable")
    first = ImageSample.of(pool_images, np.sort(order[:_FIRST]))
    pace = _pace(first, teacher, compute)
    seconds = 60 * params.minutes * params.teacher_share
    n_affordable = int(seconds / (pace.teacher + n_views * pace.network))
    n = min(len(pool_images), params.max_pool_images)
    # Fixed lengths are for results that are the same on every machine.
    if params.lengths is None:
        n = min(n, max(n_affordable, _FIRST))
    logger.info(
        "%s: %s of %s pool images, at %.2f ms each for reading and teacher",
        params.key,
        f"{n:,}",
        f"{len(pool_images):,}",
        1000 * pace.teacher,
    )
    images = ImageSample.of(pool_images, np.sort(order[:n]))
    started = time.perf_counter()
    features = _features(images, teacher, compute)
    # Of many images it is more exact.
    seconds_each = (time.perf_counter() - started) / n
    return PoolSample(images, features, Pace(pace.reading, seconds_each))


def _pace(images: ImageSample, teacher: Model, compute: ComputeParams) -> Pace:
    _features(images, teacher, compute)  # warm: the first pass also sets up what later ones reuse
    started = time.perf_counter()
    images.read(np.arange(len(images)))
    read = time.perf_counter()
    _features(images, teacher, compute)
    done = time.perf_counter()
    n = len(images)
    return Pace((read - started) / n, (done - read) / n)


def _features(images: ImageSample, teacher: Model, compute: ComputeParams) -> InMemoryTable:
    makers = feature_shards(images, teacher, compute)
    return InMemoryTable.of_shards({name: make() for name, make in makers.items()})
