"""Distilling a student on the images of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import Stateful, TrainingState, fit, make_optimizer, seeded
from pu_kd_pipeline.learning.mixing import Mixing
from pu_kd_pipeline.learning.workers import Workers
from pu_kd_pipeline.models.factory import new_student
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.progress import watch
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.manifest import (
    CLASS_WEIGHTS,
    ROLLING,
    WEIGHTING,
    check_manifest,
    check_weights,
    sampling_options,
    table_digest,
)
from pu_kd_pipeline.storage.yardstick import (
    check_yardstick,
    teacher_logits,
    yardstick_facts,
)
from pu_kd_pipeline.training.batches import Batch, Draw, augmented_batches
from pu_kd_pipeline.training.checkpoints import (
    Checkpoints,
    DisabledCheckpoints,
    checkpointing,
    training_identity,
)
from pu_kd_pipeline.training.final_phase import (
    STATISTICS_IMAGES,
    AveragedStudent,
    FinalPhase,
    final_phase_of,
    weight_average,
)
from pu_kd_pipeline.training.manifest_images import (
    labeled_first,
    manifest_labels,
    manifest_parts,
)
from pu_kd_pipeline.training.monitor import (
    BestStudent,
    LabeledImages,
    StudentMonitor,
    YardstickImages,
)
from pu_kd_pipeline.training.objectives.base import Objective, ObjectiveContext
from pu_kd_pipeline.training.objectives.factory import (
    OBJECTIVES,
    check_without_class_weights,
    make_objective,
)
from pu_kd_pipeline.training.recipes import SAMPLING, TRAINING, YARDSTICK, training_recipe
from pu_kd_pipeline.training.rolling import RollingDraws, rolling_batches
from pu_kd_pipeline.training.sampling import Sampling, Strata, manifest_sampling
from pu_kd_pipeline.training.shared_logits import SharedTeacherLogits
from pu_kd_pipeline.training.teacher_cache import KnownImages, TeacherOutputs
from pu_kd_pipeline.training.weighting import (
    NO_WEIGHTING,
    Weighting,
    balanced_rows,
    weighting_of,
)
from pu_kd_pipeline.training.worker_group import joint_training, shared_batch


@dataclass(frozen=True)
class _Task:
    """The arguments of `distill`, checked, how weights are used, and the device."""

    manifest: pd.DataFrame
    stores: Mapping[str, ImageStore]
    teacher: Model
    weight_vectors: pd.DataFrame
    weighting: Weighting
    params: DistillationParams
    name: str
    start: Mapping[str, Tensor] | None
    watched: ImageStore | None
    yardstick: Yardstick | None
    shared_logits: SharedTeacherLogits | None
    device: torch.device
    workers: Workers


@dataclass(frozen=True)
class _Batches:
    """The batches of one training.

    Attributes:
        images: the training images.
        sampling: how they are drawn into batches.
        rolling: measures how pool images are drawn, for the rule of that name.
        final_phase: the images of the last updates; None: they are the same.
        normalize: of the networks' images.
        draw: chooses views.
        params: the block.
        workers: that train together; the batches are this one's parts.
    """

    images: ImageRows
    sampling: Sampling
    rolling: RollingDraws | None
    final_phase: FinalPhase | None
    normalize: Normalize
    draw: Draw
    params: DistillationParams
    workers: Workers

    def after(self, n_updates: int) -> Iterator[Batch]:
        """Return the batches of the updates after the first ones."""
        strata = self.sampling.strata
        if self.rolling is None or strata is None:
            return self._made(strata, n_updates)
        return rolling_batches(self.rolling, strata, self._made, self.params.n_updates, n_updates)

    def like_those_of(self, n_updates: int) -> Iterator[Tensor]:
        """Yield the images of batches like those that an update learns from: the last ones."""
        n_recent = -(-STATISTICS_IMAGES // self.params.batch_size)
        first = max(0, n_updates - n_recent)
        phase = self.final_phase
        if phase is not None and n_updates > phase.n_before:
            first = max(first, phase.n_before)
        strata = self.sampling.strata
        if self.rolling is not None and strata is not None:
            # Nothing is measured: the present probabilities are those of the update.
            strata = self.rolling.present(strata)
        for batch in self._made(strata, first):
            yield batch.images

    def _made(self, strata: Strata | None, n_passed: int) -> Iterator[Batch]:
        params = self.params
        return augmented_batches(
            self.images,
            self.normalize,
            params.augmentation,
            params.batch_size,
            params.seed,
            self.draw,
            probabilities=self.sampling.probabilities,
            n_passed=n_passed,
            mixing=_mixing(params),
            final_phase=self.final_phase,
            strata=strata,
            workers=self.workers,
        )


@dataclass(frozen=True)
class _Setup:
    """The networks and images of one training.

    Attributes:
        model: the student, its network on the device.
        batches: the training images, batch by batch.
        teacher_outputs: the teacher's logits for the training images.
        objective: the loss, and what else it trains.
        best: the student's best weights so far.
        monitor: measures the student at every record.
        averaged: the student with averaged weights; None: they are not averaged.
    """

    model: Model
    batches: _Batches
    teacher_outputs: TeacherOutputs
    objective: Objective
    best: BestStudent
    monitor: StudentMonitor
    averaged: AveragedStudent | None


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
    yardstick: Yardstick | None = None,
    shared_logits: SharedTeacherLogits | None = None,
) -> tuple[Model, pd.DataFrame]:
    """Return the student and its history, one row every `record_every` updates.

    Teacher (eval mode) and student see the same random views; there are no hard labels, except
    where `attention.label_weight` asks for them. The agreement with the teacher on the yardstick
    and the KL divergence from it are recorded (`yardstick_agreement`, `yardstick_kl`); the
    divergence picks the student where `keep` is `best`.

    Args:
        manifest: rows of `choose_subset`; `sampling.manifest_sampling` describes how its images
            are drawn.
        labeled_images: the store of the manifest's labeled images.
        pool_images: the store of its pool images.
        teacher: the network to compress.
        weight_vectors: the set W, one vector per row; read by objectives that need class weights.
        params: objective, number of updates, optimizer.
        name: of the stage, for progress, checkpoints and messages.
        start: the student's initial state; None: freshly initialized.
        watched: labeled images that are never trained on; each record then has the accuracy on
            clean views of them, `watched_accuracy`.
        yardstick: images that are not in the manifest, and this teacher's logits for them; None or
            empty: the student is not measured.
        shared_logits: the teacher's logits that this training shares with others, see
            `teacher_cache.TeacherOutputs`; None: it shares none.

    Raises:
        InputError: manifest, weights, yardstick and images do not fit together, the objective
            cannot be used with these networks, the loss is not finite, or memory runs out.
    """
    check_manifest(manifest)
    check_weights(weight_vectors, manifest, teacher.fingerprint())
    yardstick = _checked_yardstick(yardstick, teacher, params, name)
    task = _Task(
        manifest=manifest,
        stores={"labeled": labeled_images, "pool": pool_images},
        teacher=teacher,
        weight_vectors=weight_vectors,
        weighting=_weighting(weight_vectors, params),
        params=params,
        name=name,
        start=start,
        watched=watched,
        yardstick=yardstick,
        shared_logits=shared_logits,
        device=prepare_device(params.compute),
        workers=shared_batch(params.batch_size, f"{name}.batch_size"),
    )
    identity = partial(_identity, task)
    with checkpointing(name, identity) as checkpointer, seeded(params.seed), ExitStack() as cleanup:
        setup = _prepare(task, checkpointer, cleanup)
        history = _train(task, setup, checkpointer)
        # The best weights are those of the network in training: they are restored before the
        # objective restores the student's own architecture.
        setup.best.restore()
        if setup.averaged is not None and not setup.best.keeps_best:
            setup.averaged.apply()
        card_entries = setup.objective.finish(history)
        if setup.teacher_outputs.note is not None:
            card_entries["teacher_cache"] = setup.teacher_outputs.note
        final_phase = setup.batches.final_phase
        if final_phase is not None:
            card_entries["n_final_phase_images"] = len(final_phase.rows)
        if task.weighting is not NO_WEIGHTING:
            card_entries[CLASS_WEIGHTS] = task.weighting.facts

    # Readers find the update whose weights were kept in the history itself.
    kept_update = history["update"].max()
    if setup.best.keeps_best:
        kept_update = setup.best.update
    history["is_kept"] = history["update"] == kept_update
    model = setup.model
    origin = {**model.card.origin, **card_entries, SAMPLING: setup.batches.sampling.facts}
    card = model.card.model_copy(update={"origin": origin})
    return Model(model.network.cpu().eval(), card), history


def _prepare(
    task: _Task, checkpointer: Checkpoints | DisabledCheckpoints, cleanup: ExitStack
) -> _Setup:
    """Read the images and make the student, the teacher's outputs and the objective."""
    params = task.params
    rows = labeled_first(task.manifest)
    # First, because it may be refused.
    final_phase = final_phase_of(rows, params, task.name)
    parts = manifest_parts(rows, task.stores)
    if task.yardstick is not None:
        for store, store_rows in parts:
            task.yardstick.check_apart(store, store_rows)
    images = ImageRows(parts, params.compute)
    stores = [*task.stores.values()]
    if task.watched is not None:
        stores.append(task.watched)
    if task.yardstick is not None:
        stores += [store for store, _, _ in task.yardstick.parts]
    normalize = normalization(task.teacher, task.device, *stores)

    model = _new_student(task)
    student = model.network.to(task.device).train()
    joint = joint_training(student, task.teacher.image_shape, task.workers, task.name)
    cleanup.enter_context(joint)
    teacher_network = task.teacher.network.to(task.device).eval()
    teacher_outputs = TeacherOutputs(
        images,
        teacher_network,
        normalize,
        cache_params(params),
        partial(checkpointer.cached, "teacher_logits"),
        _known_images(task, parts),
        task.workers,
    )
    objective = _objective(task, rows, model, teacher_outputs, cleanup)

    best = BestStudent(student, keeps_best=params.keep == "best")
    eval_sets = _eval_sets(task)
    drawn_rows = rows
    if task.weighting.max_factor is not None:
        drawn_rows = balanced_rows(rows, task.manifest.attrs, task.weighting.max_factor)
    sampling = manifest_sampling(drawn_rows, task.manifest.attrs, params)
    rolling = None
    if ROLLING in sampling.facts:
        n_labeled = int((rows["origin"] == "labeled").sum())
        networks = (student, teacher_network)
        options = sampling.facts[ROLLING]
        rolling = RollingDraws(
            options, images, n_labeled, networks, normalize, params, task.workers
        )
    batches = _Batches(
        images=images,
        sampling=sampling,
        rolling=rolling,
        final_phase=final_phase,
        normalize=normalize,
        draw=teacher_outputs.draw,
        params=params,
        workers=task.workers,
    )
    averaged = None
    average = weight_average(student, params)
    if average is not None:
        averaged = AveragedStudent(student, average, batches.like_those_of, params)
    monitor = StudentMonitor(
        student, eval_sets, best, normalize, params.compute, averaged, task.workers
    )
    return _Setup(
        model=model,
        batches=batches,
        teacher_outputs=teacher_outputs,
        objective=objective,
        best=best,
        monitor=monitor,
        averaged=averaged,
    )


