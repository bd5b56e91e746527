"""A trained teacher, a pool of three sources, and its relatedness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.selection.relatedness import (
    relatedness_shards,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.selection.builders import (
    MEAN,
    N_TRAINING,
    STD,
    collections_of,
    digits,
    model_of,
    params_of,
    store_of,
)


@pytest.fixture(scope="session")
def teacher() -> Model:
    """A network that knows the first digits."""
    pixels, classes = digits()
    images = torch.from_numpy(pixels)
    labels = torch.from_numpy(classes)
    normalize = Normalize(MEAN, STD)
    with seeded(0):
        network = digits_cnn(10, width=8)
    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step(rows: Tensor) -> dict[str, Tensor]:
        logits = network(normalize(images[rows]))
        loss = functional.cross_entropy(logits, labels[rows])
        return {"loss": loss}

    generator = torch.Generator().manual_seed(0)
    batches = shuffled_batches(N_TRAINING, 64, generator)
    records = fit(step, batches, optimizer, n_updates=150, record_every=150, schedule="cosine")
    # `fit` trains while its records are read.
    list(records)
    return model_of(network)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return collections_of(tmp_path_factory.mktemp("collections"))


@pytest.fixture(scope="session")
def pool(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    store = store_of(files, tmp_path_factory.mktemp("pool"))
    assert len(store.shards) == 3
    return store


@pytest.fixture(scope="session")
def table(
    pool: ImageStore, teacher: Model, tmp_path_factory: pytest.TempPathFactory
) -> ShardedTable:
    folder = tmp_path_factory.mktemp("relatedness")
    makers = relatedness_shards(pool, teacher, params_of())
    return ShardedTable.write(folder, makers)
