"""What both loops of the distillation benchmark work on: images, networks and weight vectors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import naive
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.class_weights import weight_vectors
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_student, new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams

CLASSES = tuple("0123456789")
SIZE_PX = 32
# In addition to the estimated one, as in conf/base/parameters_class_weighting.yml.
N_VECTORS = 8
CACHED_VIEWS = 8  # as in conf/base/parameters_distillation.yml
SGD = OptimizerParams(
    algorithm="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4, schedule="constant"
)


@dataclass(frozen=True)
class NetworkPair:
    """A teacher, its student, and the run whose cost is measured.

    Attributes:
        file: name of the Parquet file in the folder of images.
        encoding: format of the image files; sources of SIZE_PX are used as they are.
        teacher, student: architectures.
        spec: size, channels and normalization of the images.
        augmentation: random views of both loops.
        n_images: number of images that the loops train on.
        loop_views: views per image in the cache of the timed loop.
        batch_size: images per update, in every loop.
        updates: number of updates in one timed call.
        shown: how often `run` shows each image; filling the cache is spread over these.
        run: description of the run that the filling is charged to.
        repeats: number of timed rounds.
    """

    file: str
    encoding: str
    teacher: str
    student: str
    spec: InputSpec
    augmentation: AugmentationParams
    n_images: int
    loop_views: int
    batch_size: int
    updates: int
    shown: float
    run: str
    repeats: int


LENET = NetworkPair(
    file="mnist_train.parquet",
    encoding="PNG",
    teacher="lenet5",
    student="lenet5_half",
    spec=InputSpec(size_px=SIZE_PX, channels=1, mean=(0.1307,), std=(0.3081,)),
    augmentation=AugmentationParams(padding_px=2, horizontal_flip=True),
    n_images=2000,
    loop_views=CACHED_VIEWS,
    batch_size=64,
    updates=60,
    shown=6000 * 64 / 10_000,
    run="6,000 updates of 64 on 10,000 images",  # conf/mnist, S2
    repeats=7,
)
RESNET = NetworkPair(
    file="cifar10_train.parquet",
    encoding="JPEG",
    teacher="cifar_resnet34",
    student="cifar_resnet18",
    spec=InputSpec(
        size_px=SIZE_PX, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
    ),
    augmentation=AugmentationParams(padding_px=4, horizontal_flip=True),
    n_images=64,
    # More views would only lengthen the benchmark: a look-up costs the same.
    loop_views=1,
    batch_size=32,
    updates=1,
    shown=200,
    run="200 passes over the images",  # Xu et al. 2019, CIFAR-10
    repeats=5,
)


@dataclass(frozen=True)
class Task:
    """The same images as files and as a store, and the networks and weights of both loops."""

    pair: NetworkPair
    files: Path
    store: ImageStore
    teacher: Model
    vectors: Tensor
    is_real: bool

    def student(self) -> nn.Module:
        """Return the student as it is before training."""
        with seeded(0):
            return new_student(self.teacher, self.pair.student, {}, {}).network.train()

    def params(self, **changes: Any) -> DistillationParams:
        """Return the parameters of our loop, with changes; `precision` is that of `compute`."""
        compute = ComputeParams(
            device="cpu",
            precision=changes.pop("precision", "float32"),
            n_threads=None,
            resident_limit_gb=4,
            inference_batch_size=None,
        )
        given = {
            "seed": 0,
            "student_architecture": self.pair.student,
            "student_options": {},
            "objective": "robust_kd",
            "temperature": 1.0,
            # Endless: the benchmark leaves the loop when it has been timed.
            "n_updates": 10**6,
            "record_every": self.pair.updates,
            "batch_size": self.pair.batch_size,
            "teacher_cache": "off",
            "cached_views": self.pair.loop_views,
            "keep": "last",
            "optimizer": SGD,
            "augmentation": self.pair.augmentation,
            "compute": compute,
        }
        return DistillationParams.model_validate(given | changes)


def make_task(pair: NetworkPair, images: Path | None, work: Path) -> Task:
    """Write the images as files and as a store, and make the networks.

    Args:
        pair: teacher, student and run.
        images: folder of Parquet files; where the pair's is missing, images are generated.
        work: where files and store go.
    """
    encoded = _generated(pair)
    is_real = False
    if images is not None and (images / pair.file).exists():
        encoded = _from_parquet(images / pair.file, pair)
        is_real = True
    folder = work / f"{pair.student}_files"
    _write_files(folder, encoded, pair.encoding.lower())
    source = ImageSource(type="folder", path=str(folder), labels="classes")
    plan = IngestionPlan("pool", (source,), SIZE_PX, pair.spec.channels, CLASSES, naive.PACKED, 0)
    store = write_store(plan, work / f"{pair.student}_store")
    teacher = TeacherParams(
        architecture=pair.teacher,
        architecture_options={},
        weights=None,
        classes=CLASSES,
        input=pair.spec,
        taps=None,
    )
    vectors = _weight_vectors()
    # Another seed than the student's, so that their weights are unrelated.
    with seeded(1):
        return Task(pair, folder, store, new_teacher(teacher), vectors, is_real)


def _weight_vectors() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    estimated = torch.rand(len(CLASSES), generator=generator, dtype=torch.float64) + 0.5
    # Class weights have mean 1.
    estimated *= len(CLASSES) / estimated.sum()
    vectors = weight_vectors(
        estimated, n=N_VECTORS, epsilon=0.1, perturbation="projected", generator=generator
    )
    return vectors.float()


# --- image files ----------------------------------------------------------------------------------


def _write_files(folder: Path, encoded: Iterator[tuple[bytes, int]], suffix: str) -> None:
    """Write image files, one folder per class."""
    for number, (image, label) in enumerate(encoded):
        file = folder / CLASSES[label] / f"{number:05d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)


def _from_parquet(file: Path, pair: NetworkPair) -> Iterator[tuple[bytes, int]]:
    batches = pq.ParquetFile(file).iter_batches(pair.n_images, columns=["image", "label"])
    for row in next(batches).to_pylist():
        content = row["image"]
        image = Image.open(io.BytesIO(content))
        if image.size != (SIZE_PX, SIZE_PX):
            content = _padded(image, pair)
        yield content, row["label"]


def _padded(image: Image.Image, pair: NetworkPair) -> bytes:
    # MNIST's 28 x 28 pixels, in the middle of a black square.
    square = Image.new(image.mode, (SIZE_PX, SIZE_PX))
    left = (SIZE_PX - image.width) // 2
    top = (SIZE_PX - image.height) // 2
    square.paste(image, (left, top))
    return _encoded(square, pair)


def _generated(pair: NetworkPair) -> Iterator[tuple[bytes, int]]:
    """Yield smooth random images: noise of 8 x 8 pixels, enlarged."""
    rng = np.random.default_rng(0)
    for number in range(pair.n_images):
        # Gray images must have no channel axis for Pillow.
        noise = rng.integers(0, 256, (8, 8, pair.spec.channels), dtype=np.uint8).squeeze()
        small = Image.fromarray(noise)
        image = small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
        yield _encoded(image, pair), number % len(CLASSES)


def _encoded(image: Image.Image, pair: NetworkPair) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pair.encoding)
    return buffer.getvalue()
