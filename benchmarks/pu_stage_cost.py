"""The PU stage of conf/caltech against the backbone pass that its features come from.

What the heads cost does not depend on the values of the features: those of a few images are
repeated, with noise, so that no two rows are equal. The pass is measured on the same images and
scaled to the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import OmegaConf

from benchmarks import naive
from benchmarks.harness import Measurement, Ratio, cpu_seconds
from benchmarks.loading import RESIDENT, packed_store
from benchmarks.pu_setting import CONF
from pu_kd_pipeline.features.extraction import LAST_TAP_SIZE, TEACHER, feature_shards
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, as_array, fixed_size_list
from pu_kd_pipeline.training.class_prior import estimate_prior
from pu_kd_pipeline.training.pu_classifier import train_head

# The sizes of conf/caltech.
N_POSITIVE = 160
N_POOL = 8_269
# Images that the pass is timed on.
N_PASSED = 96
REPEATS = 2
SIZES_PX = (128, 224)  # of the teacher's input: that of conf/caltech, and that of most networks


def stage_cost_rows(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield a row per size of photos: at most as long as the pass is the goal."""
    for size_px in SIZES_PX:
        yield _stage_cost_row(images, work, size_px)


def _stage_cost_row(images: Path | None, work: Path, size_px: int) -> Measurement:
    what = (
        "PU stage of conf/caltech (class prior, held-out folds, classifier) over the backbone pass "
        f"at {size_px}x{size_px}x3"
    )
    try:
        teacher = caltech_teacher(size_px)
    except ValueError as exc:
        return Measurement("2", what, None, None, None, "x", "<=", 1, note=str(exc))

    photos = naive.encoded_images(images, "caltech101_photos", N_PASSED, ("JPEG", 3, size_px))
    folder = naive.write_folder(work / f"caltech_photos_{size_px}", photos)
    store = packed_store(folder, teacher.card.input, work / f"caltech_store_{size_px}")
    (extract,) = feature_shards(store, teacher, RESIDENT).values()
    table = extract()
    rng = np.random.default_rng(0)
    positive = _repeated(table, "positive", N_POSITIVE, rng)
    pool = _repeated(table, "pool", N_POOL, rng)
    params = caltech_pu_training().model_copy(update={"compute": RESIDENT})

    ratios = []
    for _ in range(REPEATS):
        seconds_of_few = cpu_seconds(extract)
        pass_seconds = seconds_of_few * N_POOL / N_PASSED
        stage_seconds = cpu_seconds(lambda: _pu_stage(positive, pool, teacher, params))
        ratios.append(stage_seconds / pass_seconds)
    measured = Ratio.of(ratios)
    note = (
        f"{N_POSITIVE} positives, pool of {N_POOL:,}; the pass was measured for {N_PASSED} images "
        "and scaled linearly"
    )
    return Measurement(
        "2", what, measured.median, measured.low, measured.high, "x", "<=", 1, note=note
    )


def caltech_teacher(size_px: int) -> Model:
    """Return the teacher of conf/caltech for images of `size_px` x `size_px` pixels, untrained."""
    blocks = _caltech_blocks()
    # The weights' path needs Kedro's resolver, and the cost does not depend on the weights.
    blocks.teacher.weights = None
    blocks.teacher.input.size_px = size_px
    params = TeacherParams.model_validate(OmegaConf.to_container(blocks.teacher, resolve=True))
    with seeded(0):
        return new_teacher(params)


def caltech_pu_training() -> PUTrainingParams:
    """Return the block `pu_training` of conf/caltech."""
    block = OmegaConf.to_container(_caltech_blocks().pu_training, resolve=True)
    return PUTrainingParams.model_validate(block)


def _caltech_blocks() -> Any:
    files = (
        "base/globals.yml",
        "base/parameters_teacher.yml",
        "base/parameters_pu_training.yml",
        "caltech/parameters.yml",
    )
    return OmegaConf.merge(*(OmegaConf.load(CONF / file) for file in files))


def _repeated(table: pa.Table, name: str, n: int, rng: np.random.Generator) -> InMemoryTable:
    """Return a feature table of n rows: those of a smaller one, with noise."""
    rows = np.arange(n) % len(table)
    ids = [f"{name}{row}" for row in range(n)]
    columns = {"id": pa.array(ids)}
    for column in ("descriptor", "logits"):
        stored = as_array(table[column])
        vectors = stored[rows]
        noise = rng.normal(scale=0.1, size=vectors.shape)
        noisy = vectors + noise * stored.std(axis=0, dtype=np.float64)
        columns[column] = fixed_size_list(noisy.astype(stored.dtype))
    metadata = table.schema.metadata
    facts = {key: metadata[key.encode()] for key in (TEACHER, LAST_TAP_SIZE)}
    larger = pa.table(columns).replace_schema_metadata(facts)
    return InMemoryTable.of(name, [larger])


def _pu_stage(
    positive: InMemoryTable, pool: InMemoryTable, teacher: Model, params: PUTrainingParams
) -> None:
    """Do what the stage `pu_training` does."""
    prior = estimate_prior(positive, pool, params)
    train_head(positive, pool, teacher, prior["value"], params)
