"""Robust distillation, target 3: this project's loop against the loop of a usual research script, per image shown.

Both train the same student by the same method. The script decodes its image files at every step, asks the teacher at
every step, computes one weighted loss a weight vector, and waits for the loss. Where both get the same batches their
losses agree, which is asserted before anything is timed.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks import naive
from benchmarks.harness import Measurement, Ratio, cpu_seconds, ratio
from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import take_views
from pu_kd_pipeline.learning.class_weights import weight_vectors
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded
from pu_kd_pipeline.learning.losses.distillation import (
    robust_kd,
    soft_cross_entropy,
    worst_weighted_mean,
)
from pu_kd_pipeline.learning.networks.vision import torchvision
from pu_kd_pipeline.models.factory import new_student, new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.teacher_cache import TeacherOutputs

TOLERANCE = 1e-4  # of losses of the same batches
CLASSES = tuple("0123456789")
SIZE_PX = 32
N_VECTORS = 8  # beside the estimated one, as conf/base/parameters_class_weighting.yml has it
CACHED_VIEWS = 8  # as conf/base/parameters_distillation.yml has it
SGD = OptimizerParams(
    algorithm="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4, schedule="constant"
)


@dataclass(frozen=True)
class Pair:
    """A teacher, its student, and the run whose cost is measured.

    Attributes:
        file: Parquet file of images in the folder of image files.
        encoding: of the files that both loops get: the source's own bytes, or a PNG where images are padded.
        n_images: how many of them the loops go through.
        batch_size: of every loop.
        updates: in one timed call.
        shown: how often the run that the filling is charged to shows each image, and `run` is its name.
        repeats: rounds that are timed.
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


LENET = Pair(
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
RESNET = Pair(
    file="cifar10_train.parquet",
    encoding="JPEG",
    teacher="cifar_resnet34",
    student="cifar_resnet18",
    spec=InputSpec(
        size_px=SIZE_PX, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
    ),
    augmentation=AugmentationParams(padding_px=4, horizontal_flip=True),
    n_images=64,
    loop_views=1,  # asking for more would only lengthen the benchmark: a look-up costs the same
    batch_size=32,
    updates=1,
    shown=200,
    run="200 passes over the images",  # Xu et al. 2019, CIFAR-10
    repeats=5,
)


@dataclass(frozen=True)
class Task:
    """What both loops work on: the same images as files and as a store, the same networks and weight vectors."""

    pair: Pair
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
        """Return the parameters of our loop."""
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
            "n_updates": 10**6,  # the loop is left when it was timed
            "record_every": self.pair.updates,
            "batch_size": self.pair.batch_size,
            "held_out_share": 0.0,
            "teacher_cache": "off",
            "cached_views": self.pair.loop_views,
            "keep": "last",
            "optimizer": SGD,
            "augmentation": self.pair.augmentation,
            "compute": compute,
        }
        return DistillationParams.model_validate(given | changes)


def make_task(pair: Pair, images: Path | None, work: Path) -> Task:
    """Write the images as files, one folder a class, make a store of them, and draw the networks."""
    folder = work / f"{pair.student}_files"
    source = None if images is None else images / pair.file
    is_real = source is not None and source.exists()
    encoded = _from_parquet(source, pair) if is_real and source is not None else _generated(pair)
    for number, (image, label) in enumerate(encoded):
        file = folder / CLASSES[label] / f"{number:05d}.{pair.encoding.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    from_folder = ImageSource(type="folder", path=str(folder), labels="classes")
    plan = IngestionPlan(
        "pool", (from_folder,), SIZE_PX, pair.spec.channels, CLASSES, naive.PACKED, 0
    )
    store = write_store(plan, work / f"{pair.student}_store")
    teacher = TeacherParams(
        architecture=pair.teacher,
        architecture_options={},
        weights=None,
        classes=CLASSES,
        input=pair.spec,
        taps=None,
    )
    generator = torch.Generator().manual_seed(0)
    estimated = torch.rand(len(CLASSES), generator=generator, dtype=torch.float64) + 0.5
    estimated *= len(CLASSES) / estimated.sum()
    vectors = weight_vectors(
        estimated, n=N_VECTORS, epsilon=0.1, mode="projected", generator=generator
    )
    with seeded(1):
        return Task(pair, folder, store, new_teacher(teacher), vectors.float(), is_real)


def _from_parquet(file: Path, pair: Pair) -> Iterator[tuple[bytes, int]]:
    rows = next(
        pq.ParquetFile(file).iter_batches(pair.n_images, columns=["image", "label"])
    ).to_pylist()
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]))
        yield (
            row["image"] if image.size == (SIZE_PX, SIZE_PX) else _padded(image, pair),
            row["label"],
        )


