"""Teachers, images and parameters that the tests of training share.

Images are bars in noise whose place is their class, so that teachers of a few channels learn them
within seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.storage.yardstick import yardstick_table
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.teacher import train_classifier

N_CLASSES = 5
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)
OPTIMIZER = OptimizerParams(
    algorithm="adam", learning_rate=0.005, momentum=0.9, weight_decay=0.0, schedule="constant"
)
PLAIN = AugmentationParams(padding_px=0, horizontal_flip=False)

# Option blocks of the objectives, with weights that suit 8x8 images and forty updates.
NOISE_MATRIX = {
    "diagonal": 0.9,
    "learns_diagonal": False,
    "learning_rate": 0.01,
    "pseudo_label_weight": 1.0,
}
LATENT = {"logits_weight": 1.0, "penultimate_weight": 1.0, "kl_weight": 0.0, "shared_head": False}
ATTENTION = {"n_taps": 3, "weight": 10.0, "label_weight": 0.0}  # 1000 is for maps of 32x32 images
CRITIC = {
    "mode": "ascent",
    "class_prior": [0.3, 0.6],
    "weight": 0.1,
    "ramp_updates": 10,
    "lipschitz": 20.0,
    "learning_rate": 2e-4,
}

# One variant per objective, and one more for the option that changes the network.
SHARED_HEAD = LATENT | {"kl_weight": 0.5, "shared_head": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "kd": {"objective": "kd"},
    "robust_kd": {"objective": "robust_kd"},
    "standardized_kd": {"objective": "standardized_kd"},
    "logit_mse": {"objective": "logit_mse"},
    "noisy_kd": {"objective": "noisy_kd"},
    "latent": {"objective": "latent"},
    "shared head": {"objective": "latent", "latent": SHARED_HEAD, "keep": "best"},
    "attention": {"objective": "attention"},
    "pu_critic": {"objective": "pu_critic"},
}

# Name -> image size, teacher and its options, student and its options.
NETWORKS: dict[str, tuple[int, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "digits": (8, ("digits_cnn", {"width": 8}), ("digits_cnn", {"width": 4})),
    "lenet": (32, ("lenet5", {}), ("lenet5_half", {})),
    "resnet": (
        8,
        ("cifar_resnet", {"depth": 8, "width": 8}),
        ("cifar_resnet", {"depth": 8, "width": 4}),
    ),
}


def png(number: int) -> bytes:
    """Return an image that differs for every number: noise, and a bar at the place of its class."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8)
    # The bars of neighboring classes overlap, so that a class is not a single pixel's value.
    top = number % N_CLASSES
    pixels[top : top + 3] += 100

    # Lossless, so that equal numbers give equal pixels in every store.
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def parquet_of(file: Path, numbers: range) -> None:
    """Write the images of some numbers with their ids and labels."""
    columns = {
        "id": [f"i{number}" for number in numbers],
        "image": [png(number) for number in numbers],
        "label": [number % N_CLASSES for number in numbers],
    }
    pq.write_table(pa.table(columns), file)


def store_of(
    folder: Path, *parts: tuple[range, str], size_px: int = 8, name: str | None = None
) -> ImageStore:
    """Return a store of images by number; each part states how its labels are read.

    Ids begin with the name, if there is one.
    """
    sources = []
    folder.mkdir(parents=True)
    for place, (numbers, labels) in enumerate(parts):
        file = folder / f"{place}.parquet"
        parquet_of(file, numbers)
        source = {"type": "parquet", "path": str(file), "labels": labels}
        if name is not None:
            source["name"] = f"{name}{place}"
        sources.append(ImageSource.model_validate(source))
    store = ImageStoreParams(
        kind="packed",
        packed_max_size_px=64,
        disk_budget_gb=1.0,
        shard_size=64,
        max_image_pixels=10_000,
        max_quarantined_share=0.0,
        n_workers=1,
    )
    # Class names as in a card: strings, though the labels are numbers.
    names = tuple(str(index) for index in range(N_CLASSES))
    plan = IngestionPlan("images", tuple(sources), size_px, 1, names, store, 0)
    return write_store(plan, folder / "store")


def params_with(**changes: Any) -> DistillationParams:
    given = {
        "seed": 0,
        "student_architecture": "digits_cnn",
        "student_options": {"width": 4},
        "objective": "kd",
        "noise_matrix": NOISE_MATRIX,
        "latent": LATENT,
        "attention": ATTENTION,
        "critic": CRITIC,
        "temperature": 2.0,
        "n_updates": 40,
        "record_every": 10,
        "batch_size": 32,
        "teacher_cache": "exact",
        "cached_views": 4,
        "keep": "last",
        "optimizer": OPTIMIZER,
        "augmentation": PLAIN,
        "compute": COMPUTE,
    }
    return DistillationParams.model_validate(given | changes)


def three_weight_vectors() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    vectors = rng.uniform(0.5, 1.5, (3, N_CLASSES))
    return pd.DataFrame(vectors)


