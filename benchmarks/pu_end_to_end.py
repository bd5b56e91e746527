"""PU training of backbone and head with LeNet-5: our loop against the naive one, batch by batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.harness import Measurement, ratio, share_of_limit
from benchmarks.loading import RESIDENT
from benchmarks.pu_setting import CLASS_PRIOR, CPU, PAPER_SGD, Setting, new_module, unfused_sgd
from pu_kd_pipeline.devices import channels_last
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.loop import random_batches, shuffled_batches
from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier
from pu_kd_pipeline.learning.pu_training import ScoreTraining, fit_scores, pu_step
from pu_kd_pipeline.params.compute import AugmentationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.training.batches import augmented

N_POOL = 4_096
"""Pool images in an epoch of both loops."""


@dataclass(frozen=True)
class Loop:
    """What an epoch of either loop needs to know."""

    setting: Setting
    training: ScoreTraining
    augmentation: AugmentationParams


def end_to_end_row(setting: Setting, params: PUTrainingParams) -> Measurement:
    """Return the row of an epoch of both loops, which is checked to give equal weights first."""
    training = ScoreTraining(
        1, params.positive_batch_size, params.unlabeled_batch_size, **PAPER_SGD.model_dump()
    )
    loop = Loop(setting, training, params.augmentation)
    start = new_module(setting)
    _check_equal(loop, start)

    # Both start from the same weights; ours in the memory format that its training uses.
    their_module = copy.deepcopy(start)
    our_module = channels_last(copy.deepcopy(start), CPU)
    batches = _naive_batches(loop)
    optimizer = unfused_sgd(their_module)
    images = _resident_images(setting)

    def their_epoch() -> None:
        naive.train_end_to_end(their_module, batches, CLASS_PRIOR, optimizer)

    def our_epoch() -> None:
        _our_epoch(loop, our_module, images)

    def bare_epoch() -> None:
        _bare_epoch(loop, our_module, images)

    gain = ratio(their_epoch, our_epoch, repeats=5)
    least = ratio(their_epoch, bare_epoch, repeats=3)
    batch = f"{params.positive_batch_size} + {params.unlabeled_batch_size:,}"
    return share_of_limit(
        "2",
        "PU training with LeNet-5 end to end, an epoch, against the naive loop on the same batches",
        gain,
        least,
        95,
        "if the network were all: no images, risk or optimizer",
        note=f"{N_POOL:,} pool images in batches of {batch}; "
        "without augmentation the weights are equal after an epoch",
    )


def _resident_images(setting: Setting) -> list[ImageRows]:
    """Return positives and pool in memory."""
    images = []
    for store in setting.stores:
        positions = np.arange(min(len(store), N_POOL))
        images.append(ImageRows([(store, positions)], RESIDENT))
    return images


def _our_epoch(loop: Loop, module: FullPUClassifier, images: list[ImageRows]) -> None:
    """Take the steps of `training.pu_classifier.train_end_to_end`."""
    generator = torch.Generator().manual_seed(0)
    normalize = loop.setting.normalize
    positive, unlabeled = images

    def views_of(rows: ImageRows) -> Callable[[Tensor], Tensor]:
        return lambda drawn: augmented(rows.batch(drawn), normalize, loop.augmentation, generator)

    records = fit_scores(
        module,
        pu_step(module, class_prior=CLASS_PRIOR, estimator="nnpu", beta=0.0, gamma=1.0),
        views_of(positive),
        views_of(unlabeled),
        n_positive=len(positive),
        n_unlabeled=len(unlabeled),
        training=loop.training,
        generator=generator,
    )
    # Training happens as the records are consumed.
    for _ in records:
        pass


def _bare_epoch(loop: Loop, module: FullPUClassifier, images: list[ImageRows]) -> None:
    """Pass through the network, forward and backward, as often as an epoch does, with one batch."""
    training = loop.training
    positive, unlabeled = images
    # Repeated where there are fewer positives than a batch has.
    positive_rows = torch.arange(training.positive_batch_size) % len(positive)
    unlabeled_rows = torch.arange(training.unlabeled_batch_size)
    drawn = [positive.batch(positive_rows), unlabeled.batch(unlabeled_rows)]
    batch = loop.setting.normalize(torch.cat(drawn))
    module.train()
    for _ in range(len(unlabeled) // training.unlabeled_batch_size):
        for parameter in module.parameters():
            parameter.grad = None
        module(batch).mean().backward()


def _naive_batches(loop: Loop) -> Any:
    """Return a DataLoader over the batches of `fit_scores` with a generator of seed 0.

    Augmentation draws from that generator, too: only without it are the batches the same.
    """
    setting = loop.setting
    training = loop.training
    augmentation = loop.augmentation
    positives, pool = setting.data_sets(augmentation.padding_px, augmentation.horizontal_flip)
    positive_store, pool_store = setting.stores
    positive_rows = naive.rows_of_ids(positives, positive_store.index["id"])
    pool_rows = naive.rows_of_ids(pool, pool_store.index["id"])
    n_positive = min(len(positive_store), N_POOL)
    n_pool = min(len(pool_store), N_POOL)

    generator = torch.Generator().manual_seed(0)
    drawn = zip(
        random_batches(n_positive, training.positive_batch_size, generator),
        shuffled_batches(n_pool, training.unlabeled_batch_size, generator),
        strict=True,
    )
    n_batches = n_pool // training.unlabeled_batch_size
    batches = []
    for drawn_positives, drawn_pool in itertools.islice(drawn, n_batches):
        batch = [positive_rows[row] for row in drawn_positives.tolist()]
        # The pool comes after the positives in the joint data set.
        batch += [len(positives) + pool_rows[row] for row in drawn_pool.tolist()]
        batches.append(batch)
    return naive.loader(torch.utils.data.ConcatDataset([positives, pool]), batches)


def _check_equal(loop: Loop, start: FullPUClassifier) -> None:
    """Check that an epoch of both loops without augmentation leads to the same weights."""
    plain_views = loop.augmentation.model_copy(update={"padding_px": 0, "horizontal_flip": False})
    # Several updates, so that the second one starts from what the first one made.
    training = replace(loop.training, unlabeled_batch_size=N_POOL // 8)
    plain = Loop(loop.setting, training, plain_views)
    theirs = copy.deepcopy(start)
    ours = channels_last(copy.deepcopy(start), CPU)
    naive.train_end_to_end(theirs, _naive_batches(plain), CLASS_PRIOR, unfused_sgd(theirs))
    _our_epoch(plain, ours, _resident_images(loop.setting))

    our_parameters = dict(ours.named_parameters())
    their_parameters = dict(theirs.named_parameters())
    n_moved = 0
    for name, before in start.named_parameters():
        after = our_parameters[name]
        distance_moved = (before - after).norm().item()
        difference = (their_parameters[name] - after).norm().item()
        n_moved += distance_moved > 0
        assert difference <= 0.01 * distance_moved, (
            f"{name} differs by {difference:.2g} after a way of {distance_moved:.2g}"
        )
    # Weights that stay where they were would be equal, too.
    assert n_moved > len(our_parameters) / 2, "next to nothing was trained"
