"""PU classifiers of all positives, and of all but a fold to rank the positives of that fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.loop import Checkpointer, ExtendRecord, Record, seeded
from pu_kd_pipeline.learning.losses.risk import zero_one_risk
from pu_kd_pipeline.learning.pu_training import assign_folds
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.progress import track, watch
from pu_kd_pipeline.training.checkpoints import checkpointing, training_identity
from pu_kd_pipeline.training.pu_steps import usable_folds

HELD_OUT_RISK = "held_out_zero_one_risk"
_RANK_COLUMNS = ["id", "fold", "rank", "pu_score"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PUSetup:
    """The settings of a PU classifier's training.

    Attributes:
        class_prior: share of positives in the pool.
        params: the block `pu_training`.
        device: where networks and samples live.
        fingerprints: by name, those of the inputs; part of a checkpoint's identity.
    """

    class_prior: float
    params: PUTrainingParams
    device: torch.device
    fingerprints: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """Return what the result depends on; a checkpoint of another identity is not used."""
        return training_identity(
            self.params, self.device, class_prior=self.class_prior, **self.fingerprints
        )


class PUTrainer(Protocol[M]):
    """How one kind of PU classifier is made, trained and applied."""

    def new_module(self) -> M:
        """Return an untrained classifier."""

    def fit(
        self,
        module: M,
        rows: Tensor,
        generator: torch.Generator,
        *,
        checkpointer: Checkpointer,
        extend_record: ExtendRecord | None = None,
    ) -> Iterator[Record]:
        """Train on the positives at (P,) int64 rows and on the pool; yield one record per epoch."""

    def positive_scores(self, module: M, rows: Tensor) -> np.ndarray:
        """Return the (P,) scores of the positives at some rows."""

    def unlabeled_scores(self, module: M) -> np.ndarray:
        """Return the (U,) scores of the pool."""


@dataclass(frozen=True)
class PUResult(Generic[M]):
    """A classifier trained on all positives, and what held-out folds said of such classifiers.

    Attributes:
        module: the classifier.
        history: one row per epoch; with folds, the column `held_out_zero_one_risk` is the mean over
            them of 2 pi FNR + P_U(+) - pi, FNR being the false negative rate on held-out positives.
        ranks: one row per held-out positive: its id, fold, rank in the pool, and score.
    """

    module: M
    history: pd.DataFrame
    ranks: pd.DataFrame


def train_with_held_out_folds(
    trainer: PUTrainer[M], ids: np.ndarray, setup: PUSetup
) -> PUResult[M]:
    """Return the classifier of all positives, and each fold's ranks by a classifier without it.

    Each training has its own checkpoints: a resumed run repeats no update of an earlier fold.

    Args:
        trainer: makes and trains the classifiers.
        ids: (P,) ids of the positives.
        setup: settings.
    """
    params = setup.params
    # One generator for all trainings: each fold continues the random numbers of the one before.
    generator = torch.Generator(setup.device).manual_seed(params.seed)
    everything = torch.arange(len(ids), device=setup.device)
    risks = []
    ranks = []
    with seeded(params.seed):
        n_folds = 0
        # Without folds nothing is drawn, and the loop below has no rounds.
        folds = everything
        if params.held_out_folds:
            key = "pu_training.held_out_folds"
            n_folds = usable_folds(params.held_out_folds, len(ids), key)
            folds = assign_folds(len(ids), n_folds, generator)

        for fold in track(range(n_folds), name="held-out folds", total=n_folds, unit="folds"):
            is_held_out = folds == fold
            held_out = everything[is_held_out]
            kept = everything[~is_held_out]
            with checkpointing(f"pu_training-fold-{fold}", setup.identity) as checkpointer:
                module = trainer.new_module()
                monitor = _HeldOutRisk(trainer, module, held_out, setup.class_prior)
                records = trainer.fit(
                    module, kept, generator, checkpointer=checkpointer, extend_record=monitor
                )
                # Going through the records is what trains.
                risks_of_fold = [record[HELD_OUT_RISK] for record in records]
            risks.append(risks_of_fold)
            ranks.append(_ranks(trainer, module, ids, held_out, fold))

        with checkpointing("pu_training", setup.identity) as checkpointer:
            module = trainer.new_module()
            records = trainer.fit(module, everything, generator, checkpointer=checkpointer)
            records = watch(records, name="pu_training", total=params.epochs)
            history = pd.DataFrame(list(records))

    if not ranks:
        # Readers of the table expect its columns also where no fold was held out.
        no_ranks = pd.DataFrame(columns=_RANK_COLUMNS)
        return PUResult(module, history, no_ranks)

    history[HELD_OUT_RISK] = np.mean(risks, axis=0)
    all_ranks = pd.concat(ranks, ignore_index=True)
    return PUResult(module, history, all_ranks)


@dataclass(frozen=True)
class _HeldOutRisk(Generic[M]):
    """Adds to a record the risk of a module on positives that it is not trained on."""

    trainer: PUTrainer[M]
    module: M
    held_out: Tensor
    class_prior: float

    def __call__(self, record: Record) -> Record:
        scores = self.trainer.positive_scores(self.module, self.held_out)
        # Scoring may have put the module into eval mode, and its training continues.
        self.module.train()
        # A score above 0 is a decision for positive.
        false_negatives = float((scores <= 0).mean())
        positive_share = record["unlabeled_positive_share"]
        risk = zero_one_risk(false_negatives, positive_share, self.class_prior)
        return {**record, HELD_OUT_RISK: risk}


def _ranks(
    trainer: PUTrainer[M], module: M, ids: np.ndarray, held_out: Tensor, fold: int
) -> pd.DataFrame:
    """Return the rank of each held-out positive: the share of the pool that scores as high.

    Ranks of different folds can be compared; scores of different classifiers cannot.
    """
    held_out_ids = ids[held_out.cpu().numpy()]
    positive_scores = trainer.positive_scores(module, held_out)
    unlabeled_scores = np.sort(trainer.unlabeled_scores(module))
    n_below = np.searchsorted(unlabeled_scores, positive_scores, side="left")
    ranks = 1.0 - n_below / len(unlabeled_scores)
    return pd.DataFrame(
        {
            "id": held_out_ids,
            "fold": fold,
            "rank": ranks,
            "pu_score": positive_scores,
        }
    )
