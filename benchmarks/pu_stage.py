"""Target 2: the PU stage on cached descriptors and end to end, against released and naive loops.

The naive side is measured for a part of an epoch and scaled to the epochs. Ours runs all epochs
with LeNet-5; with ResNet-34, both sides are scaled up from their cost per image.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness import (
    Measurement,
    Ratio,
    cpu_seconds,
    has_native_bf16,
    ratio,
    speedup,
    unmeasured,
)
from benchmarks.loading import COLOR, GRAY, RESIDENT
from benchmarks.pu_end_to_end import end_to_end_row
from benchmarks.pu_setting import (
    CLASS_PRIOR,
    CPU,
    PAPER_SGD,
    Setting,
    make_setting,
    mnist_planted_parameters,
    new_module,
    unfused_sgd,
)
from benchmarks.pu_stage_cost import stage_cost_rows
from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.features.extraction import LAST_TAP_SIZE, TEACHER, feature_shards
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import make_optimizer
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier
from pu_kd_pipeline.learning.pu_training import pu_step
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.storage.sharded_table import ShardedTable, fixed_size_list
from pu_kd_pipeline.training.batches import augmented
from pu_kd_pipeline.training.pu_classifier import train_head

PAPER_EPOCHS = 200
N_POSITIVE = 200
N_POOL = 16_384
# Images that the naive loop is timed on, as a part of an epoch.
N_NAIVE = 2_176

N_RESNET_POSITIVE = 16
N_RESNET_POOL = 128
RESNET_POSITIVE_BATCH = 8
RESNET_UNLABELED_BATCH = 56
RESNET_BATCH = RESNET_POSITIVE_BATCH + RESNET_UNLABELED_BATCH
N_RESNET_ROWS = 8_192
RESNET_HEAD_EPOCHS = 10
RESNET_REPEATS = 2


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 2."""
    folder = work / "pu_stage"
    lenet = make_setting("lenet5", GRAY, _digits(images), folder)
    params = mnist_planted_parameters()
    # The paper trains no further heads for held-out ranks.
    paper_params = params.model_copy(update={"epochs": PAPER_EPOCHS, "held_out_folds": 0})
    paper_run = f"the paper's {PAPER_EPOCHS} epochs"
    yield _frozen_lenet_row(lenet, paper_params, folder, paper_run, goal=250)
    run = f"conf/mnist_planted: {params.epochs} epochs, {params.held_out_folds} folds"
    yield _frozen_lenet_row(lenet, params, folder, run, goal=None)
    yield end_to_end_row(lenet, params)
    yield from stage_cost_rows(images, folder)
    # Few images: ResNet-34 takes long for each.
    n_photos = N_RESNET_POOL + N_RESNET_POSITIVE
    photos = naive.encoded_images(images, "cifar10_train", n_photos, ("JPEG", 3, 32))
    encoded = (photos[:N_RESNET_POSITIVE], photos[N_RESNET_POSITIVE:])
    resnet = make_setting("cifar_resnet34", COLOR, encoded, folder)
    yield from _resnet_rows(resnet, params, folder)


def _digits(images: Path | None) -> tuple[list[bytes], list[bytes]]:
    """Return digits as positives, and as many digits as characters as the pool."""
    n_planted = N_POOL // 2
    digits = naive.encoded_images(images, "mnist_train", N_POSITIVE + n_planted, ("PNG", 1, 28))
    characters = naive.encoded_images(images, "characters_pool", N_POOL - n_planted, ("PNG", 1, 28))
    positive_rows = np.linspace(0, len(digits) - 1, N_POSITIVE).astype(int)
    is_positive = np.zeros(len(digits), dtype=bool)
    is_positive[positive_rows] = True
    positives = list(itertools.compress(digits, is_positive))
    planted = list(itertools.compress(digits, ~is_positive))
    # In turn, so that every shard of the pool holds both.
    pool = []
    for digit, character in zip(planted, characters, strict=True):
        pool.append(digit)
        pool.append(character)
    return positives, pool


# --- LeNet-5, frozen ------------------------------------------------------------------------------