@dataclass(frozen=True)
class Scene:
    """A trained teacher, its labeled images, a pool, and the architecture of its student."""

    teacher: Model
    labeled: ImageStore
    pool: ImageStore
    student: dict[str, Any]
    yardstick: Yardstick | None = None

    @property
    def manifest(self) -> pd.DataFrame:
        """All images, shuffled, and with an index that repeats."""
        parts = []
        for origin, store in (("pool", self.pool), ("labeled", self.labeled)):
            ids = store.index[["id"]]
            part = ids.assign(origin=origin)
            parts.append(part)
        in_order = pd.concat(parts)
        return in_order.sample(frac=1, random_state=0)

    @property
    def stores(self) -> dict[str, ImageStore]:
        """The two image stores by the name that a manifest uses for them."""
        return {"labeled": self.labeled, "pool": self.pool}

    def fresh(self) -> Model:
        """Return the student as it is before its first update."""
        architecture = self.student["student_architecture"]
        options = self.student["student_options"]
        with seeded(0):
            return new_student(self.teacher, architecture, options, {})

    def params(self, **changes: Any) -> DistillationParams:
        return params_with(**{**self.student, **changes})

    def distill(
        self, manifest: pd.DataFrame | None = None, **changes: Any
    ) -> tuple[Model, pd.DataFrame]:
        """Return the student and its history; the manifest is that of all images by default."""
        if manifest is None:
            manifest = self.manifest
        weights = three_weight_vectors()
        params = self.params(**changes)
        return distill(
            manifest,
            self.labeled,
            self.pool,
            self.teacher,
            weights,
            params,
            name="student",
            yardstick=self.yardstick,
        )

    def agreement_and_divergence(self, student: Model) -> tuple[float, float]:
        """Return how well the student follows the teacher on the pool."""
        student_logits = predict_logits(student, self.pool, COMPUTE)
        teacher_logits = predict_logits(self.teacher, self.pool, COMPUTE)
        student_classes = student_logits.argmax(dim=1)
        teacher_classes = teacher_logits.argmax(dim=1)
        is_agreed = student_classes == teacher_classes
        agreement = is_agreed.float().mean()
        divergence = kl_divergence(teacher_logits, student_logits).mean()
        return agreement.item(), divergence.item()


def make_scene(name: str, folder: Path) -> Scene:
    """Return the scene of one entry of NETWORKS, with a trained teacher."""
    size_px, (architecture, options), (student, student_options) = NETWORKS[name]
    labeled = store_of(folder / "labeled", (range(60), "classes"), size_px=size_px)
    pool = store_of(folder / "pool", (range(100, 240), "truth"), size_px=size_px)
    teacher_params = TeacherParams.model_validate(
        {
            "architecture": architecture,
            "architecture_options": options,
            "weights": None,
            "taps": None,
            "classes": N_CLASSES,
            "input": {"size_px": size_px, "channels": 1, "mean": [0.4], "std": [0.25]},
        }
    )
    training = TeacherTrainingParams(
        seed=1,
        n_updates=40,
        record_every=40,
        batch_size=32,
        optimizer=OPTIMIZER,
        augmentation=PLAIN,
        compute=COMPUTE,
    )
    teacher, _ = train_classifier(teacher_params, labeled, training)
    of_student = {"student_architecture": student, "student_options": student_options}
    measured = store_of(folder / "measured", (range(300, 320), "ignore"), size_px=size_px)
    return Scene(teacher, labeled, pool, of_student, yardstick_of(measured, teacher))


def yardstick_of(store: ImageStore, teacher: Model) -> Yardstick:
    """Return all images of a store as a yardstick."""
    images = store.index[["id", "sha256"]].assign(origin="pool", part="uniform")
    logits = predict_logits(teacher, store, COMPUTE).numpy()
    table = yardstick_table(images, logits, teacher=teacher.fingerprint(), seed=0)
    return Yardstick(table, {"pool": store})


def state_of(model: Model) -> dict[str, Tensor]:
    return dict(model.network.state_dict())


def are_equal(one: Model, other: Model) -> bool:
    """Return whether two students have the same weights, to the last bit."""
    state = state_of(one)
    other_state = state_of(other)
    if list(state) != list(other_state):
        return False
    for name, value in state.items():
        other_value = other_state[name]
        if not torch.equal(value, other_value):
            return False
    return True


# --- networks that some objectives refuse ---


def convolutions(n_classes: int, in_channels: int) -> nn.Module:
    """Return a network without a linear layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, n_classes, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def linear(n_classes: int, in_channels: int) -> nn.Module:
    """Return a network without a map to tap."""
    n_pixels = 8 * 8
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_pixels * in_channels, n_classes),
    )


class ChannelsLast(nn.Module):
    """A network whose one map has its channels last, as Swin and ConvNeXt keep them."""

    default_taps = ("norm",)

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 1)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        features = self.norm(maps.permute(0, 2, 3, 1))
        logits: Tensor = self.fc(features.mean(dim=(1, 2)))
        return logits


class Tokens(ChannelsLast):
    """A network whose one tap gives tokens, as those of transformers do."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        tokens = maps.flatten(2).transpose(1, 2)
        features = self.norm(tokens)
        logits: Tensor = self.fc(features.mean(dim=1))
        return logits


def own_network(factory: Callable[..., nn.Module]) -> dict[str, Any]:
    """Return the parameters of a student whose network is one of this module."""
    return {"student_architecture": f"{__name__}:{factory.__name__}", "student_options": {}}
