"""Shards of relatedness: what they hold, what they cost, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.learning.relatedness.calibration import NoiseCalibration, one_class_sum
from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS, LOGIT_INDICATORS
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.reporting.relatedness_figure import plot_relatedness
from pu_kd_pipeline.selection.relatedness import (
    CALIBRATION,
    indicator_auc,
    indicators_of,
    preferential_manifest,
    relatedness_shards,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.selection.builders import (
    COMPUTE,
    MEAN,
    STD,
    files_of,
    model_of,
    params_of,
    store_of,
)


@pytest.fixture
def n_images_seen(teacher: Model) -> Iterator[Callable[[], int]]:
    """Return a function that counts the images the teacher has seen since the previous call."""
    batch_sizes: list[int] = []

    def record(_network: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        images = inputs[0]
        batch_sizes.append(len(images))

    hook = teacher.network.register_forward_hook(record)

    def n_seen() -> int:
        n = sum(batch_sizes)
        batch_sizes.clear()
        return n

    yield n_seen
    # The teacher is shared by all tests of the session.
    hook.remove()


def indicator_values(table: ShardedTable) -> np.ndarray:
    """Return the (N, indicators) stored values."""
    columns = [table.arrays(name) for name in INDICATORS]
    return np.stack(columns, axis=1)


def normalized_images(pool: ImageStore) -> Tensor:
    every_row = np.arange(len(pool))
    pixels = torch.from_numpy(pool.read(every_row))
    return Normalize(MEAN, STD)(pixels)


def test_shards_have_one_column_per_indicator_and_one_row_per_image(
    table: ShardedTable, pool: ImageStore
) -> None:
    schema = next(table.shards()).schema
    assert schema.names == [
        "id",
        *INDICATORS,
        "one_class_sum",
        "teacher_class",
        "teacher_confidence",
    ]
    for name in INDICATORS:
        assert schema.field(name).type == pa.float32(), name
    assert schema.field("one_class_sum").type == pa.float64()
    ids = table.arrays("id")
    assert ids.tolist() == pool.index["id"].tolist()


def test_shards_hold_what_the_teacher_computes_for_each_image(
    table: ShardedTable, pool: ImageStore, teacher: Model
) -> None:
    # All images at once, while the shards were computed batch by batch.
    images = normalized_images(pool)
    with torch.no_grad():
        logits = teacher.network(images)
    probabilities = logits.softmax(dim=1)
    confidence, classes = probabilities.max(dim=1)

    stored_classes = table.arrays("teacher_class")
    assert stored_classes.tolist() == classes.tolist()
    stored_confidence = table.arrays("teacher_confidence")
    np.testing.assert_allclose(stored_confidence, confidence.numpy(), rtol=1e-5)


def test_the_sum_follows_from_the_indicators_and_the_stored_calibration(
    table: ShardedTable, teacher: Model
) -> None:
    stored = set()
    for file in files_of(table):
        metadata = pq.read_schema(file).metadata
        stored.add(metadata[CALIBRATION.encode()])
    # With one calibration per shard the sums of two shards could not be compared.
    assert len(stored) == 1

    facts = json.loads(table.facts[CALIBRATION])
    assert facts["seed"] == 0
    assert facts["n_noise_images"] == 500
    assert facts["clip"] == 10.0

    values = torch.from_numpy(indicator_values(table))
    noise = facts["noise"]
    # Columns are matched by position, and JSON keeps the order of the names.
    names = tuple(noise)
    means = tuple(noise[name]["mean"] for name in names)
    stds = tuple(noise[name]["std"] for name in names)
    calibration = NoiseCalibration(names, means, stds)
    expected = one_class_sum(values, calibration, clip=10.0)
    np.testing.assert_allclose(table.arrays("one_class_sum"), expected.numpy(), rtol=1e-12)
    check_teacher(table, teacher.fingerprint(), "relatedness")


def test_shards_that_exist_cost_nothing_and_the_teacher_sees_the_noise_once(
    pool: ImageStore, teacher: Model, tmp_path: Path, n_images_seen: Callable[[], int]
) -> None:
    makers = relatedness_shards(pool, teacher, params_of())
    table = ShardedTable.write(tmp_path, makers)
    n_noise = 500
    # The probe needs a few images, too, to find the layers of the network.
    n_for_the_probe = n_images_seen() - n_noise - len(pool)
    assert 0 < n_for_the_probe < 10

    times = {file: file.stat().st_mtime_ns for file in files_of(table)}
    # Sampling is no part of what was measured.
    other_sampling = params_of(temperature=2.0, sampling="uniform")
    makers = relatedness_shards(pool, teacher, other_sampling)
    ShardedTable.write(tmp_path, makers)
    assert n_images_seen() == 0

    lost = files_of(table)[1]
    content = lost.read_bytes()
    lost.unlink()
    makers = relatedness_shards(pool, teacher, params_of())
    again = ShardedTable.write(tmp_path, makers)
    n_lost = pool.shards[1].n
    assert n_images_seen() == n_for_the_probe + n_noise + n_lost
    assert lost.read_bytes() == content
    for file in files_of(again):
        if file != lost:
            assert file.stat().st_mtime_ns == times[file]


def names_of(pool: ImageStore, teacher: Model, **changes: Any) -> tuple[str, ...]:
    makers = relatedness_shards(pool, teacher, params_of(**changes))
    return tuple(makers)


def test_names_change_with_all_that_changes_the_numbers(pool: ImageStore, teacher: Model) -> None:
    with seeded(1):
        other_teacher = model_of(digits_cnn(10, width=8))
    bf16 = {**COMPUTE, "precision": "bf16"}
    all_names = [
        names_of(pool, teacher),
        names_of(pool, teacher, seed=1),
        names_of(pool, teacher, n_noise_images=400),
        names_of(pool, teacher, clip=5.0),
        names_of(pool, teacher, compute=bf16),
        names_of(pool, other_teacher),
    ]
    assert len(set(all_names)) == len(all_names)

    # A fingerprint follows the name of the image shard.
    image_shards = [shard.name for shard in pool.shards]
    for names in all_names:
        stems = [name.rpartition("-")[0] for name in names]
        assert stems == image_shards


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 2.0},
        {"floor": 0.5},
        {"sampling": "uniform"},
        {"compute": {**COMPUTE, "device": "auto", "inference_batch_size": None}},
    ],
)
def test_names_are_the_same_where_the_numbers_are(
    pool: ImageStore, teacher: Model, changes: dict[str, Any]
) -> None:
    assert names_of(pool, teacher, **changes) == names_of(pool, teacher)


def test_shards_hold_the_indicators_of_each_image(
    table: ShardedTable, pool: ImageStore, teacher: Model
) -> None:
    images = normalized_images(pool)
    probe = RelatednessProbe(teacher.network, (1, 8, 8))
    expected = probe(images).numpy()
    # Stored as float32, and computed in batches of another size.
    stored = indicator_values(table)
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-5)


@pytest.fixture
def plain_teacher() -> Model:
    """A teacher without batch normalization and without a last linear layer."""
    with seeded(0):
        convolution = nn.Conv2d(1, 10, 3)
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model_of(network)


def test_a_teacher_without_batchnorm_and_last_linear_layer_has_the_indicators_of_its_logits(
    pool: ImageStore, plain_teacher: Model, tmp_path: Path
) -> None:
    makers = relatedness_shards(pool, plain_teacher, params_of())
    table = ShardedTable.write(tmp_path, makers)
    assert indicators_of(table) == list(LOGIT_INDICATORS)

    # Everything later takes the shorter list of indicators.
    auc = indicator_auc(table, pool)
    measured = set(auc["indicator"])
    assert measured == {*LOGIT_INDICATORS, "one_class_sum"}
    manifest = preferential_manifest(table, pool, params_of())
    figure = plot_relatedness(table, pool, manifest, auc)
    figure.canvas.draw()


class Diverged(nn.Module):
    """A network whose outputs are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) * torch.inf


def test_an_empty_pool_is_refused(teacher: Model, tmp_path: Path) -> None:
    empty = store_of({}, tmp_path)
    with pytest.raises(InputError, match="relatedness: the pool is empty; check the sources"):
        relatedness_shards(empty, teacher, params_of())


def test_a_pool_of_another_image_size_is_refused(
    teacher: Model, files: dict[str, Path], tmp_path: Path
) -> None:
    larger = store_of({"noise": files["noise"]}, tmp_path, size_px=16)
    expected = r"images of 16 × 16 px, .* expects 8 × 8 px, .* run `kedro run"
    with pytest.raises(InputError, match=expected):
        relatedness_shards(larger, teacher, params_of())


def test_a_teacher_whose_outputs_are_not_finite_is_refused(pool: ImageStore) -> None:
    makers = relatedness_shards(pool, model_of(Diverged()), params_of())
    first = next(iter(makers.values()))
    with pytest.raises(InputError, match="relatedness: .* not finite: the network diverged"):
        first()
