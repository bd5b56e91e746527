"""Where the students of FitNet and FSKD start from: the state in which plain distillation takes them over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, prepare_device
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.few_samples import (
    Pair,
    align,
    hint_adapter,
    hint_loss,
    outputs_of,
    prune_into,
)
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.training.batches import augmented_batches
from pu_kd_pipeline.training.checkpoints import told

State = dict[str, Tensor]


def fitnet_start(
    teacher: Model, images: ImageStore, params: DistillationParams, n_updates: int
) -> State:
    """Return a student whose middle layer was trained to give the teacher's middle layer through a 1x1 convolution.

    Hint and guided layer are the middle taps of the two networks (Romero et al. 2015, sec. 2.2: the middle layers).

    Args:
        teacher: the network to compress.
        images: the labeled images.
        params: student, optimizer and batches.
        n_updates: updates that the hints get.
    """
    device = prepare_device(params.compute)
    with told("hints"), seeded(params.seed):
        model = _new_student(teacher, params)
        guided, hint = _middle_tap(model), _middle_tap(teacher)
        student, network = model.network.to(device).train(), teacher.network.to(device).eval()
        rows = ImageRows([(images, np.arange(len(images)))], params.compute)
        batches = augmented_batches(
            rows,
            normalization(teacher, device),
            params.augmentation,
            params.batch_size,
            params.seed,
        )
        with outputs_of(student, guided) as mine, outputs_of(network, hint) as theirs:

            def maps(views: Tensor) -> tuple[Tensor, Tensor]:
                mine.clear()
                theirs.clear()
                with autocast(params.compute, device):
                    with torch.no_grad():
                        network(views)
                    student(views)
                return mine[0], theirs[0]

            adapter = hint_adapter(*maps(next(batches).images)).to(device)
            trained = nn.ModuleList([student, adapter])
            records: Iterator[dict[str, float]] = fit(
                lambda batch: {"loss": hint_loss(*maps(batch.images), adapter)},
                batches,
                make_optimizer(trained, **params.optimizer.model_dump(exclude={"schedule"})),
                n_updates=n_updates,
                record_every=params.record_every,
                schedule=params.optimizer.schedule,
            )
            for _ in watch(records, name="hints", total=-(-n_updates // params.record_every)):
                pass
    return student.cpu().state_dict()


def fskd_start(teacher: Model, images: ImageStore, params: DistillationParams) -> State:
    """Return the teacher pruned to the student's widths and aligned, layer by layer, on the labeled images."""
    device = prepare_device(params.compute)
    student, pairs = _pruned(teacher, params)
    normalize = normalization(teacher, device)
    views = normalize(torch.from_numpy(images.read(np.arange(len(images)))).to(device))
    align(student.to(device), pairs, teacher.network.to(device).eval(), views)
    return student.cpu().state_dict()


def check_fskd(teacher: Model, params: DistillationParams) -> None:
    """Raise a ValueError where the student cannot be had by pruning the teacher."""
    _pruned(teacher, params)


def _pruned(teacher: Model, params: DistillationParams) -> tuple[nn.Module, list[Pair]]:
    student = _new_student(teacher, params).network
    return student, prune_into(student, teacher.network.cpu(), teacher.image_shape)


def _new_student(teacher: Model, params: DistillationParams) -> Model:
    return new_student(teacher, params.student_architecture, params.student_options, {})


def _middle_tap(model: Model) -> str:
    taps = model.extractor().taps
    return taps[len(taps) // 2]
