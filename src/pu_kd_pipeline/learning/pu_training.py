"""Training of PU scores: the nnPU/uPU, CVIR and positive-versus-unlabeled steps, and the batches they draw.

Positives are drawn with replacement and the pool is passed over in random order (Xu et al. 2019, Algorithm 1); both go
through the network in one batch, so that BatchNorm cannot learn to tell them apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.learning.loop import (
    Examine,
    Keeper,
    Step,
    TrainingState,
    fit,
    make_optimizer,
    random_batches,
    shuffled_batches,
)
from pu_kd_pipeline.learning.losses.risk import pu_risk

Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScoreTraining:
    """How a score function is trained: epochs over the unlabeled samples, batch sizes, optimizer."""

    epochs: int
    positive_batch_size: int
    unlabeled_batch_size: int
    algorithm: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str


def pu_step(
    score: Callable[[Tensor], Tensor],
    *,
    class_prior: float,
    estimator: Literal["nnpu", "upu"],
    beta: float,
    gamma: float,
) -> Step:
    """Return the step that lowers the PU risk of `score` (Eq. 3; `learning.risk` has the branch)."""

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch)
        risk = pu_risk(
            positive_scores,
            unlabeled_scores,
            class_prior,
            estimator=estimator,
            beta=beta,
            gamma=gamma,
        )
        return {
            "loss": risk.objective,
            "risk": risk.value,
            "positive_risk": risk.positive_risk,
            "negative_risk": risk.negative_risk,
            "ascent_share": risk.is_ascent.float(),
            "unlabeled_positive_share": (unlabeled_scores > 0).float().mean(),
        }

    return step


def cvir_step(score: Callable[[Tensor], Tensor], *, class_prior: float) -> Step:
    """Return the step of the conditional value ignoring risk (CVIR; Garg et al. 2021, arXiv:2111.00980, Algorithm 1).

    Balanced logistic loss of the positives against the 1 - class_prior of the unlabeled that score lowest: the others
    are taken for positives and left out. Departures: they are chosen within the batch instead of once an epoch, so no
    pass over the pool is needed; and the loss sees F - logit(class_prior), which makes F the log-odds in the pool and
    F > 0 the Bayes rule.
    """
    if not 0.0 < class_prior < 1.0:
        raise ValueError(f"class_prior must lie strictly between 0 and 1, got {class_prior!r}")
    offset = math.log(class_prior / (1.0 - class_prior))

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch)
        positive_loss = functional.softplus(offset - positive_scores).mean()
        negative_loss = functional.softplus(
            _lowest(unlabeled_scores, 1.0 - class_prior) - offset
        ).mean()
        positive_risk, negative_risk = (
            class_prior * positive_loss,
            (1.0 - class_prior) * negative_loss,
        )
        return {
            "loss": (positive_loss + negative_loss) / 2,
            "risk": positive_risk + negative_risk,
            "positive_risk": positive_risk,
            "negative_risk": negative_risk,
            "ascent_share": torch.zeros_like(positive_loss),
            "unlabeled_positive_share": (unlabeled_scores > 0).float().mean(),
        }

    return step


def positive_unlabeled_step(
    score: Callable[[Tensor], Tensor], dropped_share: Callable[[], float] = lambda: 0.0
) -> Step:
    """Return the step that tells positives from unlabeled by balanced logistic loss (for class prior estimates).

    Args:
        score: maps features to scores.
        dropped_share: asked at each step for the share of the batch's unlabeled, those that score highest, to leave
            out; see `cvir_step`.
    """

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch)
        kept = _lowest(unlabeled_scores, 1.0 - dropped_share())
        return {
            "loss": (
                functional.softplus(-positive_scores).mean() + functional.softplus(kept).mean()
            )
            / 2
        }

    return step


def _lowest(scores: Tensor, share: float) -> Tensor:
    n_kept = max(1, round(share * len(scores)))
    return (
        scores if n_kept >= len(scores) else scores.topk(n_kept, largest=False, sorted=False).values
    )


def _scores_of_both(
    score: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    positive, unlabeled = batch
    scores = score(torch.cat([positive, unlabeled])).float()
    return scores[: len(positive)], scores[len(positive) :]


def fit_scores(
    module: nn.Module,
    step: Step,
    draw_positive: Draw,
    draw_unlabeled: Draw,
    *,
    n_positive: int,
    n_unlabeled: int,
    training: ScoreTraining,
    generator: torch.Generator,
    pass_over: Callable[[Tensor], object] = lambda rows: None,
    keeper: Keeper | None = None,
    examine: Examine | None = None,
) -> Iterator[dict[str, float]]:
    """Yield one record an epoch, an epoch being one pass over the unlabeled samples.

    Args:
        module: holds the parameters that are trained.
        step: see `pu_step` and `positive_unlabeled_step`.
        draw_positive: maps (B,) int64 rows to a batch of positives.
        draw_unlabeled: maps (B,) int64 rows to a batch of unlabeled samples.
        n_positive: number of positives, > 0.
        n_unlabeled: number of unlabeled samples, > 0.
        training: epochs, batch sizes and optimizer.
        generator: fixes the batches; on the device of the samples.
        pass_over: draws of the generator what a draw of these rows draws of it, and reads nothing: a training that goes
            on passes over the batches that it has seen.
        keeper: see `fit`.
        examine: see `fit`.

    Raises:
        ValueError: there are no positives or no unlabeled samples.
    """
    if n_positive < 1 or n_unlabeled < 1:
        raise ValueError(
            f"training needs positives and unlabeled samples, got {n_positive} and {n_unlabeled}"
        )
    optimizer = make_optimizer(
        module,
        algorithm=training.algorithm,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    state = TrainingState(module=module, optimizer=optimizer)
    if keeper is not None:
        keeper.restore(state)
    unlabeled_batch_size = min(training.unlabeled_batch_size, n_unlabeled)
    positives = random_batches(n_positive, training.positive_batch_size, generator)
    unlabeled = shuffled_batches(n_unlabeled, unlabeled_batch_size, generator)
    drawn = zip(positives, unlabeled, strict=True)
    for rows in itertools.chain.from_iterable(itertools.islice(drawn, state.update)):
        pass_over(rows)
    batches = ((draw_positive(p), draw_unlabeled(u)) for p, u in drawn)
    updates_per_epoch = -(-n_unlabeled // unlabeled_batch_size)
    module.train()
    records = fit(
        step,
        batches,
        optimizer,
        n_updates=training.epochs * updates_per_epoch,
        record_every=updates_per_epoch,
        schedule=training.schedule,
        state=state,
        keeper=keeper,
        examine=examine,
    )
    for epoch, record in enumerate(records, start=1):
        yield {"epoch": float(epoch), **record}
    module.eval()


def folds_of(n: int, n_folds: int, generator: torch.Generator) -> Tensor:
    """Return a (n,) int64 fold number for each sample, folds differing in size by at most one."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    folds = torch.empty(n, dtype=torch.int64, device=generator.device)
    folds[order] = torch.arange(n, device=generator.device) % n_folds
    return folds