def _train(
    task: _Task, setup: _Setup, checkpointer: Checkpoints | DisabledCheckpoints
) -> pd.DataFrame:
    """Train the student, or resume its training; return the history."""
    params = task.params
    objective = setup.objective
    trained = nn.ModuleList([setup.model.network, objective.trainable])
    optimizer = make_optimizer(trained, **params.optimizer.model_dump(exclude={"schedule"}))
    # The names of the parts are the keys of a checkpoint.
    parts: dict[str, Stateful] = dict(objective.checkpointed)
    after_update = None
    if setup.averaged is not None:
        parts["average"] = setup.averaged.average
        after_update = setup.averaged.average.after_update
    if setup.batches.rolling is not None:
        parts[ROLLING] = setup.batches.rolling
    state = TrainingState(trained=trained, optimizer=optimizer, best=setup.best, **parts)
    checkpointer.restore(state)

    records = fit(
        partial(_step, objective),
        # Made after the state is restored: batches of updates that are done are skipped.
        setup.batches.after(state.update),
        optimizer,
        n_updates=params.n_updates,
        record_every=params.record_every,
        schedule=params.optimizer.schedule,
        state=state,
        checkpointer=checkpointer,
        extend_record=setup.monitor,
        after_update=after_update,
        workers=task.workers,
    )
    # Rounded up: the last record may cover fewer updates.
    n_records = -(-params.n_updates // params.record_every)
    return pd.DataFrame(list(watch(records, name=task.name, total=n_records)))


def distill_from_pool(
    manifest: pd.DataFrame,
    pool_images: ImageStore,
    teacher: Model,
    params: DistillationParams,
    name: str,
    yardstick: Yardstick | None = None,
) -> tuple[Model, pd.DataFrame]:
    """Return a student of pool images alone, and its history; arguments as for `distill`.

    Raises:
        InputError: the objective needs class weights, which are estimated with labeled images.
    """
    check_without_class_weights(params, name)
    weights = _even_weights(teacher)
    return distill(
        manifest, pool_images, pool_images, teacher, weights, params, name, yardstick=yardstick
    )


def distill_original(
    images: ImageStore,
    teacher: Model,
    params: DistillationParams,
    name: str,
    yardstick: Yardstick | None = None,
) -> tuple[Model, pd.DataFrame]:
    """Return a student of the teacher's own training images, and its history.

    It learns from all of them but the yardstick's.

    Raises:
        InputError: there are none, or the objective needs class weights, which are even there.
    """
    if not len(images):
        raise InputError(
            f"{name}: there are no teacher_training_images: give data_ingestion.teacher_training "
            "a source"
        )
    check_without_class_weights(params, name)
    # Their labels may be used: they are the ones that the teacher was trained with.
    manifest = images.index[["id"]].assign(origin="labeled")
    if yardstick is not None:
        is_measured = images.index["sha256"].isin(yardstick.table["sha256"])
        manifest = manifest[~is_measured]
    weights = _even_weights(teacher)
    return distill(manifest, images, images, teacher, weights, params, name, yardstick=yardstick)


def _even_weights(teacher: Model) -> pd.DataFrame:
    # The objectives that are allowed here do not read them; `distill` checks their columns.
    weights = np.ones((1, teacher.n_classes))
    return pd.DataFrame(weights, columns=list(teacher.card.classes))


# --- steps of `distill` ---


def _checked_yardstick(
    yardstick: Yardstick | None, teacher: Model, params: DistillationParams, name: str
) -> Yardstick | None:
    """Return the yardstick, or None for an empty one.

    Raises:
        InputError: it is of another teacher, or `keep: best` needs one.
    """
    if yardstick is None or not len(yardstick):
        if params.keep == "best":
            raise InputError(
                f"{name}.keep: 'best' is chosen on the yardstick, which holds no image here: set "
                "it to last, raise yardstick.n_images or yardstick.uniform_share, or give "
                "data_ingestion.pool more images"
            )
        return None
    check_yardstick(yardstick.table, teacher.fingerprint(), teacher.n_classes)
    return yardstick


def _yardstick_facts(task: _Task) -> dict[str, Any] | None:
    """Return which images the student is measured on; None if on none."""
    if task.yardstick is None:
        return None
    return yardstick_facts(task.yardstick.table)


def _yardstick_fingerprint(task: _Task) -> str | None:
    if task.yardstick is None:
        return None
    return task.yardstick.fingerprint


def _identity(task: _Task) -> dict[str, Any]:
    """Return what the student depends on; a checkpoint of another identity is not used."""
    # The keys are shown when a checkpoint is refused, and are compared with those of older files.
    facts = {origin: store.fingerprint for origin, store in task.stores.items()}
    return training_identity(
        task.params,
        task.device,
        teacher=task.teacher.fingerprint(),
        is_watched=task.watched is not None,
        # With the teacher's logits, which decide the best record.
        yardstick=None if task.yardstick is None else table_digest(task.yardstick.table),
        **facts,
        manifest=table_digest(task.manifest),
        # The table does not hold them.
        **sampling_options(task.manifest),
        weights=table_digest(task.weight_vectors),
        **_weighting_identity(task),
        # `load_model` reaches the code of the teacher's network.
        code=maker_fingerprint(distill, load_model),
    )


def _weighting(weight_vectors: pd.DataFrame, params: DistillationParams) -> Weighting:
    if not OBJECTIVES[params.objective].needs_class_weights:
        return NO_WEIGHTING
    return weighting_of(weight_vectors)


def _weighting_identity(task: _Task) -> dict[str, Any]:
    """Return what the digest of the weight vectors does not hold."""
    weighting = task.weighting
    if weighting is NO_WEIGHTING:
        return {}
    identity: dict[str, Any] = {"weighting": weighting.mode, "max_factor": weighting.max_factor}
    if weighting.logit_shift is not None:
        # A list, as the file of a checkpoint gives it back.
        identity["logit_shift"] = list(weighting.logit_shift)
    return identity


def _new_student(task: _Task) -> Model:
    """Return the untrained student, or the one that `start` describes."""
    params = task.params
    origin = {
        "distilled_by": params.objective,
        "rule": task.manifest.attrs.get("rule"),
        "n_updates": params.n_updates,
        "teacher": task.teacher.fingerprint(),
        YARDSTICK: _yardstick_facts(task),
        TRAINING: _recipe(task),
    }
    model = new_student(task.teacher, params.student_architecture, params.student_options, origin)
    if task.start is not None:
        model.network.load_state_dict(task.start)
    return model


def _recipe(task: _Task) -> dict[str, Any]:
    """Return how the student is trained, for its card."""
    weight_facts = None
    if task.weighting is not NO_WEIGHTING:
        # Vectors of a caller, or of an earlier version, do not say how they were made.
        weight_facts = task.weight_vectors.attrs.get(WEIGHTING, {})
    facts = {f"{origin}_images": store.fingerprint for origin, store in task.stores.items()}
    return training_recipe(
        task.manifest,
        task.params,
        weight_facts,
        task.start,
        **facts,
        device=task.device.type,
        yardstick=_yardstick_fingerprint(task),
        code=maker_fingerprint(distill, load_model),
    )


def _mixing(params: DistillationParams) -> Mixing | None:
    if params.mixing == "none":
        return None
    return Mixing(params.mixing, params.mixing_alpha, params.mixing_share, params.seed)


def cache_params(params: DistillationParams) -> DistillationParams:
    """Return the parameters, with `teacher_cache` off if the objective looks inside the teacher."""
    if OBJECTIVES[params.objective].reads_teacher_logits_only:
        return params
    return params.model_copy(update={"teacher_cache": "off"})


def _known_images(
    task: _Task, parts: Sequence[tuple[ImageStore, np.ndarray]]
) -> KnownImages | None:
    """Return which images the parts of a manifest are, if other trainings share their logits."""
    if task.shared_logits is None:
        return None
    fingerprints = [store.index["sha256"].iloc[rows] for store, rows in parts]
    return KnownImages(
        task.shared_logits, task.teacher.fingerprint(), pd.concat(fingerprints).tolist()
    )


def _objective(
    task: _Task,
    rows: pd.DataFrame,
    student: Model,
    teacher_outputs: TeacherOutputs,
    cleanup: ExitStack,
) -> Objective:
    vectors = torch.tensor(task.weight_vectors.to_numpy(), dtype=torch.float32, device=task.device)
    labels = torch.from_numpy(manifest_labels(rows, task.stores["labeled"])).to(task.device)
    # Copied: pandas may return an array that cannot be written, which torch warns of.
    is_labeled = (rows["origin"] == "labeled").to_numpy(copy=True)
    context = ObjectiveContext(
        student=student,
        teacher=task.teacher,
        teacher_logits=teacher_outputs,
        weight_vectors=vectors,
        weighting=task.weighting,
        is_labeled=torch.from_numpy(is_labeled).to(task.device),
        labels=labels,
        params=task.params,
        device=task.device,
        cleanup=cleanup,
        workers=task.workers,
    )
    return make_objective(context)


def _eval_sets(task: _Task) -> list[LabeledImages | YardstickImages]:
    """Return the images that the student is measured on."""
    compute = task.params.compute
    eval_sets: list[LabeledImages | YardstickImages] = []
    if task.yardstick is not None:
        yardstick_parts = task.yardstick.parts
        measured = ImageRows([(store, rows) for store, rows, _ in yardstick_parts], compute)
        # In the order of the images: one part after the other.
        places = np.concatenate([places for _, _, places in yardstick_parts])
        logits = torch.from_numpy(teacher_logits(task.yardstick.table)[places])
        eval_sets.append(YardstickImages(measured, logits.to(task.device)))

    store = task.watched
    if store is not None:
        rows = np.arange(len(store))
        images = ImageRows([(store, rows)], compute)
        truth = store.index["label"].to_numpy(dtype=np.int64)
        labels = torch.from_numpy(truth).to(task.device)
        eval_sets.append(LabeledImages(images, labels))
    return eval_sets


def _step(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    student_logits, teacher_logits, values = objective(batch)
    student_classes = student_logits.argmax(dim=1)
    teacher_classes = teacher_logits.argmax(dim=1)
    agreement = (student_classes == teacher_classes).float().mean()
    return {**values, "training_agreement": agreement}
