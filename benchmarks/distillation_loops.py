"""The two distillation loops that are compared, and checks that they compute the same.

A usual script decodes its image files in every step, asks the teacher in every step, computes one
weighted loss per weight vector, and waits for the loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks import naive
from benchmarks.distillation_task import SGD, SIZE_PX, Task
from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.learning.augmentation import Normalize, take_views
from pu_kd_pipeline.learning.loop import fit, make_optimizer
from pu_kd_pipeline.learning.losses.distillation import (
    robust_kd,
    soft_cross_entropy,
    worst_weighted_mean,
)
from pu_kd_pipeline.learning.networks.vision import torchvision
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.teacher_cache import TeacherOutputs

CPU = torch.device("cpu")


# --- ours -----------------------------------------------------------------------------------------


def our_losses(task: Task, params: DistillationParams, student: nn.Module) -> Iterator[float]:
    """Yield the mean loss of every `record_every` updates.

    The loop of `training.distillation.distill`, without what comes before and after it.
    """
    rows = image_rows(task, params)
    normalize = normalize_of(task)
    teacher_outputs = TeacherOutputs(rows, task.teacher.network, normalize, params)

    def step(batch: Batch) -> dict[str, Tensor]:
        teacher_logits = teacher_outputs(batch)
        with autocast(params.compute, CPU):
            student_logits = student(batch.images).float()
        values = robust_kd(student_logits, teacher_logits, task.vectors, params.temperature)
        # The stage records it, too: it is part of the cost.
        student_classes = student_logits.argmax(dim=1)
        teacher_classes = teacher_logits.argmax(dim=1)
        is_same_class = student_classes == teacher_classes
        return {**values, "training_agreement": is_same_class.float().mean()}

    batches = augmented_batches(
        rows, normalize, params.augmentation, params.batch_size, params.seed, teacher_outputs.draw
    )
    settings = params.optimizer.model_dump(exclude={"schedule"})
    optimizer = make_optimizer(student, **settings)
    records = fit(
        step,
        batches,
        optimizer,
        n_updates=params.n_updates,
        record_every=params.record_every,
        schedule=params.optimizer.schedule,
    )
    for record in records:
        yield record["loss"]


def image_rows(task: Task, params: DistillationParams, n: int | None = None) -> ImageRows:
    """Return the first n images of the store; None: all."""
    positions = np.arange(n or len(task.store))
    return ImageRows([(task.store, positions)], params.compute)


def normalize_of(task: Task) -> Normalize:
    """Return the teacher's normalization."""
    return normalization(task.teacher, CPU)


def our_robust_loss(
    student_logits: Tensor, teacher_logits: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Return the largest of the weighted losses, by one product with all weight vectors."""
    sample_losses = temperature**2 * soft_cross_entropy(student_logits, teacher_logits, temperature)
    return worst_weighted_mean(sample_losses, teacher_logits, vectors)


# --- the script -----------------------------------------------------------------------------------


def naive_batches(task: Task) -> Iterator[Tensor]:
    """Yield batches without end; each image is decoded and transformed when it is needed."""
    spec = task.pair.spec
    views = task.pair.augmentation
    transform = naive.transform_of(spec, views.padding_px, views.horizontal_flip, resize=False)
    images = naive.image_folder(task.files, spec, transform)
    loader = DataLoader(
        images, batch_size=task.pair.batch_size, shuffle=True, num_workers=0, drop_last=True
    )
    # The method reads no labels; the folders of classes are what ImageFolder expects.
    while True:
        for batch, _ in loader:
            yield batch


def naive_robust_loss(
    student_logits: Tensor, teacher_logits: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Return the largest of the weighted losses, each computed separately."""
    losses = []
    for weights in vectors:
        loss = weighted_loss(student_logits, teacher_logits, weights, temperature)
        losses.append(loss)
    return torch.stack(losses).max()


def weighted_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Return the distillation loss, each sample weighted by the class that the teacher predicts."""
    sample_weights = weights[teacher_logits.argmax(dim=1)]
    sample_losses = _sample_losses(student_logits, teacher_logits, temperature)
    return (sample_weights * sample_losses).mean()


def shared_robust_loss(
    student_logits: Tensor, teacher_logits: Tensor, vectors: Tensor, temperature: float
) -> Tensor:
    """Return the same as `naive_robust_loss`, where all vectors share the samples' losses."""
    sample_losses = _sample_losses(student_logits, teacher_logits, temperature)
    classes = teacher_logits.argmax(dim=1)
    losses = []
    for weights in vectors:
        weighted_losses = weights[classes] * sample_losses
        losses.append(weighted_losses.mean())
    return torch.stack(losses).max()


def _sample_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    targets = functional.softmax(teacher_logits / temperature, dim=1)
    log_probabilities = functional.log_softmax(student_logits / temperature, dim=1)
    # Scaled by temperature**2, so that gradients keep their size (Hinton et al. 2015, sec. 2).
    cross_entropy = -(targets * log_probabilities).sum(dim=1)
    return cross_entropy * temperature**2


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
        student_logits = student(images)
        # Temperature 1, as in `Task.params`.
        loss = naive_robust_loss(student_logits, teacher_logits, task.vectors, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


# --- equal work on both sides ---------------------------------------------------------------------


def largest_difference(task: Task, n_updates: int, batch_size: int) -> float:
    """Return the largest difference between the losses of both loops on the same batches."""
    params = task.params(n_updates=n_updates, record_every=1, batch_size=batch_size)
    rows = image_rows(task, params)
    batches = augmented_batches(rows, normalize_of(task), params.augmentation, batch_size, seed=0)
    ours = list(our_losses(task, params, task.student()))
    images = (batch.images for batch in batches)
    theirs = naive_losses(task, images, task.student())
    # The naive loop never ends: it is asked for as many updates as ours made.
    differences = [abs(loss - next(theirs)) for loss in ours]
    return max(differences)


def one_view(task: Task, row: int, view: int) -> tuple[Tensor, Tensor]:
    """Return one view of an image twice: by the script's transforms, and by ours."""
    padding = task.pair.augmentation.padding_px
    flip = task.pair.augmentation.horizontal_flip
    # From the store, whose pixels are those of the files (the tests check it).
    pixels = torch.from_numpy(task.store.read(np.array([row])))
    views = take_views(pixels, torch.tensor([view]), padding=padding, flip=flip)
    ours = normalize_of(task)(views)[0]

    # Views are numbered by the crop; with flips, each crop has two, the second one flipped.
    crop = view
    is_flipped = False
    if flip:
        crop = view // 2
        is_flipped = view % 2 == 1
    n_offsets = 2 * padding + 1  # of a crop in each direction
    top, left = divmod(crop, n_offsets)
    transforms = torchvision.transforms.functional
    pixels_last = pixels[0].permute(1, 2, 0).numpy().squeeze()
    image = Image.fromarray(np.ascontiguousarray(pixels_last))
    padded = transforms.pad(image, padding)
    image = transforms.crop(padded, top, left, SIZE_PX, SIZE_PX)
    if is_flipped:
        image = transforms.hflip(image)
    spec = task.pair.spec
    tensor = transforms.to_tensor(image)
    theirs = transforms.normalize(tensor, spec.mean, spec.std)
    return theirs, ours
