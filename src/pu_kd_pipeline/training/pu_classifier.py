"""Training the PU classifier: its head on features, or end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pu_kd_pipeline.devices import autocast, channels_last, prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.reading import feature_tensors
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.batches import ImageRows, map_images, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import Checkpointer, ExtendRecord, Record, Step
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead, make_head
from pu_kd_pipeline.learning.pu_training import cvir_step, fit_scores, pu_step
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.models.cards import PUClassifierCard
from pu_kd_pipeline.models.model import Model, PUClassifier, load_model
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.batches import draw_numbers, views_of
from pu_kd_pipeline.training.held_out_folds import PUSetup, train_with_held_out_folds
from pu_kd_pipeline.training.pu_steps import new_head, score_training, unlabeled_rows
from pu_kd_pipeline.training.worker_group import current_workers, joint_training, shared_batch

# Images of the pool whose descriptors standardize the inputs of a head that is trained end to end.
_STATISTICS_SAMPLE = 4096


def train_head(
    labeled: ShardedTable,
    pool: ShardedTable,
    teacher: Model,
    class_prior: float,
    params: PUTrainingParams,
) -> tuple[PUClassifier, pd.DataFrame, pd.DataFrame]:
    """Return a classifier on cached features, its history, and the held-out ranks.

    Args:
        labeled: features of the positives.
        pool: features of the pool.
        teacher: the network that the features are from.
        class_prior: share of positives in the pool.
        params: the block `pu_training`.

    Raises:
        InputError: the features are another teacher's.
    """
    # Features of another teacher have the same shape, and would be trained on without an error.
    teacher_fingerprint = teacher.fingerprint()
    check_teacher(labeled, teacher_fingerprint, "labeled_features")
    check_teacher(pool, teacher_fingerprint, "pool_features")
    device = prepare_device(params.compute)
    ids, positive = feature_tensors(labeled, params.features, device)
    _, unlabeled = feature_tensors(pool, params.features, device, unlabeled_rows(len(pool), params))
    fingerprints = {
        "labeled": labeled.fingerprint,
        "pool": pool.fingerprint,
        "teacher": teacher_fingerprint,
        "code": maker_fingerprint(train_head),
    }
    setup = PUSetup(class_prior, params, device, fingerprints)

    trainer = _HeadTrainer(positive, unlabeled, setup)
    result = train_with_held_out_folds(trainer, ids, setup)
    head = result.module
    card = _card(teacher, class_prior, params, descriptor_size=head.descriptor_size)
    return PUClassifier(head.cpu().eval(), card), result.history, result.ranks


def train_end_to_end(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher: Model,
    class_prior: float,
    params: PUTrainingParams,
) -> tuple[PUClassifier, pd.DataFrame, pd.DataFrame]:
    """Return a classifier whose backbone is trained as well, its history, and the held-out ranks.

    The backbone starts from the teacher, as in the authors' code. Arguments as for `train_head`,
    with images in place of features.
    """
    device = prepare_device(params.compute)
    fingerprints = {
        "labeled images": labeled_images.fingerprint,
        "pool images": pool_images.fingerprint,
        "teacher": teacher.fingerprint(),
        # `load_model` reaches the code of the teacher's network.
        "code": maker_fingerprint(train_end_to_end, load_model),
    }
    setup = PUSetup(class_prior, params, device, fingerprints)

    trainer = _EndToEndTrainer(labeled_images, pool_images, teacher, setup)
    card = _card(teacher, class_prior, params, descriptor_size=trainer.descriptor_size)
    ids = labeled_images.index["id"].to_numpy()
    result = train_with_held_out_folds(trainer, ids, setup)
    return PUClassifier(result.module.cpu().eval(), card), result.history, result.ranks


class _HeadTrainer:
    """Trains heads on features that are held in memory.

    Args:
        positive: (P, D) float32 features on the device.
        unlabeled: (U, D) float32 features on the device.
        setup: settings.
    """

    def __init__(self, positive: Tensor, unlabeled: Tensor, setup: PUSetup) -> None:
        self._positive = positive
        self._unlabeled = unlabeled
        self._setup = setup

    def new_module(self) -> PUHead:
        params = self._setup.params
        head = new_head(self._positive, self._unlabeled, params)
        return head.to(self._setup.device)

    def fit(
        self,
        module: PUHead,
        rows: Tensor,
        generator: torch.Generator,
        *,
        checkpointer: Checkpointer,
        extend_record: ExtendRecord | None = None,
    ) -> Iterator[Record]:
        # Copied once per fold, and not once per batch.
        positive = self._positive[rows]
        unlabeled = self._unlabeled
        params = self._setup.params
        # index_select is several times as fast on a CPU as indexing with a tensor.
        return fit_scores(
            module,
            _step(module, self._setup.class_prior, params),
            lambda drawn: positive.index_select(0, drawn),
            lambda drawn: unlabeled.index_select(0, drawn),
            n_positive=len(positive),
            n_unlabeled=len(unlabeled),
            training=score_training(params, params.epochs),
            generator=generator,
            checkpointer=checkpointer,
            extend_record=extend_record,
        )

    def positive_scores(self, module: PUHead, rows: Tensor) -> np.ndarray:
        return self._scores(module, self._positive[rows])

    def unlabeled_scores(self, module: PUHead) -> np.ndarray:
        return self._scores(module, self._unlabeled)

    def _scores(self, module: PUHead, features: Tensor) -> np.ndarray:
        with torch.inference_mode():
            scores: np.ndarray = module(features).cpu().numpy()
        return scores


class _EndToEndTrainer:
    """Trains backbone and head on random views of images.

    Args:
        labeled_images: the positives.
        pool_images: the unlabeled images.
        teacher: every backbone is a copy of it.
        setup: settings.

    Attributes:
        descriptor_size: length of the teacher's descriptor, which the head reads.
    """

    def __init__(
        self,
        labeled_images: ImageStore,
        pool_images: ImageStore,
        teacher: Model,
        setup: PUSetup,
    ) -> None:
        compute = setup.params.compute
        self._labeled_images = labeled_images
        self._pool_images = pool_images
        self._teacher = teacher
        self._setup = setup
        params = setup.params
        shared_batch(params.positive_batch_size, "pu_training.positive_batch_size")
        self._workers = current_workers()
        check_pool_divides(params, len(pool_images), self._workers.n)
        self._unlabeled_rows = unlabeled_rows(len(pool_images), params)
        labeled_rows = np.arange(len(labeled_images))
        self._positive = ImageRows([(labeled_images, labeled_rows)], compute)
        self._unlabeled = ImageRows([(pool_images, self._unlabeled_rows)], compute)
        self._normalize = normalization(teacher, setup.device, labeled_images, pool_images)
        self.descriptor_size = teacher.extractor(setup.device).descriptor_size

    def new_module(self) -> FullPUClassifier:
        params = self._setup.params
        device = self._setup.device
        # A copy per classifier: training changes the backbone, and the teacher is used again.
        network = copy.deepcopy(self._teacher.network)
        backbone = Model(network, self._teacher.card).extractor(device)
        head = make_head(self.descriptor_size, params.features, params.attention_reduction)
        classifier = FullPUClassifier(backbone, head)
        module = channels_last(classifier, device)

        descriptors = self._sampled_descriptors(module)
        module.head.set_standardization(descriptors)
        return module

    def fit(
        self,
        module: FullPUClassifier,
        rows: Tensor,
        generator: torch.Generator,
        *,
        checkpointer: Checkpointer,
        extend_record: ExtendRecord | None = None,
    ) -> Iterator[Record]:
        params = self._setup.params
        # Views and batches share the generator, so that one seed decides both.
        workers = self._workers
        views = _RandomViews(self._normalize, params, generator, workers)

        def scores(images: Tensor) -> Tensor:
            with autocast(params.compute, self._setup.device):
                return module(images)  # type: ignore[no-any-return]

        image_shape = self._teacher.image_shape
        n_unlabeled = min(params.unlabeled_batch_size, len(self._unlabeled))
        # As `fit_scores` concatenates them.
        sections = (params.positive_batch_size, n_unlabeled)
        with joint_training(module, image_shape, workers, "pu_training", sections):
            yield from fit_scores(
                module,
                _step(scores, self._setup.class_prior, params, workers),
                lambda drawn: views.of(self._positive, rows[drawn]),
                lambda drawn: views.of(self._unlabeled, drawn),
                n_positive=len(rows),
                n_unlabeled=len(self._unlabeled),
                training=score_training(params, params.epochs),
                generator=generator,
                skip_rows=views.skip,
                checkpointer=checkpointer,
                extend_record=extend_record,
                workers=workers,
            )

    def positive_scores(self, module: FullPUClassifier, rows: Tensor) -> np.ndarray:
        positions = rows.cpu().numpy()
        return self._scores(module, self._labeled_images, positions)

    def unlabeled_scores(self, module: FullPUClassifier) -> np.ndarray:
        return self._scores(module, self._pool_images, self._unlabeled_rows)

    def _scores(self, module: FullPUClassifier, store: ImageStore, rows: np.ndarray) -> np.ndarray:
        module.eval()
        compute = self._setup.params.compute
        workers = self._workers
        if len(rows) < workers.n:
            workers = ALONE
        own_rows = rows[workers.part(len(rows))]
        batches = map_images(lambda x: (module(x),), store, own_rows, self._normalize, compute)
        scores = []
        for (scores_of_batch,) in batches:
            # Under autocast they are bf16, which NumPy does not have.
            scores.append(scores_of_batch.float())
        return workers.gather_uneven(torch.cat(scores), len(rows)).numpy()

    def _sampled_descriptors(self, module: FullPUClassifier) -> Tensor:
        """Return the descriptors of a sample of the pool, for the head's standardization."""
        pool = self._pool_images
        params = self._setup.params
        order = np.random.default_rng(params.seed).permutation(self._unlabeled_rows)
        # Sorted, because stores are read fastest in order.
        rows = np.sort(order[:_STATISTICS_SAMPLE])

        def descriptor_of(images: Tensor) -> tuple[Tensor]:
            descriptor, _ = module.extractor(images)
            return (descriptor,)

        batches = map_images(descriptor_of, pool, rows, self._normalize, params.compute)
        descriptors = [descriptor for (descriptor,) in batches]
        return torch.cat(descriptors).to(self._setup.device)


