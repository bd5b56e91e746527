"""Distilling a student on the images of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore, rows_of
from pu_kd_pipeline.learning.loop import Record, TrainingState, fit, make_optimizer, seeded
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.storage.manifest import check_manifest, check_weights, table_digest
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.checkpoints import decided_by, keeping
from pu_kd_pipeline.training.monitor import BestStudent, StudentMonitor
from pu_kd_pipeline.training.objectives.base import ObjectiveContext
from pu_kd_pipeline.training.objectives.factory import OBJECTIVES, make_objective
from pu_kd_pipeline.training.teacher_cache import TeacherOutputs


def distill(
    manifest: pd.DataFrame,
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher: Model,
    weight_vectors: pd.DataFrame,
    params: DistillationParams,
    name: str,
    start: Mapping[str, Tensor] | None = None,
    watched: ImageStore | None = None,
) -> tuple[Model, pd.DataFrame]:
    """Return the student and its history, one row every `record_every` updates.

    Teacher (eval mode) and student see the same random views; there are no hard labels, except where
    `attention.label_weight` asks for them. A share of the manifest stays out of training: the agreement on it with the
    teacher is watched, and picks the student where `keep` is `best`.

    Args:
        manifest: rows of `choose_subset`; by its column `sampling_probability`, if it has one, images are drawn.
        labeled_images: where the manifest's labeled images are.
        pool_images: where its pool images are.
        teacher: the network to compress.
        weight_vectors: the set W, one row a vector; read by the objective `robust_kd` alone.
        params: objective, budget of updates, optimizer.
        name: of the stage, for progress and tracking.
        start: the state to train on from; None: freshly initialized.
        watched: labeled images that nobody trains on; each record then has `watched_accuracy`, of clean views.

    Raises:
        InputError: manifest, weights and images do not fit together, the objective cannot be used with these networks,
            the loss is not finite, or memory runs out.
    """
    check_manifest(manifest)
    check_weights(weight_vectors, manifest, teacher.fingerprint())
    device = prepare_device(params.compute)
    stores = {"labeled": labeled_images, "pool": pool_images}
    rows, held_out_rows = _split(manifest, params)
    origin = {
        "distilled_by": params.objective,
        "rule": manifest.attrs.get("rule"),
        "n_updates": params.n_updates,
        "teacher": teacher.fingerprint(),
    }

    def about() -> dict[str, Any]:
        facts = {origin: store.fingerprint for origin, store in stores.items()}
        facts |= {"manifest": table_digest(manifest), "weights": table_digest(weight_vectors)}
        return decided_by(
            params, device, teacher=origin["teacher"], is_watched=watched is not None, **facts
        )

    with keeping(name, about) as keeper, seeded(params.seed), ExitStack() as stack:
        training, held_out = (
            _images(part, stores, params.compute) for part in (rows, held_out_rows)
        )
        model = new_student(teacher, params.student_architecture, params.student_options, origin)
        if start is not None:
            model.network.load_state_dict(start)
        student, teacher_network = (
            model.network.to(device).train(),
            teacher.network.to(device).eval(),
        )
        normalize = normalization(teacher, device)
        teacher_outputs = TeacherOutputs(
            training,
            teacher_network,
            normalize,
            _cache_params(params),
            partial(keeper.remembered, "teacher_logits"),
        )
        vectors = torch.tensor(weight_vectors.to_numpy(), dtype=torch.float32, device=device)
        labels = torch.from_numpy(_labels(rows, stores)).to(device)
        objective = make_objective(
            ObjectiveContext(
                model, teacher, teacher_outputs, vectors, labels, params, device, stack
            )
        )

        def step(batch: Batch) -> dict[str, Tensor]:
            student_logits, teacher_logits, values = objective(batch)
            agreement = (
                (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
            )
            return {**values, "training_agreement": agreement}

        chosen = BestStudent(student, keeps_best=params.keep == "best")
        eye = StudentMonitor(normalize, params.compute)
        sights = {}
        if len(held_out):
            sights["held_out_agreement"] = (held_out, eye.classes(teacher_network, held_out))
        if watched is not None:
            truth = torch.from_numpy(watched.index["label"].to_numpy(dtype=np.int64)).to(device)
            images = ImageRows([(watched, np.arange(len(watched)))], params.compute)
            sights["watched_accuracy"] = (images, truth)

        def examine(record: Record) -> Record:
            record |= {name: eye.share(student, *sight) for name, sight in sights.items()}
            chosen.look(record)
            return record

        trained = nn.ModuleList([student, objective.trainable])
        optimizer = make_optimizer(trained, **params.optimizer.model_dump(exclude={"schedule"}))
        state = TrainingState(
            trained=trained, optimizer=optimizer, best=chosen, **objective.checkpointed
        )
        keeper.restore(state)
        batches = augmented_batches(
            training,
            normalize,
            params.augmentation,
            params.batch_size,
            params.seed,
            teacher_outputs.draw,
            probabilities=_probabilities(rows),
            n_passed=state.update,
        )
        records = fit(
            step,
            batches,
            optimizer,
            n_updates=params.n_updates,
            record_every=params.record_every,
            schedule=params.optimizer.schedule,
            state=state,
            keeper=keeper,
            examine=examine,
        )
        n_records = -(-params.n_updates // params.record_every)
        history = pd.DataFrame(list(watch(records, name=name, total=n_records)))
        chosen.restore()
        facts = objective.finish(history)
    history["is_kept"] = history["update"] == (
        chosen.update if chosen.keeps_best else history["update"].max()
    )
    card = model.card.model_copy(update={"origin": {**model.card.origin, **facts}})
    return Model(student.cpu().eval(), card), history


def distill_from_pool(
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    teacher: Model,
    params: DistillationParams,
    name: str,
) -> tuple[Model, pd.DataFrame]:
    """Return a student of pool images alone, and its history; arguments as for `distill`.

    Raises:
        InputError: the objective weighs classes, which are estimated with labeled images.
    """
    _check_objective(params, name)
    return distill(
        manifest, pool_images, pool_images, teacher, _even_weights(teacher), params, name
    )


def distill_original(
    images: ImageStore, teacher: Model, params: DistillationParams, name: str
) -> tuple[Model, pd.DataFrame]:
    """Return a student of the teacher's own training images, all of them, and its history.

    Raises:
        InputError: there are none, or the objective weighs classes, which are even there.
    """
    if not len(images):
        raise InputError(
            f"{name}: there are no teacher_training_images: give data_ingestion.teacher_training a source"
        )
    _check_objective(params, name)
    manifest = images.index[["id"]].assign(origin="labeled")
    return distill(manifest, images, images, teacher, _even_weights(teacher), params, name)


def _check_objective(params: DistillationParams, name: str) -> None:
    if OBJECTIVES[params.objective].needs_class_weights:
        raise InputError(
            f"{name}.objective: {params.objective!r} belongs to labeled and selected images; choose another one"
        )


def _cache_params(params: DistillationParams) -> DistillationParams:
    """Return the parameters with `teacher_cache` off where the objective looks inside the teacher."""
    if OBJECTIVES[params.objective].reads_teacher_logits_only:
        return params
    return params.model_copy(update={"teacher_cache": "off"})


def _even_weights(teacher: Model) -> pd.DataFrame:
    return pd.DataFrame(np.ones((1, teacher.n_classes)), columns=list(teacher.card.classes))


def _split(manifest: pd.DataFrame, params: DistillationParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on and those kept out, drawn at random; the labeled ones of each come first."""
    is_held_out = np.zeros(len(manifest), dtype=bool)
    order = np.random.default_rng(params.seed).permutation(len(manifest))
    is_held_out[order[: int(params.held_out_share * len(manifest))]] = True
    labeled_first = manifest.assign(is_held_out=is_held_out).sort_values("origin", kind="stable")
    return labeled_first[~labeled_first["is_held_out"]], labeled_first[labeled_first["is_held_out"]]


