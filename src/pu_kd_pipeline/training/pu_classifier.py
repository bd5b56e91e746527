"""Training the PU classifier: its head on features, or end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, channels_last, prepare_device
from pu_kd_pipeline.features.reading import feature_tensors
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.batches import ImageRows, map_images, normalization
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import draw_views, n_views
from pu_kd_pipeline.learning.loop import Record, Step, seeded
from pu_kd_pipeline.learning.losses.risk import zero_one_risk
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead, make_head
from pu_kd_pipeline.learning.pu_training import (
    ScoreTraining,
    cvir_step,
    fit_scores,
    folds_of,
    pu_step,
)
from pu_kd_pipeline.models.cards import PUClassifierCard
from pu_kd_pipeline.models.model import Model, PUClassifier
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.progress import track, watch
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.batches import augmented
from pu_kd_pipeline.training.checkpoints import decided_by, keeping
from pu_kd_pipeline.training.pu_steps import new_head, score_training, usable_folds

Fit = Callable[..., Iterator[Record]]  # fit(keeper=…, examine=…)


def train_head(
    labeled: ShardedTable,
    pool: ShardedTable,
    teacher: Model,
    class_prior: float,
    params: PUTrainingParams,
) -> tuple[PUClassifier, pd.DataFrame, pd.DataFrame]:
    """Return a classifier on cached features, its history, and the held-out ranks.

    Raises:
        InputError: the features are another teacher's.
    """
    for features, whose in ((labeled, "labeled_features"), (pool, "pool_features")):
        check_teacher(features, teacher.fingerprint(), whose)
    device = prepare_device(params.compute)
    ids, positive = feature_tensors(labeled, params.features, device)
    _, unlabeled = feature_tensors(pool, params.features, device)
    training = score_training(params, params.epochs)

    def train(rows: Tensor, generator: torch.Generator) -> tuple[nn.Module, Fit]:
        head = new_head(positive, unlabeled, params).to(device)
        step = _pu_step(head, class_prior, params)
        return head, partial(_fit_head, head, step, positive[rows], unlabeled, training, generator)

    def score(module: nn.Module, rows: Tensor | None) -> np.ndarray:
        with torch.inference_mode():
            scores: np.ndarray = module(unlabeled if rows is None else positive[rows]).cpu().numpy()
        return scores

    facts = {
        "labeled": labeled.fingerprint,
        "pool": pool.fingerprint,
        "teacher": teacher.fingerprint(),
    }
    head, history, ranks = _train_with_held_out_folds(
        ids, train, score, class_prior, params, device, facts
    )
    card = _card(teacher, class_prior, params, descriptor_size=head.descriptor_size)
    return PUClassifier(head.cpu().eval(), card), history, ranks


def train_end_to_end(
    labeled_images: ImageStore,
    pool_images: ImageStore,
    teacher: Model,
    class_prior: float,
    params: PUTrainingParams,
) -> tuple[PUClassifier, pd.DataFrame, pd.DataFrame]:
    """Return a classifier whose backbone starts as the teacher's and is trained along, as the authors' code does."""
    device = prepare_device(params.compute)
    normalize = normalization(teacher, device)
    stores = (labeled_images, pool_images)
    positive, unlabeled = (
        ImageRows([(store, np.arange(len(store)))], params.compute) for store in stores
    )
    training = score_training(params, params.epochs)
    descriptor_size = teacher.extractor(device).descriptor_size
    card = _card(teacher, class_prior, params, descriptor_size=descriptor_size)

    def train(rows: Tensor, generator: torch.Generator) -> tuple[nn.Module, Fit]:
        backbone = Model(copy.deepcopy(teacher.network), teacher.card).extractor(device)
        head = make_head(descriptor_size, params.features, params.attention_reduction)
        module = channels_last(FullPUClassifier(backbone, head), device)
        module.head.standardize_by(_descriptors(module, pool_images, params, normalize))

        def view(batch: Tensor) -> Tensor:
            return augmented(batch, normalize, params.augmentation, generator)

        def pass_over(rows: Tensor) -> None:
            padding, flip = params.augmentation.padding_px, params.augmentation.horizontal_flip
            if n_views(padding, flip) > 1:
                draw_views(len(rows), padding=padding, flip=flip, generator=generator)

        def scores(images: Tensor) -> Tensor:
            with autocast(params.compute, device):
                return module(images)  # type: ignore[no-any-return]

        return module, partial(
            fit_scores,
            module,
            _pu_step(scores, class_prior, params),
            lambda drawn: view(positive.batch(rows[drawn])),
            lambda drawn: view(unlabeled.batch(drawn)),
            n_positive=len(rows),
            n_unlabeled=len(unlabeled),
            training=training,
            generator=generator,
            pass_over=pass_over,
        )

    def score(module: nn.Module, rows: Tensor | None) -> np.ndarray:
        store = pool_images if rows is None else labeled_images
        which = np.arange(len(store)) if rows is None else rows.cpu().numpy()
        batches = map_images(lambda x: (module.eval()(x),), store, which, normalize, params.compute)
        return torch.cat([scores.float() for (scores,) in batches]).numpy()

    ids = labeled_images.index["id"].to_numpy()
    facts = {
        f"{name} images": store.fingerprint
        for name, store in zip(("labeled", "pool"), stores, strict=True)
    }
    facts["teacher"] = teacher.fingerprint()
    module, history, ranks = _train_with_held_out_folds(
        ids, train, score, class_prior, params, device, facts
    )
    return PUClassifier(module.cpu().eval(), card), history, ranks


_STATISTICS_SAMPLE = 4096
_HELD_OUT_RISK = "held_out_zero_one_risk"


def _descriptors(
    module: FullPUClassifier, pool: ImageStore, params: PUTrainingParams, normalize: Any
) -> Tensor:
    """Return the descriptors of a sample of the pool, for the head's standardization."""
    rows = np.random.default_rng(params.seed).permutation(len(pool))[:_STATISTICS_SAMPLE]
    batches = map_images(
        lambda x: (module.extractor(x)[0],), pool, np.sort(rows), normalize, params.compute
    )
    return torch.cat([descriptor for (descriptor,) in batches]).to(next(module.parameters()).device)


