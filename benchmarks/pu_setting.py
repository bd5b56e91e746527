"""What the PU benchmarks share: sizes, training parameters, and a teacher with its images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import naive
from benchmarks.loading import RESIDENT, packed_store
from pu_kd_pipeline.images.batches import normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, make_head
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import OptimizerParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams

CONF = Path(__file__).parents[1] / "conf"
CPU = torch.device("cpu")
CLASS_PRIOR = 0.47
# Xu et al. 2019, within the first quarter of the epochs. End to end, Adam at the head's learning
# rate would diverge.
PAPER_SGD = OptimizerParams(
    algorithm="sgd", learning_rate=1e-3, momentum=0.9, weight_decay=5e-3, schedule="constant"
)
# Images of the pool that the descriptor is standardized by.
N_STANDARDIZED = 128


@dataclass(frozen=True)
class Setting:
    """A teacher, and the same positives and pool as folders of image files and as stores.

    `folders` and `stores` hold the positives first.
    """

    spec: InputSpec
    teacher: Model
    folders: tuple[Path, Path]
    stores: tuple[ImageStore, ImageStore]

    @property
    def normalize(self) -> Normalize:
        """The teacher's normalization."""
        return normalization(self.teacher, CPU)

    def data_sets(self, padding: int = 0, flip: bool = False) -> list[Any]:
        """Return the positives (label 1) and the pool (label 0) as image folders."""
        # Color images are 32 px already; digits are 28 px and get enlarged.
        resize = self.stores[0].image_shape != (3, 32, 32)
        transform = naive.transform_of(self.spec, padding, flip, resize=resize)
        positives, pool = self.folders
        return [
            naive.image_folder(positives, self.spec, transform, label=1),
            naive.image_folder(pool, self.spec, transform, label=0),
        ]


def make_setting(
    architecture: str, spec: InputSpec, encoded: tuple[list[bytes], list[bytes]], work: Path
) -> Setting:
    """Write positives and pool as files and as stores, and make an untrained teacher."""
    params = TeacherParams(
        architecture=architecture,
        architecture_options={},
        weights=None,
        classes=10,
        input=spec,
        taps=None,
    )
    with seeded(0):
        teacher = new_teacher(params)
    folder = work / architecture
    encoded_positives, encoded_pool = encoded
    positives = naive.write_folder(folder / "positive", encoded_positives)
    pool = naive.write_folder(folder / "pool", encoded_pool)
    positive_store = packed_store(positives, spec, folder / "positive_store")
    pool_store = packed_store(pool, spec, folder / "pool_store")
    folders = (positives, pool)
    stores = (positive_store, pool_store)
    return Setting(spec, teacher, folders, stores)


def mnist_planted_parameters() -> PUTrainingParams:
    """Return the block `pu_training` of conf/mnist_planted, computed on the CPU."""
    from omegaconf import OmegaConf

    # The environment's values replace those of base.
    files = ("base/globals.yml", "base/parameters_pu_training.yml", "mnist_planted/parameters.yml")
    configs = [OmegaConf.load(CONF / file) for file in files]
    merged = OmegaConf.merge(*configs)
    block = OmegaConf.to_container(merged.pu_training, resolve=True)
    params = PUTrainingParams.model_validate(block)
    return params.model_copy(update={"compute": RESIDENT})


def new_module(setting: Setting) -> FullPUClassifier:
    """Return the teacher's backbone with a new head, standardized as for a frozen backbone."""
    # A copy: end-to-end training changes the backbone, and the teacher is used again.
    network = copy.deepcopy(setting.teacher.network)
    extractor = Model(network, setting.teacher.card).extractor()
    with seeded(0):
        head = make_head(extractor.descriptor_size, "descriptor", 16)
        module = FullPUClassifier(extractor, head)
    pool = setting.stores[1]
    n_images = min(N_STANDARDIZED, len(pool))
    rows = np.arange(n_images)
    images = torch.from_numpy(pool.read(rows))
    normalized = setting.normalize(images)
    with torch.inference_mode():
        outputs = extractor(normalized)
    descriptor = outputs[0]
    # A copy: tensors made in inference mode cannot take part in training.
    module.head.set_standardization(descriptor.clone())
    return module


def unfused_sgd(module: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a usual script, with the paper's settings."""
    settings = PAPER_SGD.model_dump(exclude={"algorithm", "schedule", "learning_rate"})
    return torch.optim.SGD(module.parameters(), lr=PAPER_SGD.learning_rate, **settings)