def _images(
    rows: pd.DataFrame, stores: Mapping[str, ImageStore], compute: ComputeParams
) -> ImageRows:
    parts = [
        (store, rows_of(store, rows["id"][rows["origin"] == origin].to_numpy(), "manifest"))
        for origin, store in stores.items()
    ]
    return ImageRows(parts, compute)


def _labels(rows: pd.DataFrame, stores: Mapping[str, ImageStore]) -> np.ndarray:
    """Return (N,) int64 classes of the rows, -1 for pool images, whose labels nobody is to know, and where unknown."""
    labels = np.full(len(rows), -1, dtype=np.int64)
    index = stores["labeled"].index
    known = pd.Series(index["label"].to_numpy(), index=index["id"]).reindex(
        rows["id"][rows["origin"] == "labeled"]
    )
    labels[(rows["origin"] == "labeled").to_numpy()] = known.fillna(-1).to_numpy(dtype=np.int64)
    return labels


def _probabilities(rows: pd.DataFrame) -> Tensor | None:
    if "sampling_probability" not in rows:
        return None
    if rows["sampling_probability"].isna().any():
        raise InputError(
            "manifest: some images have no sampling_probability: give it to all of them, or to none"
        )
    return torch.from_numpy(rows["sampling_probability"].to_numpy(dtype=np.float64, copy=True))
