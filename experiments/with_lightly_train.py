"""Pretrain a student on the pool with LightlyTrain, for comparison with a student of this project.

    pip install lightly-train
    python -m experiments.with_lightly_train --env mnist_characters --updates 1200 --seeds 0 1 2

It reads the images and the teacher of an environment whose comparison has run, and prints one line
of JSON per seed. LightlyTrain distills the features of a teacher into a backbone, so that a
classifier has to be trained on the labeled images afterwards. Two are: logistic regression on the
features of the frozen backbone, and fine-tuning of the whole network.

Student, labeled images, pool and batch size are those of the comparison. The number of updates is
an option, and fine-tuning takes 200 more. The augmentation is LightlyTrain's, except for size and
normalization. Its teachers are DINOv2 and DINOv3: ours is put in the place of one.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from pu_kd_pipeline.comparison.inputs import labeled_rows
from pu_kd_pipeline.images.duplicates import Excluded, excluded_images
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.learning.networks import vision  # noqa: F401  makes torchvision importable
from pu_kd_pipeline.learning.penultimate import find_last_linear
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model

PROJECT = Path(__file__).resolve().parents[1]
READ_AT_ONCE = 512
# Fine-tuning, after the updates of the pretraining.
FINE_TUNING = {"n_updates": 200, "learning_rate": 0.01, "momentum": 0.9}


class Backbone(nn.Module):
    """The layers of a classifier below its last one, with the interface that LightlyTrain wants.

    It takes (N, 3, size_px, size_px) normalized images. A network for gray ones sees the mean of
    the channels.

    Args:
        model: a teacher or a student.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        self.n_channels = model.card.input.channels
        images = torch.zeros(1, 3, model.card.input.size_px, model.card.input.size_px)
        with torch.no_grad():
            self.embed_dim = self.eval()(images).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the (N, D) features."""
        if self.n_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        _, last = find_last_linear(self.network)
        inputs: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        self.network(images)
        hook.remove()
        return inputs[0]

    def feature_dim(self) -> int:
        """Return D."""
        return self.embed_dim

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features as a map of one pixel."""
        return {"features": self(images)[:, :, None, None]}

    def forward_pool(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the features as they are: the network has pooled them."""
        return {"pooled_features": features["features"]}

    def get_model(self) -> nn.Module:
        """Return what a checkpoint holds."""
        return self.network


class Data:
    """The images of an environment that the comparison's students see.

    Args:
        catalog: of the environment.
    """

    def __init__(self, catalog: DataCatalog) -> None:
        self.teacher: Model = catalog.load("teacher_model")
        self.distillation = catalog.load("params:distillation")
        spec = self.teacher.card.input
        if tuple(spec.value_range) != (0.0, 1.0) or spec.channel_order != "rgb":
            raise SystemExit(
                "this experiment feeds RGB pixels in [0, 1], normalized, to the teacher"
            )
        self.labeled: ImageStore = catalog.load("labeled_images")
        self.pool: ImageStore = catalog.load("pool_images")
        self.test: ImageStore = catalog.load("test_images")
        subset = catalog.load("params:subset_materialization")
        duplicates = catalog.load("duplicates")
        self.excluded: Excluded = excluded_images(duplicates, subset, catalog.load("yardstick"))

    def normalized(self, images: ImageStore, rows: np.ndarray) -> Tensor:
        """Return (N, 3, size_px, size_px) images of a store as the teacher sees them."""
        spec = self.teacher.card.input
        pixels = torch.from_numpy(images.read(rows)).float() / 255.0
        mean = torch.tensor(spec.mean).view(1, -1, 1, 1)
        std = torch.tensor(spec.std).view(1, -1, 1, 1)
        return ((pixels - mean) / std).expand(-1, 3, -1, -1)

    def labeled_draw(self, n_per_class: int, seed: int) -> tuple[Tensor, np.ndarray]:
        """Return the labeled images of a seed of the comparison, and their classes."""
        is_excluded = self.labeled.index["id"].isin(self.excluded.all_labeled).to_numpy()
        allowed = ImageSubset.of(self.labeled, np.flatnonzero(~is_excluded))
        rows = labeled_rows(allowed, n_per_class, seed)
        return self.normalized(allowed, rows), allowed.index["label"].to_numpy(np.int64)[rows]

    def write_pool(self, folder: Path) -> int:
        """Write the pool images as PNG files; return how many."""
        ids = self.pool.index["id"]
        left_out = self.excluded.pool | self.excluded.yardstick_pool
        rows = np.flatnonzero(~ids.isin(left_out).to_numpy())
        for start in range(0, len(rows), READ_AT_ONCE):
            part = rows[start : start + READ_AT_ONCE]
            for row, pixels in zip(part, self.pool.read(part), strict=True):
                # Three channels, which LightlyTrain reads by default.
                image = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{row}.png")
        return len(rows)


def pretrain(
    data: Data,
    student: Model,
    pool: Path,
    out: Path,
    *,
    n_images: int,
    n_updates: int,
    seed: int,
) -> int:
    """Train the student's backbone with LightlyTrain; return the number of updates that it made."""
    import lightly_train
    from lightly_train._methods.distillation import distillation

    teacher = Backbone(data.teacher).eval().requires_grad_(False)

    def get_teacher(*_: Any, **__: Any) -> nn.Module:
        return teacher

    distillation.get_teacher = get_teacher
    spec = data.teacher.card.input
    normalize = {"mean": _three(spec.mean), "std": _three(spec.std)}
    size = (spec.size_px, spec.size_px)
    lightly_train.pretrain(
        out=out,
        data=pool,
        model=Backbone(student),
        method="distillationv1",
        batch_size=data.distillation.batch_size,
        # Its warm-up is a share of the epochs, so that they have to be those of the updates.
        epochs=math.ceil(n_updates / (n_images // data.distillation.batch_size)),
        trainer_args={"max_steps": n_updates},
        transform_args={"image_size": size, "normalize": normalize},
        accelerator="cpu",
        precision="32-true",
        num_workers=0,
        seed=seed,
        overwrite=True,
    )
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)
    exported = torch.load(out / "exported_models" / "exported_last.pt", weights_only=True)
    student.network.load_state_dict(exported)
    return int(checkpoint["global_step"])


def _three(values: Sequence[float]) -> tuple[float, ...]:
    """Return one value per channel of a color image."""
    return tuple(values) * (3 // len(values))


def probe_accuracy(data: Data, student: Model, labeled: Tensor, classes: np.ndarray) -> float:
    """Return the test accuracy of logistic regression on the features of the frozen backbone."""
    backbone = Backbone(student).eval()
    with torch.no_grad():
        features = backbone(labeled).numpy()
        scale = features.std() + 1e-6
        classifier = LogisticRegression(max_iter=2_000).fit(features / scale, classes)
        n_right = 0
        for pixels, truth in _test_batches(data):
            predicted = classifier.predict(backbone(pixels).numpy() / scale)
            n_right += int((predicted == truth).sum())
    return n_right / len(data.test)


def fine_tuned_accuracy(
    data: Data, student: Model, labeled: Tensor, classes: np.ndarray, seed: int
) -> float:
    """Return the test accuracy after training the whole network on the labeled images."""
    network = student.network.train()
    channels = student.card.input.channels
    targets = torch.from_numpy(classes)
    n_updates = int(FINE_TUNING["n_updates"])
    optimizer = torch.optim.SGD(
        network.parameters(), FINE_TUNING["learning_rate"], momentum=FINE_TUNING["momentum"]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)
    generator = torch.Generator().manual_seed(seed)
    flips = data.distillation.augmentation.horizontal_flip
    for _ in range(n_updates):
        rows = torch.randint(len(labeled), (data.distillation.batch_size,), generator=generator)
        images = labeled[rows, :channels]
        if flips and torch.rand(1, generator=generator).item() < 0.5:
            images = images.flip(-1)
        loss = nn.functional.cross_entropy(network(images), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    n_right = 0
    with torch.no_grad():
        for pixels, truth in _test_batches(data):
            predicted = network(pixels[:, :channels]).argmax(dim=1).numpy()
            n_right += int((predicted == truth).sum())
    return n_right / len(data.test)


def _test_batches(data: Data) -> Any:
    truth = data.test.index["label"].to_numpy(np.int64)
    for start in range(0, len(truth), READ_AT_ONCE):
        rows = np.arange(start, min(start + READ_AT_ONCE, len(truth)))
        yield data.normalized(data.test, rows), truth[rows]


def run(
    data: Data, n_per_class: int, n_updates: int, seed: int, work: Path, n_images: int
) -> dict[str, Any]:
    """Return the results of one seed."""
    torch.manual_seed(seed)
    params = data.distillation
    student = new_student(data.teacher, params.student_architecture, params.student_options, {})
    labeled, classes = data.labeled_draw(n_per_class, seed)
    started = time.process_time()
    out = work / f"seed{seed}"
    n_done = pretrain(
        data, student, work / "pool", out, n_images=n_images, n_updates=n_updates, seed=seed
    )
    seconds = time.process_time() - started
    return {
        "seed": seed,
        "n_updates": n_done,
        "n_labeled": len(classes),
        "n_test": len(data.test),
        "probe": probe_accuracy(data, student, labeled, classes),
        "fine_tuned": fine_tuned_accuracy(data, student, labeled, classes, seed),
        "pretraining_cpu_seconds": seconds,
    }


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(prog="python -m experiments.with_lightly_train")
    parser.add_argument("--env", required=True, help="folder of conf/")
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--labeled-per-class", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bootstrap_project(PROJECT)
    with KedroSession.create(PROJECT, env=options.env) as session:
        data = Data(session.load_context().catalog)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "pool").mkdir()
        n_images = data.write_pool(work / "pool")
        print(f"{n_images:,} pool images", flush=True)
        for seed in options.seeds:
            result = run(data, options.labeled_per_class, options.updates, seed, work, n_images)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