def _padded(image: Image.Image, pair: Pair) -> bytes:
    square = Image.new(image.mode, (SIZE_PX, SIZE_PX))
    square.paste(image, ((SIZE_PX - image.width) // 2, (SIZE_PX - image.height) // 2))
    return _encoded(square, pair)


def _generated(pair: Pair) -> Iterator[tuple[bytes, int]]:
    """Yield smooth random images: noise of 8x8 pixels, enlarged."""
    rng = np.random.default_rng(0)
    for number in range(pair.n_images):
        noise = rng.integers(0, 256, (8, 8, pair.spec.channels), dtype=np.uint8).squeeze()
        image = Image.fromarray(noise).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
        yield _encoded(image, pair), number % len(CLASSES)


def _encoded(image: Image.Image, pair: Pair) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pair.encoding)
    return buffer.getvalue()


# --- ours -------------------------------------------------------------------------------------------------------------


def our_losses(task: Task, params: DistillationParams, student: nn.Module) -> Iterator[float]:
    """Yield the mean loss of every `record_every` updates: the loop of `infra.distillation.distill` without its ends."""
    device = torch.device("cpu")
    rows, normalize = _rows(task, params), normalization(task.teacher, device)
    teacher_outputs = TeacherOutputs(rows, task.teacher.network, normalize, params)

    def step(batch: Batch) -> dict[str, Tensor]:
        teacher_logits = teacher_outputs(batch)
        with autocast(params.compute, device):
            student_logits = student(batch.images).float()
        values = robust_kd(student_logits, teacher_logits, task.vectors, params.temperature)
        agreement = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
        return {**values, "training_agreement": agreement}

    batches = augmented_batches(
        rows, normalize, params.augmentation, params.batch_size, params.seed, teacher_outputs.draw
    )
    optimizer = make_optimizer(student, **params.optimizer.model_dump(exclude={"schedule"}))
    schedule = params.optimizer.schedule
    for record in fit(
        step,
        batches,
        optimizer,
        n_updates=params.n_updates,
        record_every=params.record_every,
        schedule=schedule,
    ):
        yield record["loss"]


def _rows(task: Task, params: DistillationParams, n: int | None = None) -> ImageRows:
    return ImageRows([(task.store, np.arange(n or len(task.store)))], params.compute)


# --- the script -------------------------------------------------------------------------------------------------------


def naive_batches(task: Task) -> Iterator[Tensor]:
    """Yield batches for ever: each image is opened, decoded, cropped, mirrored and normalized when it is its turn."""
    spec, views = task.pair.spec, task.pair.augmentation
    transform = naive.transform_of(spec, views.padding_px, views.horizontal_flip, resize=False)
    images = naive.image_folder(task.files, spec, transform)
    loader = DataLoader(
        images, batch_size=task.pair.batch_size, shuffle=True, num_workers=0, drop_last=True
    )
    while True:
        for batch, _ in loader:
            yield batch


def naive_robust_loss(
    student_logits: Tensor, teacher_logits: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Return the largest of the weighted losses, each computed by itself."""
    losses = [
        weighted_loss(student_logits, teacher_logits, weights, temperature) for weights in vectors
    ]
    return torch.stack(losses).max()


def weighted_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Return the distillation loss in which a sample counts as much as the class that the teacher sees in it."""
    return (
        weights[teacher_logits.argmax(dim=1)]
        * _sample_losses(student_logits, teacher_logits, temperature)
    ).mean()


def shared_robust_loss(
    student_logits: Tensor, teacher_logits: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Return what `naive_robust_loss` does, written with more care: what the vectors share is computed once."""
    sample_losses = _sample_losses(student_logits, teacher_logits, temperature)
    classes = teacher_logits.argmax(dim=1)
    return torch.stack([(weights[classes] * sample_losses).mean() for weights in vectors]).max()


def _sample_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    targets = functional.softmax(teacher_logits / temperature, dim=1)
    return (
        -(targets * functional.log_softmax(student_logits / temperature, dim=1)).sum(dim=1)
        * temperature**2
    )


def naive_losses(task: Task, batches: Iterator[Tensor], student: nn.Module) -> Iterator[float]:
    """Yield the loss of every update."""
    teacher = task.teacher.network
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=SGD.learning_rate,
        momentum=SGD.momentum,
        weight_decay=SGD.weight_decay,
    )
    for images in batches:
        with torch.no_grad():
            teacher_logits = teacher(images)
        loss = naive_robust_loss(student(images), teacher_logits, task.vectors, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def largest_difference(task: Task, n_updates: int, batch_size: int) -> float:
    """Return how far the losses of both loops are apart at most, where the script's loop gets our batches."""
    params = task.params(n_updates=n_updates, record_every=1, batch_size=batch_size)
    batches = augmented_batches(
        _rows(task, params),
        normalization(task.teacher, torch.device("cpu")),
        params.augmentation,
        batch_size,
        0,
    )
    ours = list(our_losses(task, params, task.student()))
    naive = naive_losses(task, (batch.images for batch in batches), task.student())
    return max(abs(loss - next(naive)) for loss in ours)


def one_view(task: Task, row: int, view: int) -> tuple[Tensor, Tensor]:
    """Return the same view of the same image as the script's transforms make it, given the view, and as ours do."""
    pair, flip, padding = (
        task.pair,
        task.pair.augmentation.horizontal_flip,
        task.pair.augmentation.padding_px,
    )
    pixels = torch.from_numpy(task.store.read(np.array([row])))
    normalize = normalization(task.teacher, torch.device("cpu"))
    ours = normalize(take_views(pixels, torch.tensor([view]), padding=padding, flip=flip))[0]
    crop, is_flipped = (view // 2, view % 2 == 1) if flip else (view, False)
    top, left = divmod(crop, 2 * padding + 1)
    transforms = torchvision.transforms.functional
    image = Image.fromarray(np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy().squeeze()))
    image = transforms.crop(transforms.pad(image, padding), top, left, SIZE_PX, SIZE_PX)
    image = transforms.hflip(image) if is_flipped else image
    return transforms.normalize(transforms.to_tensor(image), pair.spec.mean, pair.spec.std), ours


# --- measuring --------------------------------------------------------------------------------------------------------


def has_native_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices by itself."""
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _rounds(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each work, called in turn, after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name, work in works.items():
            spent = cpu_seconds(work)
            if number:
                seconds[name].append(spent)
    return seconds


def _ratio(first: list[float], second: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _loops(task: Task, precisions: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """Return what a round times; each call shows or asks for `updates` batches."""
    pair = task.pair
    script = naive_losses(task, naive_batches(task), task.student())
    works: dict[str, Callable[[], object]] = {
        "naive": lambda: [next(script) for _ in range(pair.updates)]
    }
    n_filled = pair.updates * pair.batch_size // pair.loop_views
    for precision in precisions:
        fresh = our_losses(task, task.params(precision=precision), task.student())
        cached = our_losses(
            task, task.params(precision=precision, teacher_cache="views"), task.student()
        )
        filling = task.params(precision=precision, teacher_cache="views")
        rows, normalize = (
            _rows(task, filling, n_filled),
            normalization(task.teacher, torch.device("cpu")),
        )
        works |= {
            **_bare_networks(task, precision),
            f"off {precision}": fresh.__next__,
            f"views {precision}": cached.__next__,
            f"filling {precision}": lambda filling=filling, rows=rows, normalize=normalize: (
                TeacherOutputs(rows, task.teacher.network, normalize, filling)
            ),
        }
    return works


def _bare_networks(task: Task, precision: str) -> dict[str, Callable[[], object]]:
    """Return the least that any loop does with these networks: the same passes over one batch that is ready."""
    pair, compute = task.pair, task.params(precision=precision).compute
    device, student = torch.device("cpu"), task.student()
    images = normalization(task.teacher, device)(
        _rows(task, task.params()).batch(torch.arange(pair.batch_size))
    )

    def train() -> None:
        for parameter in student.parameters():
            parameter.grad = None
        with autocast(compute, device):
            logits = student(images)
        logits.float().square().mean().backward()

    def train_beside_teacher() -> None:
        with torch.no_grad(), autocast(compute, device):
            task.teacher.network(images)
        train()

    return {
        f"least views {precision}": lambda: [train() for _ in range(pair.updates)],
        f"least off {precision}": lambda: [train_beside_teacher() for _ in range(pair.updates)],
    }


def _pair_rows(task: Task, goals: Mapping[tuple[str, str], float]) -> Iterator[Measurement]:
    """Yield a row for each cache and precision that has a goal."""
    pair = task.pair
    is_native = has_native_bf16()
    precisions = tuple(
        dict.fromkeys(precision for _, precision in goals if precision != "bf16" or is_native)
    )
    seconds = _rounds(_loops(task, precisions), pair.repeats)
    per_image = statistics.median(seconds["naive"]) / (pair.updates * pair.batch_size)
    # of the views that the filling asks the teacher for, the share that falls on one image shown
    share = CACHED_VIEWS / pair.shown
    for (cache, precision), goal in goals.items():
        what = f"robust KD {pair.teacher} → {pair.student}, {precision}, "
        what += (
            "the script's loop against ours"
            if cache == "off"
            else "the teacher's outputs of 8 views cached"
        )
        if precision not in precisions:
            note = "this CPU has no bf16 arithmetic of its own"
            yield Measurement("3", what, None, None, None, "x", ">=", goal, note=note)
            continue
        least = _ratio(seconds["naive"], seconds[f"least {cache} {precision}"])
        networks = "the student" if cache == "views" else "both networks"
        limit = f"{least.median:.2f} x if {networks} were all: no images, loss or optimizer"
        ours = seconds[f"{cache} {precision}"]
        measured = alone = _ratio(seconds["naive"], ours)
        note = f"batches of {pair.batch_size}; the script takes {1e3 * per_image:.2f} ms an image"
        if cache == "views":
            filled = zip(ours, seconds[f"filling {precision}"], strict=True)
            measured = _ratio(
                seconds["naive"], [step + share * filling for step, filling in filled]
            )
            note = f"with the cache's filling for {pair.run}; {alone.median:.2f} x without it"
        if not task.is_real:
            note += "; images are generated"
        yield Measurement(
            "3", what, measured.median, measured.low, measured.high, "x", ">=", goal, limit, note
        )


def _min_max_row(n_vectors: int, goal: float, repeats: int) -> Measurement:
    """Return the row of the worst of n weighted losses and its gradient, one product against a loop."""
    generator = torch.Generator().manual_seed(n_vectors)
    student, teacher = (4 * torch.randn(128, len(CLASSES), generator=generator) for _ in range(2))
    vectors = torch.rand(n_vectors, len(CLASSES), generator=generator) + 0.5

    def gradient(loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        logits = student.clone().requires_grad_()
        value = loss(logits)
        value.backward()
        assert logits.grad is not None
        return value.detach(), logits.grad

    def ours() -> tuple[Tensor, Tensor]:
        def loss(logits: Tensor) -> Tensor:
            sample_losses = soft_cross_entropy(logits, teacher, 1.0)
            return worst_weighted_mean(sample_losses, teacher, vectors)

        return gradient(loss)

    def naive() -> tuple[Tensor, Tensor]:
        return gradient(lambda logits: naive_robust_loss(logits, teacher, vectors, 1.0))

    def shared() -> tuple[Tensor, Tensor]:
        return gradient(lambda logits: shared_robust_loss(logits, teacher, vectors, 1.0))

    for other in (naive(), shared()):
        assert all(torch.allclose(a, b, atol=TOLERANCE) for a, b in zip(ours(), other, strict=True))
    n_ours, n_loop = (
        200,
        max(1, 200 // n_vectors),
    )  # so that every timed call takes milliseconds at least

    def times(work: Callable[[], object], n: int) -> Callable[[], object]:
        return lambda: [work() for _ in range(n)]

    measured = ratio(times(naive, n_loop), times(ours, n_ours), repeats).over(n_loop / n_ours)
    careful = ratio(times(shared, n_loop), times(ours, n_ours), repeats).over(n_loop / n_ours)
    return Measurement(
        "3",
        f"worst of {n_vectors} weighted losses and its gradient, batch of 128: a loop against one product",
        measured.median,
        measured.low,
        measured.high,
        "x",
        ">=",
        goal,
        note=f"{careful.median:.1f} x a loop that computes the samples' losses once for all vectors",
    )


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 3."""
    lenet = make_task(LENET, images, work / "distillation")
    difference = largest_difference(lenet, n_updates=20, batch_size=LENET.batch_size)
    assert difference < TOLERANCE, f"the losses of both LeNet loops differ by {difference}"
    yield from _pair_rows(lenet, {("off", "float32"): 4.0, ("views", "float32"): 6.0})
    resnet = make_task(RESNET, images, work / "distillation")
    difference = largest_difference(resnet, n_updates=2, batch_size=8)
    assert difference < TOLERANCE, f"the losses of both ResNet loops differ by {difference}"
    goals = {
        ("off", "float32"): 1.2,
        ("views", "float32"): 1.9,
        ("off", "bf16"): 2.2,
        ("views", "bf16"): 3.4,
    }
    yield from _pair_rows(resnet, goals)
    yield _min_max_row(10, 5.0, repeats=7)
    yield _min_max_row(100, 60.0, repeats=7)