def check_pool_divides(params: PUTrainingParams, n_pool: int, n_workers: int) -> None:
    """Check that the unlabeled images of an update can be divided among workers.

    Args:
        params: the batch size.
        n_pool: images of the pool, which is a batch if it is smaller than one.
        n_workers: processes that train together.

    Raises:
        InputError: they cannot.
    """
    n_seen = min(n_pool, params.max_unlabeled)
    size = min(params.unlabeled_batch_size, n_seen)
    if size % n_workers == 0:
        return
    why = ""
    if n_seen < params.unlabeled_batch_size:
        given = params.unlabeled_batch_size
        why = f", which are all that it reads of the pool (unlabeled_batch_size is {given})"
    raise InputError(
        f"pu_training: the {size} unlabeled images of an update{why} cannot be divided among "
        f"{n_workers} workers (training_workers.n): set unlabeled_batch_size to a multiple of "
        "their number that the pool has"
    )


class _RandomViews:
    """Random views of image batches, from one generator.

    Args:
        normalize: on the images' device.
        params: its block `augmentation` is used.
        generator: fixes the views.
        workers: each gets its part of a batch, with the views that one process would draw.
    """

    def __init__(
        self,
        normalize: Normalize,
        params: PUTrainingParams,
        generator: torch.Generator,
        workers: Workers,
    ) -> None:
        self._workers = workers
        self._normalize = normalize
        self._augmentation = params.augmentation
        self._generator = generator

    def of(self, images: ImageRows, rows: Tensor) -> Tensor:
        """Return normalized views of this worker's part of some rows."""
        numbers = draw_numbers(len(rows), self._augmentation, self._generator)
        pixels = images.batch(self._workers.own(rows))
        if numbers is not None:
            own_numbers = self._workers.own(numbers)
            pixels = views_of(self._augmentation).take(pixels, own_numbers)
        return self._normalize(pixels)

    def skip(self, rows: Tensor) -> None:
        """Advance the generator as drawing views of these rows would, without reading an image."""
        draw_numbers(len(rows), self._augmentation, self._generator)


def _step(
    score: Callable[[Tensor], Tensor],
    class_prior: float,
    params: PUTrainingParams,
    workers: Workers = ALONE,
) -> Step:
    # CVIR is not an estimator of the risk and has no beta or gamma.
    if params.estimator == "cvir":
        return cvir_step(score, class_prior=class_prior, workers=workers)
    return pu_step(
        score,
        class_prior=class_prior,
        estimator=params.estimator,
        beta=params.beta,
        gamma=params.gamma,
        workers=workers,
    )


def _card(
    teacher: Model, class_prior: float, params: PUTrainingParams, *, descriptor_size: int
) -> PUClassifierCard:
    return PUClassifierCard(
        backbone=params.backbone,
        features=params.features,
        descriptor_size=descriptor_size,
        attention_reduction=params.attention_reduction,
        class_prior=class_prior,
        teacher=teacher.card,
        teacher_fingerprint=teacher.fingerprint(),
    )
