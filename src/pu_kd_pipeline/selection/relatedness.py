"""How related the pool is to the teacher's training images, and sampling by it, shard by shard.

No image of the original data is read: the teacher is calibrated on noise (`learning.relatedness`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import arithmetic, autocast, inference_batch_size, prepare_device
from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import TEACHER, short_hash
from pu_kd_pipeline.images.batches import map_images, normalization
from pu_kd_pipeline.images.duplicates import NOTHING_EXCLUDED, Excluded
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.store_file import Shard
from pu_kd_pipeline.learning.augmentation import Normalize
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
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.selection.manifest import MANIFEST_COLUMNS, located
from pu_kd_pipeline.storage.parquet_files import write_parquet
from pu_kd_pipeline.storage.sharded_table import ShardedTable

ONE_CLASS_SUM = "one_class_sum"  # the column of the indicators' calibrated sum
CALIBRATION = "calibration"  # key of the shards' metadata: how the sum was calibrated, as JSON


def relatedness_shards(
    pool_images: ImageStore, teacher: Model, params: RelatednessParams
) -> ShardMakers:
    """Return one maker per shard of the pool, named after what decides the content.

    That is the shard, the teacher, the kind of device, the number format, the calibration, code and
    libraries.

    Columns: `id`, the indicators that apply to the teacher (float32, higher is less related),
    `one_class_sum` (float64), `teacher_class` and `teacher_confidence`, all from one forward pass.
    The teacher sees the noise once, when the first missing shard is made.

    Raises:
        InputError: the pool is empty or of another image size than the teacher's; from a maker: the
            network's outputs are not finite.
    """
    if not len(pool_images):
        raise InputError(
            "relatedness: the pool is empty; check the sources in parameters_data_ingestion.yml"
        )
    work = RelatednessWork(pool_images, teacher, params)
    # An image size that is not the teacher's is reported before the first shard.
    _ = work.normalize
    suffix = short_hash(*work.facts().values())
    shards = [(shard.name, shard, shard.n) for shard in pool_images.shards]
    return ShardMakers.of_images(work, shards, suffix)


@dataclass(frozen=True, eq=False)
class RelatednessWork:
    """Measures shards of a pool; the calibration is made by the first of each process."""

    pool_images: ImageStore
    teacher: Model
    params: RelatednessParams

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what each process prepares for itself."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __call__(self, shard: Shard) -> pa.Table:
        """Return the table of a shard."""
        probe, calibration = self._calibrated
        end = shard.start + shard.n
        rows = np.arange(shard.start, end, dtype=np.int64)
        compute = self.params.compute
        batches = map_images(self._measure, self.pool_images, rows, self.normalize, compute)
        # From a triple per batch to a sequence per value.
        of_values, of_classes, of_confidence = zip(*batches, strict=True)
        values = torch.cat(of_values)
        classes = torch.cat(of_classes)
        confidence = torch.cat(of_confidence)
        with _as_input_error():
            sums = one_class_sum(values, calibration, clip=self.params.clip)
        ids = self.pool_images.shard_ids(shard)
        columns = {"id": ids.cast(pa.string())}
        for position, name in enumerate(probe.names):
            of_indicator = values[:, position]
            columns[name] = of_indicator.numpy()
        columns[ONE_CLASS_SUM] = sums.numpy()
        columns["teacher_class"] = classes.numpy()
        columns["teacher_confidence"] = confidence.numpy()
        table = pa.table(columns)
        calibration_facts = {**self._settings, "noise": calibration.to_dict()}
        metadata = {
            TEACHER: self._fingerprint,
            CALIBRATION: json.dumps(calibration_facts),
        }
        return table.replace_schema_metadata(metadata)

    def facts(self) -> Mapping[str, str]:
        """Return what decides what is measured of an image."""
        return {
            "teacher": self._fingerprint,
            "device or number format": arithmetic(self.params.compute, self._device),
            "calibration": json.dumps(self._settings),
            # `load_model` reaches the code of the networks, which nothing else here mentions.
            "code or libraries": maker_fingerprint(RelatednessWork, load_model, write_parquet),
        }

    @cached_property
    def normalize(self) -> Normalize:
        """The normalization of the teacher's input, on the device."""
        return normalization(self.teacher, self._device, self.pool_images)

    @cached_property
    def _device(self) -> torch.device:
        return prepare_device(self.params.compute)

    @cached_property
    def _network(self) -> nn.Module:
        network = self.teacher.network.to(self._device)
        return network.eval()

    @cached_property
    def _fingerprint(self) -> str:
        return self.teacher.fingerprint()

    @property
    def _settings(self) -> dict[str, Any]:
        return self.params.model_dump(include={"seed", "n_noise_images", "clip"})

    @cached_property
    def _calibrated(self) -> tuple[RelatednessProbe, NoiseCalibration]:
        compute = self.params.compute
        image_shape = self.teacher.image_shape
        batch_size = inference_batch_size(compute, self._device, image_shape)
        # A generator of the CPU: the same noise on every device.
        generator = torch.Generator().manual_seed(self.params.seed)
        with _as_input_error(), torch.inference_mode(), autocast(compute, self._device):
            probe = RelatednessProbe(self._network, image_shape)
            calibration = calibrate_on_noise(
                probe,
                lambda noise: self.normalize(noise.to(self._device)),
                generator=generator,
                n_images=self.params.n_noise_images,
                batch_size=batch_size,
            )
        return probe, calibration

    def _measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return indicators, classes and confidences of a batch, all from one forward pass."""
        probe, _ = self._calibrated
        logits: list[Tensor] = []
        # The probe returns the indicators alone; a hook keeps the logits of the same pass.
        with self._network.register_forward_hook(
            lambda _network, _inputs, output: logits.append(output.float())
        ):
            values = probe(images)
        probabilities = logits[-1].softmax(dim=1)
        confidence, classes = probabilities.max(dim=1)
        return values, classes.int(), confidence


@contextmanager
def _as_input_error() -> Iterator[None]:
    """Raise a ValueError of `learning` as an error that the user can fix."""
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
    """Return the manifest of all pool images with the probability of each to be drawn.

    `sampling_probability` follows the 1C-Sum, or is the same for every image with `sampling:
    uniform`, the control. Excluded images are not in it. Its `attrs` hold the rule.

    Raises:
        InputError: the pool changed since it was measured, or all of it is excluded.
    """
    _check_pool(relatedness, pool_images)
    ids = pool_images.index["id"]
    is_excluded = ids.isin(excluded.all_pool).to_numpy()
    rows = np.flatnonzero(~is_excluded)
    if not len(rows):
        raise InputError(
            "relatedness: every pool image is a copy of a test image: "
            "give data_ingestion.pool others"
        )
    temperature: float | None = params.temperature
    floor: float | None = params.floor
    share_of_uniform = params.floor
    if params.sampling == "uniform":
        share_of_uniform = 1.0
        # Neither has an effect then, and the manifest must not claim one.
        temperature = None
        floor = None
    all_sums = relatedness.arrays(ONE_CLASS_SUM)
    sums = torch.tensor(all_sums[rows])
    probabilities = sampling_probabilities(
        sums, temperature=params.temperature, floor=share_of_uniform
    )
    manifest = located(pool_images, rows)
    manifest["origin"] = "pool"
    manifest["pu_score"] = np.float32(np.nan)  # no PU classifier scores these images
    classes = relatedness.arrays("teacher_class")
    manifest["teacher_class"] = pd.array(classes[rows], dtype="Int32")
    confidence = relatedness.arrays("teacher_confidence")
    manifest["teacher_confidence"] = confidence[rows]
    manifest["sampling_probability"] = probabilities.numpy()
    manifest["reason"] = "random" if params.sampling == "uniform" else "related"
    manifest = manifest[MANIFEST_COLUMNS]
    manifest.attrs.update(
        rule=params.sampling,
        temperature=temperature,
        floor=floor,
        effective_sample_size=effective_sample_size(probabilities),
        n_labeled=0,
        n_selected=len(manifest),
        n_pool=len(pool_images),
        n_excluded_pool=int(ids.isin(excluded.pool).sum()),
        n_yardstick_pool=int(ids.isin(excluded.yardstick_pool - excluded.pool).sum()),
        fingerprints={
            "pool_images": pool_images.fingerprint,
            "relatedness": relatedness.fingerprint,
        },
    )
    return manifest


def indicator_auc(relatedness: ShardedTable, pool_images: ImageStore) -> pd.DataFrame:
    """Return how well each indicator and their sum separate irrelevant images from relevant ones.

    By the hidden truth. Columns: `source` (its irrelevant images stand against all relevant ones;
    null: those of the whole pool), `indicator`, `auc` (the probability that an irrelevant image is
    less related than a relevant one), `n_irrelevant` and `n_relevant`. Empty where the truth of an
    image is unknown, or where all are of one kind.

    Raises:
        InputError: the pool changed since it was measured.
    """
    _check_pool(relatedness, pool_images)
    relevant = known_relevance(pool_images)
    rows: list[tuple[str | None, str, float, int, int]] = []
    if relevant is not None and 0 < relevant.sum() < len(relevant):
        n_relevant = int(relevant.sum())
        scopes = _irrelevant_by_source(pool_images, relevant)
        names = indicators_of(relatedness)
        for name in (*names, ONE_CLASS_SUM):
            values = relatedness.arrays(name)
            for source, irrelevant in scopes:
                n_irrelevant = int(irrelevant.sum())
                # Irrelevant images of other sources are in neither class.
                kept = relevant | irrelevant
                auc = area_under_roc(values[kept], irrelevant[kept])
                rows.append((source, name, auc, n_irrelevant, n_relevant))
    columns = ["source", "indicator", "auc", "n_irrelevant", "n_relevant"]
    table = pd.DataFrame(rows, columns=columns)
    # Stated, because a table without rows has none.
    return table.astype({"auc": "float64", "n_irrelevant": "int64", "n_relevant": "int64"})


def _irrelevant_by_source(
    pool_images: ImageStore, relevant: np.ndarray
) -> list[tuple[str | None, np.ndarray]]:
    """Return the irrelevant images: of the whole pool (None), then of each source with any."""
    sources = pool_images.index["source"].to_numpy()
    irrelevant = ~relevant
    scopes: list[tuple[str | None, np.ndarray]] = [(None, irrelevant)]
    for source in pd.unique(sources[irrelevant]):
        is_of_source = sources == source
        scopes.append((source, irrelevant & is_of_source))
    return scopes


def indicators_of(relatedness: ShardedTable) -> list[str]:
    """Return the indicators that apply to the teacher, in the order of the table."""
    # All shards have the same columns.
    first_shard = next(relatedness.shards())
    return [name for name in first_shard.column_names if name in INDICATORS]


def known_relevance(pool_images: ImageStore) -> np.ndarray | None:
    """Return (n,) bool, whether an image is of a class of the teacher; None if any is unknown."""
    relevant = pool_images.index["relevant"]
    if relevant.isna().any():
        return None
    return relevant.to_numpy(dtype=bool)


def _check_pool(relatedness: ShardedTable, pool_images: ImageStore) -> None:
    """Check that the rows of the table are those of the store.

    Raises:
        InputError: the shards differ.
    """
    # The part before the last dash is the shard's name, the rest a hash of teacher and settings.
    measured = [name.rpartition("-")[0] for name in relatedness.names]
    current = [shard.name for shard in pool_images.shards]
    if measured != current:
        raise InputError(
            "relatedness: pool_images changed since they were measured. "
            "Run `kedro run --pipeline=relatedness` again"
        )
