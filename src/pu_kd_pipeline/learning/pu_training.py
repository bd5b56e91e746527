"""Training of PU scores: the nnPU/uPU, CVIR and positive-versus-unlabeled steps, and their batches.

Positives are drawn with replacement, and each epoch visits the pool in random order (Xu et al.
2019, Algorithm 1). Both go through the network in one batch, so that BatchNorm cannot learn to
separate them.
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
    Checkpointer,
    ExtendRecord,
    Step,
    TrainingState,
    fit,
    make_optimizer,
    random_batches,
    shuffled_batches,
)
from pu_kd_pipeline.learning.losses.risk import pu_risk
from pu_kd_pipeline.learning.workers import ALONE, Workers

Batch = tuple[Tensor, Tensor]  # positives and unlabeled
Draw = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScoreTraining:
    """How a score is trained: epochs over the unlabeled samples, batch sizes, optimizer."""

    epochs: int
    positive_batch_size: int
    unlabeled_batch_size: int
    algorithm: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str


def pu_step(
    score: Score,
    *,
    class_prior: float,
    estimator: Literal["nnpu", "upu"],
    beta: float,
    gamma: float,
    workers: Workers = ALONE,
) -> Step:
    """Return the step that lowers the PU risk of `score` (Xu et al. 2019, Eq. 3).

    Args:
        score: maps samples to scores.
        class_prior: share of positives among the unlabeled, in (0, 1).
        estimator: see `pu_risk`.
        beta: see `pu_risk`.
        gamma: see `pu_risk`.
        workers: each scores its part of the batch. The sign that decides the branch is that of the
            whole batch.
    """

    def step(batch: Batch) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch, workers)
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
            "unlabeled_positive_share": _positive_share(unlabeled_scores),
        }

    return step


def cvir_step(score: Score, *, class_prior: float, workers: Workers = ALONE) -> Step:
    """Return the step of the conditional value ignoring risk (CVIR).

    Source: Garg et al. 2021, arXiv:2111.00980, Algorithm 1. Balanced logistic loss of the positives
    against the 1 - class_prior of the unlabeled that score lowest: the others are considered
    positives and ignored.

    Departures: the ignored samples are chosen within the batch instead of once per epoch, so no
    extra pass over the pool is needed; and the loss reads F - logit(class_prior), which makes F the
    log-odds in the pool and F > 0 the Bayes rule.

    Args:
        score: maps samples to scores.
        class_prior: share of positives among the unlabeled.
        workers: see `pu_step`; the lowest scores are those of the whole batch.

    Raises:
        ValueError: class_prior is outside (0, 1).
    """
    if not 0.0 < class_prior < 1.0:
        raise ValueError(f"class_prior must lie strictly between 0 and 1, got {class_prior!r}")
    offset = math.log(class_prior / (1.0 - class_prior))

    def step(batch: Batch) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch, workers)
        negative_scores = _lowest(unlabeled_scores, 1.0 - class_prior)
        # softplus(-z) and softplus(z) are the logistic losses of a positive and of a negative
        positive_loss = functional.softplus(offset - positive_scores).mean()
        negative_loss = functional.softplus(negative_scores - offset).mean()
        positive_risk = class_prior * positive_loss
        negative_risk = (1.0 - class_prior) * negative_loss
        return {
            "loss": (positive_loss + negative_loss) / 2,
            "risk": positive_risk + negative_risk,
            "positive_risk": positive_risk,
            "negative_risk": negative_risk,
            # The columns of all estimators are the same; CVIR has no ascent branch.
            "ascent_share": torch.zeros_like(positive_loss),
            "unlabeled_positive_share": _positive_share(unlabeled_scores),
        }

    return step


def positive_unlabeled_step(score: Score, dropped_share: Callable[[], float] = lambda: 0.0) -> Step:
    """Return the step that separates positives from unlabeled by balanced logistic loss.

    Class prior estimates read such scores.

    Args:
        score: maps samples to scores.
        dropped_share: returns the share of the batch's unlabeled, those that score highest, to
            leave out; called at every step, because (TED)^n changes it. See `cvir_step`.
    """

    def step(batch: Batch) -> dict[str, Tensor]:
        positive_scores, unlabeled_scores = _scores_of_both(score, batch)
        kept_share = 1.0 - dropped_share()
        kept_scores = _lowest(unlabeled_scores, kept_share)
        positive_loss = functional.softplus(-positive_scores).mean()
        unlabeled_loss = functional.softplus(kept_scores).mean()
        loss = (positive_loss + unlabeled_loss) / 2
        return {"loss": loss}

    return step


def _lowest(scores: Tensor, share: float) -> Tensor:
    """Return the share of the scores that are lowest, in any order, but at least one."""
    n_scores = len(scores)
    # An empty mean would make the loss NaN.
    n_kept = max(1, round(share * n_scores))
    if n_kept >= n_scores:
        return scores
    return scores.topk(n_kept, largest=False, sorted=False).values


def _positive_share(scores: Tensor) -> Tensor:
    is_positive = scores > 0
    return is_positive.float().mean()


def _scores_of_both(score: Score, batch: Batch, workers: Workers = ALONE) -> Batch:
    """Return the float32 scores of all positives and unlabeled from one forward pass."""
    positive, unlabeled = batch
    n_positive = len(positive)
    # One batch, so that BatchNorm normalizes both by the same statistics.
    both = torch.cat([positive, unlabeled])
    scores = score(both).float()
    return workers.gather(scores[:n_positive]), workers.gather(scores[n_positive:])


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
    skip_rows: Callable[[Tensor], object] = lambda rows: None,
    checkpointer: Checkpointer | None = None,
    extend_record: ExtendRecord | None = None,
    workers: Workers = ALONE,
) -> Iterator[dict[str, float]]:
    """Yield one record per epoch; an epoch is one pass over the unlabeled samples.

    Args:
        module: module with the parameters that are trained.
        step: see `pu_step`, `cvir_step` and `positive_unlabeled_step`.
        draw_positive: maps (B,) int64 rows to a batch of positives, or to a worker's part of it.
        draw_unlabeled: maps (B,) int64 rows to a batch of unlabeled samples, or to such a part.
        n_positive: number of positives, > 0.
        n_unlabeled: number of unlabeled samples, > 0.
        training: epochs, batch sizes and optimizer.
        generator: fixes the batches; on the device of the samples.
        skip_rows: advances the generator as drawing these rows would, without reading them; a
            resumed training skips the batches that it has seen.
        checkpointer: see `fit`.
        extend_record: see `fit`.
        workers: that train together; the batches are divided among them.

    Raises:
        ValueError: there are no positives or no unlabeled samples, or the batches cannot be
            divided.
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
    if checkpointer is not None:
        checkpointer.restore(state)
    unlabeled_batch_size = min(training.unlabeled_batch_size, n_unlabeled)
    for kind, size in (
        ("positives", training.positive_batch_size),
        ("unlabeled samples", unlabeled_batch_size),
    ):
        if size % workers.n:
            raise ValueError(
                f"{size} {kind} per update cannot be divided among {workers.n} workers"
            )
    updates_per_epoch = math.ceil(n_unlabeled / unlabeled_batch_size)
    positives = random_batches(n_positive, training.positive_batch_size, generator)
    unlabeled = shuffled_batches(n_unlabeled, unlabeled_batch_size, generator)
    rows = zip(positives, unlabeled, strict=True)
    # The generator is not part of the state: it is advanced from the seed to where it was.
    for positive_rows, unlabeled_rows in itertools.islice(rows, state.update):
        skip_rows(positive_rows)
        skip_rows(unlabeled_rows)
    batches = ((draw_positive(p), draw_unlabeled(u)) for p, u in rows)
    module.train()
    records = fit(
        step,
        batches,
        optimizer,
        n_updates=training.epochs * updates_per_epoch,
        record_every=updates_per_epoch,
        schedule=training.schedule,
        state=state,
        checkpointer=checkpointer,
        extend_record=extend_record,
        workers=workers,
    )
    # A resumed training yields the records that it has first, so counting from 1 is right.
    for epoch, record in enumerate(records, start=1):
        yield {"epoch": float(epoch), **record}
    module.eval()


def assign_folds(n: int, n_folds: int, generator: torch.Generator) -> Tensor:
    """Return an (n,) int64 fold number for each sample; fold sizes differ by at most one."""
    device = generator.device
    order = torch.randperm(n, generator=generator, device=device)

    # Dealt like cards, in random order: 0, 1, ..., n_folds - 1, 0, 1, ...
    numbers = torch.arange(n, device=device)
    folds = torch.empty(n, dtype=torch.int64, device=device)
    folds[order] = numbers % n_folds
    return folds