def _frozen_lenet_row(
    setting: Setting, params: PUTrainingParams, work: Path, run: str, goal: float | None
) -> Measurement:
    part_of_epoch = _part_of_released_epoch(setting, params)

    def our_stage() -> None:
        _frozen_stage(setting, params, work)

    # The timed part is this share of one epoch; ours trains all epochs.
    positives, pool = setting.stores
    n_images = len(positives) + len(pool)
    share_of_epoch = N_NAIVE / n_images
    share_of_stage = share_of_epoch / params.epochs
    of_part = ratio(part_of_epoch, our_stage, repeats=3)
    gain = of_part.over(share_of_stage)
    note = (
        f"pool of {N_POOL:,}; ours with the descriptor pass and the feature files; the released "
        f"loop was measured for {N_NAIVE:,} images and scaled linearly to the epochs"
    )
    if params.held_out_folds:
        note += (
            f"; ours trains {params.held_out_folds} heads more, for the held-out ranks, "
            "the released loop does not"
        )
    what = f"PU stage with LeNet-5, frozen ({run}), against the released loop"
    return speedup("2", what, gain, goal, note=note)


def _frozen_stage(setting: Setting, params: PUTrainingParams, work: Path) -> None:
    """Do what the stages `feature_extraction` and `pu_training` do, with a given class prior."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        tables = []
        for number, store in enumerate(setting.stores):
            features = Path(folder) / str(number)
            shards = feature_shards(store, setting.teacher, RESIDENT)
            tables.append(ShardedTable.write(features, shards))
        train_head(tables[0], tables[1], setting.teacher, CLASS_PRIOR, params)


def _part_of_released_epoch(setting: Setting, params: PUTrainingParams) -> Callable[[], None]:
    """Return a function that trains on N_NAIVE images as the released loop does.

    Its batches are as large as ours.
    """
    batch_size = params.positive_batch_size + params.unlabeled_batch_size
    augmentation = params.augmentation
    positive, pool = setting.data_sets(augmentation.padding_px, augmentation.horizontal_flip)
    batches = naive.shuffled_union(positive, pool, batch_size)
    module = new_module(setting)
    optimizer = unfused_sgd(module)

    def train() -> None:
        first_batches = itertools.islice(batches, N_NAIVE // batch_size)
        naive.train_end_to_end(module, first_batches, CLASS_PRIOR, optimizer)

    return train


# --- ResNet-34 ------------------------------------------------------------------------------------


def _resnet_rows(setting: Setting, params: PUTrainingParams, work: Path) -> Iterator[Measurement]:
    """Measure what an image costs each side, in turn, and scale it to a stage."""
    positive, pool = setting.data_sets(padding=4, flip=True)
    batches = naive.shuffled_union(positive, pool, RESNET_BATCH)
    module = new_module(setting)
    optimizer = unfused_sgd(module)
    # Two modules: each side trains its own.
    bf16_step = _bf16_step(setting, new_module(setting))
    (make_features,) = feature_shards(setting.stores[1], setting.teacher, RESIDENT).values()
    head_params = params.model_copy(
        update={"epochs": RESNET_HEAD_EPOCHS, "held_out_folds": 0, "features": "descriptor"}
    )
    positive_table, pool_table = _repeated_rows(make_features(), work)
    n_descriptors = len(setting.stores[1])

    def their_step() -> None:
        one_batch = itertools.islice(batches, 1)
        naive.train_end_to_end(module, one_batch, CLASS_PRIOR, optimizer)

    def head_training() -> None:
        train_head(positive_table, pool_table, setting.teacher, CLASS_PRIOR, head_params)

    frozen_gains = []
    bf16_gains = []
    for _ in range(RESNET_REPEATS):
        # Seconds per image, and for the head per image and epoch.
        theirs = cpu_seconds(their_step) / RESNET_BATCH
        descriptor = cpu_seconds(make_features) / n_descriptors
        n_rows_trained = RESNET_HEAD_EPOCHS * N_RESNET_ROWS
        head = cpu_seconds(head_training) / n_rows_trained
        # Ours computes each descriptor once; the released loop runs the network in every epoch.
        our_stage = descriptor + PAPER_EPOCHS * head
        their_stage = PAPER_EPOCHS * theirs
        frozen_gains.append(their_stage / our_stage)
        if has_native_bf16():
            ours = cpu_seconds(bf16_step) / RESNET_BATCH
            bf16_gains.append(theirs / ours)

    run = f"the paper's {PAPER_EPOCHS} epochs"
    yield speedup(
        "2",
        f"PU stage with ResNet-34, frozen ({run}), against the released loop",
        Ratio.of(frozen_gains),
        500,
        note=f"scaled linearly from a batch of {RESNET_BATCH} of the released loop, "
        f"{n_descriptors} descriptors, and {RESNET_HEAD_EPOCHS} epochs of the head "
        f"on {N_RESNET_ROWS:,}",
    )
    what = "PU training with ResNet-34 end to end in bf16, a batch, "
    what += "against the naive loop in float32"
    if bf16_gains:
        yield speedup("2", what, Ratio.of(bf16_gains), 2, note=f"a batch of {RESNET_BATCH}")
    else:
        note = "this CPU has no bf16 instructions: there it would be a loss"
        yield unmeasured("2", what, 2, note)


def _bf16_step(setting: Setting, module: FullPUClassifier) -> Callable[[], None]:
    """Return a function that takes one step of end-to-end training under autocast."""
    compute = RESIDENT.model_copy(update={"precision": "bf16"})
    settings = PAPER_SGD.model_dump(exclude={"schedule"})
    optimizer = make_optimizer(module, **settings)
    normalize = setting.normalize
    generator = torch.Generator().manual_seed(0)
    params = mnist_planted_parameters()
    # As is usual for photos; the values of the environment are for digits.
    changes = {"padding_px": 4, "horizontal_flip": True}
    augmentation = params.augmentation.model_copy(update=changes)
    positive_store, pool_store = setting.stores
    positive = _all_rows(positive_store, compute)
    unlabeled = _all_rows(pool_store, compute)

    def scores(images: Tensor) -> Tensor:
        with autocast(compute, CPU):
            return module(images)  # type: ignore[no-any-return]

    step = pu_step(scores, class_prior=CLASS_PRIOR, estimator="nnpu", beta=0.0, gamma=1.0)

    def random_views(rows: ImageRows, n: int) -> Tensor:
        chosen = torch.randint(len(rows), (n,), generator=generator)
        images = rows.batch(chosen)
        return augmented(images, normalize, augmentation, generator)

    def take_step() -> None:
        module.train()
        positive_images = random_views(positive, RESNET_POSITIVE_BATCH)
        unlabeled_images = random_views(unlabeled, RESNET_UNLABELED_BATCH)
        loss = step((positive_images, unlabeled_images))["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return take_step


def _all_rows(store: ImageStore, compute: ComputeParams) -> ImageRows:
    rows = np.arange(len(store))
    return ImageRows([(store, rows)], compute)


def _repeated_rows(table: pa.Table, work: Path) -> tuple[ShardedTable, ShardedTable]:
    """Return feature tables of positives and pool, which repeat the rows of a smaller table.

    Descriptors of so many images would take minutes, and the head's cost does not depend on them.
    """
    folder = work / "resnet_features"
    positive = _write_repeated(table, folder / "positive", N_POSITIVE)
    pool = _write_repeated(table, folder / "pool", N_RESNET_ROWS)
    return positive, pool


def _write_repeated(table: pa.Table, folder: Path, n: int) -> ShardedTable:
    rows = np.arange(n) % len(table)
    ids = [f"{folder.name}{row}" for row in range(n)]
    columns = {"id": pa.array(ids)}
    for name in ("descriptor", "logits"):
        lists = table[name].to_numpy(zero_copy_only=False)
        vectors = np.stack(lists)
        columns[name] = fixed_size_list(vectors[rows])
    # What training reads of a feature table in addition to its columns.
    metadata = table.schema.metadata
    facts = {}
    for key in (TEACHER, LAST_TAP_SIZE):
        facts[key] = metadata[key.encode()]
    larger = pa.table(columns).replace_schema_metadata(facts)
    return ShardedTable.write(folder, {"0": lambda: larger})
