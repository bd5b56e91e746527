"""How related the pool is to what the teacher was trained on, shard by shard, and the sampling that follows from it.

No image of the original data is read: the teacher is calibrated on noise (`learning.relatedness`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from pu_kd_pipeline.devices import autocast, inference_batch_size, prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER, Makers, short_hash
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.learning.relatedness.calibration import (
    NoiseCalibration,
    calibrate_on_noise,
    one_class_sum,
)
from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from pu_kd_pipeline.learning.relatedness.sampling import (
    effective_sample_size,
    sampling_probabilities,
)
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.selection.manifest import MANIFEST_COLUMNS, located
from pu_kd_pipeline.storage.sharded_table import ShardedTable

ONE_CLASS_SUM = "one_class_sum"  # beside the indicators, the column of their calibrated sum
CALIBRATION = "calibration"  # the fact of a shard that says how the sum was calibrated, as JSON


def relatedness_shards(
    pool_images: ImageStore, teacher: Model, params: RelatednessParams
) -> Makers:
    """Return one maker a shard of the pool, named after the shard, the teacher, the precision and the calibration.

    Columns: `id`, the indicators that apply to the teacher (float32, higher is less related), `one_class_sum`
    (float64), `teacher_class` and `teacher_confidence`, all from one forward pass. Noise is looked at once, when the
    first missing shard is made.

    Raises:
        InputError: the pool is empty or of another image size than the teacher's; from a maker: the network's outputs
            are not finite.
    """
    if not len(pool_images):
        raise InputError(
            "relatedness: the pool is empty; check the sources in parameters_data_ingestion.yml"
        )
    if pool_images.image_shape != teacher.image_shape:
        raise InputError(
            f"relatedness: pool images are {pool_images.image_shape}, the teacher's {teacher.image_shape}: "
            "run `kedro run --pipeline=data_ingestion` again"
        )
    device = prepare_device(params.compute)
    network, normalize = teacher.network.to(device).eval(), normalization(teacher, device)
    settings = params.model_dump(include={"seed", "n_noise_images", "clip"})
    made_by = short_hash(
        fingerprint := teacher.fingerprint(), params.compute.precision, json.dumps(settings)
    )

    @cache
    def calibrated() -> tuple[RelatednessProbe, NoiseCalibration]:
        with _faults_told(), torch.inference_mode(), autocast(params.compute, device):
            probe = RelatednessProbe(network, teacher.image_shape)
            calibration = calibrate_on_noise(
                probe,
                lambda noise: normalize(noise.to(device)),
                generator=torch.Generator().manual_seed(
                    params.seed
                ),  # of the CPU: the same noise on every device
                n_images=params.n_noise_images,
                batch_size=inference_batch_size(params.compute, device, teacher.image_shape),
            )
        return probe, calibration

    def measure(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probe, _ = calibrated()
        logits: list[Tensor] = []
        with network.register_forward_hook(
            lambda _network, _inputs, output: logits.append(output.float())
        ):
            values = probe(images)
        confidence, classes = logits[-1].softmax(dim=1).max(dim=1)
        return values, classes.int(), confidence

    def maker(shard: Shard) -> Callable[[], pa.Table]:
        def make() -> pa.Table:
            probe, calibration = calibrated()
            rows = np.arange(shard.start, shard.start + shard.n, dtype=np.int64)
            batches = map_images(measure, pool_images, rows, normalize, params.compute)
            values, classes, confidence = (
                torch.cat(column) for column in zip(*batches, strict=True)
            )
            with _faults_told():
                sums = one_class_sum(values, calibration, clip=params.clip)
            columns = {
                "id": pool_images.ids_of(shard).cast(pa.string()),
                **{name: values[:, column].numpy() for column, name in enumerate(probe.names)},
                ONE_CLASS_SUM: sums.numpy(),
                "teacher_class": classes.numpy(),
                "teacher_confidence": confidence.numpy(),
            }
            facts = {
                TEACHER: fingerprint,
                CALIBRATION: json.dumps({**settings, "noise": calibration.to_dict()}),
            }
            return pa.table(columns).replace_schema_metadata(facts)

        return make

    return {f"{shard.name}-{made_by}": maker(shard) for shard in pool_images.shards}


@contextmanager
def _faults_told() -> Iterator[None]:
    """Raise what `learning` refuses as something that the user can mend."""
    try:
        yield
    except ValueError as exc:
        raise InputError(f"relatedness: {exc}") from exc


def preferential_manifest(
    relatedness: ShardedTable,
    pool_images: ImageStore,
    params: RelatednessParams,
    excluded: Excluded = NOTHING_EXCLUDED,
) -> pd.DataFrame:
    """Return the manifest of all pool images with the probability that a draw is this one, `sampling_probability`.

    By the 1C-Sum, or the same for every image with `sampling: uniform`, the control. Excluded images are not in it. Its
    `attrs` say by what rule.

    Raises:
        InputError: the pool changed since it was measured, or all of it is excluded.
    """
    _check_pool(relatedness, pool_images)
    is_preferential = params.sampling == "preferential"
    rows = np.flatnonzero(~pool_images.index["id"].isin(excluded.pool).to_numpy())
    if not len(rows):
        raise InputError(
            "relatedness: every pool image is a copy of a test image: give data_ingestion.pool others"
        )
    sums = torch.tensor(relatedness.arrays(ONE_CLASS_SUM)[rows])
    probabilities = sampling_probabilities(
        sums, temperature=params.temperature, floor=params.floor if is_preferential else 1.0
    )
    manifest = located(pool_images, rows).assign(
        origin="pool",
        pu_score=np.float32(np.nan),
        teacher_class=pd.array(relatedness.arrays("teacher_class")[rows], dtype="Int32"),
        teacher_confidence=relatedness.arrays("teacher_confidence")[rows],
        sampling_probability=probabilities.numpy(),
    )[[*MANIFEST_COLUMNS, "sampling_probability"]]
    manifest.attrs.update(
        rule=params.sampling,
        temperature=params.temperature if is_preferential else None,
        floor=params.floor if is_preferential else None,
        effective_sample_size=effective_sample_size(probabilities),
        n_labeled=0,
        n_selected=len(manifest),
        n_pool=len(pool_images),
        n_excluded_pool=len(pool_images) - len(manifest),
        fingerprints={
            "pool_images": pool_images.fingerprint,
            "relatedness": relatedness.fingerprint,
        },
    )
    return manifest


def indicator_auc(relatedness: ShardedTable, pool_images: ImageStore) -> pd.DataFrame:
    """Return how well each indicator and their sum tell irrelevant images from relevant ones, by the hidden truth.

    Columns: `source` (whose irrelevant images stand against all relevant ones; null: the whole pool's), `indicator`,
    `auc` (the probability that an irrelevant image is less related than a relevant one), `n_irrelevant` and
    `n_relevant`. Empty where the truth of an image is unknown, or where all are of one kind.

    Raises:
        InputError: the pool changed since it was measured.
    """
    _check_pool(relatedness, pool_images)
    relevant = known_relevance(pool_images)
    sources = pool_images.index["source"].to_numpy()
    rows: list[tuple[str | None, str, float, int, int]] = []
    if relevant is not None and 0 < relevant.sum() < len(relevant):
        scopes = [(None, ~relevant)]
        scopes += [
            (source, ~relevant & (sources == source)) for source in pd.unique(sources[~relevant])
        ]
        for name in (*indicators_of(relatedness), ONE_CLASS_SUM):
            values = relatedness.arrays(name)
            for source, irrelevant in scopes:
                kept = relevant | irrelevant
                auc = area_under_roc(values[kept], irrelevant[kept])
                rows.append((source, name, auc, int(irrelevant.sum()), int(relevant.sum())))
    columns = ["source", "indicator", "auc", "n_irrelevant", "n_relevant"]
    return pd.DataFrame(rows, columns=columns).astype(
        {"auc": "float64", "n_irrelevant": "int64", "n_relevant": "int64"}
    )


def indicators_of(relatedness: ShardedTable) -> list[str]:
    """Return the indicators that apply to the teacher, in the order of the table."""
    return [name for name in next(relatedness.shards()).column_names if name in INDICATORS]


def known_relevance(pool_images: ImageStore) -> np.ndarray | None:
    """Return (n,) bool, whether an image is of a class of the teacher; None where the truth of an image is unknown."""
    relevant = pool_images.index["relevant"]
    return None if relevant.isna().any() else relevant.to_numpy(dtype=bool)


def _check_pool(relatedness: ShardedTable, pool_images: ImageStore) -> None:
    """Check that the rows of the table are those of the store."""
    if [name.rpartition("-")[0] for name in relatedness.names] != [
        shard.name for shard in pool_images.shards
    ]:
        raise InputError(
            "relatedness: pool_images changed since they were measured. Run `kedro run --pipeline=relatedness` again"
        )