def _train_with_held_out_folds(
    ids: np.ndarray,
    train: Callable[[Tensor, torch.Generator], tuple[Any, Fit]],
    score: Callable[[nn.Module, Tensor | None], np.ndarray],
    class_prior: float,
    params: PUTrainingParams,
    device: torch.device,
    facts: Mapping[str, str],
) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """Return the classifier of all positives, its history, and what classifiers without a fold say of that fold.

    The history's `held_out_zero_one_risk` is 2 pi FNR + P_U(+) - pi with the false negative rate of held-out positives.
    Each training has its own checkpoints: one that goes on has those of the folds before it ended, and no update of
    them is done again.
    """

    def about() -> dict[str, Any]:
        return decided_by(params, device, class_prior=class_prior, **facts)

    generator = torch.Generator(device).manual_seed(params.seed)
    everything = torch.arange(len(ids), device=device)
    with seeded(params.seed):
        held_out, risks = [], []
        n_folds = (
            usable_folds(params.held_out_folds, len(ids), "pu_training.held_out_folds")
            if params.held_out_folds
            else 0
        )
        folds = folds_of(len(ids), n_folds, generator) if n_folds else everything
        for fold in track(range(n_folds), name="held-out folds", total=n_folds, unit="folds"):
            rows = everything[folds == fold]
            with keeping(f"pu_training-fold-{fold}", about) as keeper:
                module, fit = train(everything[folds != fold], generator)
                examine = partial(
                    _with_held_out_risk, module, partial(score, module, rows), class_prior
                )
                risks.append(
                    [record[_HELD_OUT_RISK] for record in fit(keeper=keeper, examine=examine)]
                )
            held_out.append(
                _ranks(ids[rows.cpu().numpy()], fold, score(module, rows), score(module, None))
            )
        with keeping("pu_training", about) as keeper:
            module, fit = train(everything, generator)
            history = pd.DataFrame(
                list(watch(fit(keeper=keeper), name="pu_training", total=params.epochs))
            )
    if risks:
        history[_HELD_OUT_RISK] = np.mean(risks, axis=0)
    columns = ["id", "fold", "rank", "pu_score"]
    return (
        module,
        history,
        pd.concat(held_out, ignore_index=True) if held_out else pd.DataFrame(columns=columns),
    )


def _with_held_out_risk(
    module: nn.Module, score: Callable[[], np.ndarray], class_prior: float, record: Record
) -> Record:
    """Return a record with the risk of a module in training on positives that it is not trained on."""
    false_negatives = float((score() <= 0).mean())
    module.train()
    return {
        **record,
        _HELD_OUT_RISK: zero_one_risk(
            false_negatives, record["unlabeled_positive_share"], class_prior
        ),
    }


def _ranks(
    ids: np.ndarray, fold: int, positive_scores: np.ndarray, unlabeled_scores: np.ndarray
) -> pd.DataFrame:
    below = np.searchsorted(np.sort(unlabeled_scores), positive_scores, side="left")
    ranks = 1.0 - below / len(unlabeled_scores)
    return pd.DataFrame({"id": ids, "fold": fold, "rank": ranks, "pu_score": positive_scores})


def _fit_head(
    head: PUHead,
    step: Step,
    positive: Tensor,
    unlabeled: Tensor,
    training: ScoreTraining,
    generator: torch.Generator,
    **options: Any,
) -> Iterator[Record]:
    return fit_scores(
        head,
        step,
        lambda rows: positive.index_select(
            0, rows
        ),  # several times as fast on a CPU as positive[rows]
        lambda rows: unlabeled.index_select(0, rows),
        n_positive=len(positive),
        n_unlabeled=len(unlabeled),
        training=training,
        generator=generator,
        **options,
    )


def _pu_step(
    score: Callable[[Tensor], Tensor], class_prior: float, params: PUTrainingParams
) -> Step:
    if params.estimator == "cvir":
        return cvir_step(score, class_prior=class_prior)
    return pu_step(
        score,
        class_prior=class_prior,
        estimator=params.estimator,
        beta=params.beta,
        gamma=params.gamma,
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
