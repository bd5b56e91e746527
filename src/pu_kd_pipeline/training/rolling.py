"""Rolling disagreement: several times, the student itself shows what it has not learned yet.

The pool images that a phase of the training draws are those on which the student disagreed with the
teacher when the phase began. No proxy is distilled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pu_kd_pipeline.devices import autocast, inference_batch_size
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.learning.workers import ALONE, Workers
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.storage.manifest import ROLLING
from pu_kd_pipeline.training.batches import Batch
from pu_kd_pipeline.training.sampling import Strata


class RollingDraws:
    """The probabilities with which pool images are drawn, measured again in every phase.

    At the start of each phase but the first, the student answers for a fresh random sample of the
    pool. p = u / n + (1 - u) KL_i / sum KL: KL(teacher || student) at the training temperature of
    an image of the sample, 0 for all others, and the uniform share u. The first phase is uniform.
    It is a part of the training's state, so that a resumed training draws the same images.

    Args:
        options: `n_phases`, `n_sampled` and `uniform_share`, from the attrs of the manifest.
        images: of the training, labeled ones first.
        n_labeled: number of labeled images.
        networks: the student in training, and the teacher in eval mode, on the device.
        normalize: of their images.
        params: seed, temperature and compute settings.
        workers: that train together; each measures its part of the sample.

    Raises:
        InputError: the options are not those of the rule.
    """

    def __init__(
        self,
        options: Any,
        images: ImageRows,
        n_labeled: int,
        networks: tuple[nn.Module, nn.Module],
        normalize: Normalize,
        params: DistillationParams,
        workers: Workers = ALONE,
    ) -> None:
        self._workers = workers
        try:
            self.n_phases = int(options["n_phases"])
            self._n_sampled = int(options["n_sampled"])
            self._uniform_share = float(options["uniform_share"])
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(f"manifest: attrs[{ROLLING!r}] cannot be used: {exc!r}") from exc
        self._images = images
        self._n_labeled = n_labeled
        self._student, self._teacher = networks
        self._normalize = normalize
        self._params = params
        self.phase = 0
        self.probabilities: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        probabilities = self.probabilities
        if probabilities is None:
            probabilities = torch.empty(0, dtype=torch.float64)
        return {"phase": self.phase, "probabilities": probabilities}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phase = state["phase"]
        probabilities = state["probabilities"]
        self.probabilities = probabilities.cpu() if len(probabilities) else None

    def measure(self, phase: int) -> None:
        """Set the probabilities of a phase by the student as it is now."""
        n_pool = len(self._images) - self._n_labeled
        # A fresh sample in every phase, the same one in a resumed training.
        generator = torch.Generator().manual_seed(self._params.seed + phase)
        sample = torch.randperm(n_pool, generator=generator)[: self._n_sampled]
        divergence = self._divergence(sample)
        probabilities = torch.full((n_pool,), 1.0 / n_pool, dtype=torch.float64)
        total = divergence.sum()
        # Where the student agrees everywhere, there is nothing to prefer.
        if total > 0:
            probabilities *= self._uniform_share
            probabilities[sample] += (1.0 - self._uniform_share) * divergence / total
        self.phase = phase
        self.probabilities = probabilities

    def present(self, strata: Strata) -> Strata:
        """Return strata whose last one, the pool, is drawn by the present probabilities."""
        labeled, related, pool = strata.strata
        drawn = replace(pool, probabilities=self.probabilities)
        return replace(strata, strata=(labeled, related, drawn))

    def _divergence(self, sample: Tensor) -> Tensor:
        """Return the (m,) float64 divergence on clean views of (m,) pool images, on the CPU.

        Raises:
            FloatingPointError: it is not finite.
        """
        compute = self._params.compute
        device = self._images.device
        temperature = self._params.temperature
        size = inference_batch_size(compute, device, self._images.image_shape)
        positions = sample + self._n_labeled
        workers = self._workers
        if len(positions) < workers.n:
            workers = ALONE
        parts = []
        was_training = self._student.training
        self._student.eval()
        with torch.no_grad(), autocast(compute, device):
            for rows in workers.own(positions).split(size):
                views = self._normalize(self._images.batch(rows))
                teacher_logits = self._teacher(views).float() / temperature
                student_logits = self._student(views).float() / temperature
                parts.append(kl_divergence(teacher_logits, student_logits).double().cpu())
        self._student.train(was_training)
        divergence = workers.gather_uneven(torch.cat(parts), len(positions))
        if not divergence.isfinite().all():
            raise FloatingPointError("the student's disagreement with the teacher is not finite")
        return divergence


def rolling_batches(
    draws: RollingDraws,
    strata: Strata,
    make_batches: Callable[[Strata, int], Iterator[Batch]],
    n_updates: int,
    n_passed: int,
) -> Iterator[Batch]:
    """Yield the batches of a training; the student is measured when the first of a phase is due.

    Args:
        draws: of the pool; a phase that it has measured already is not measured again.
        strata: of the training; the last stratum is the pool.
        make_batches: (strata, batches to skip) -> an iterator of batches.
        n_updates: of the whole training.
        n_passed: batches that an interrupted training has used.
    """
    for phase in range(draws.n_phases):
        start = phase * n_updates // draws.n_phases
        end = (phase + 1) * n_updates // draws.n_phases
        first = max(start, n_passed)
        if first >= end:
            continue
        if phase > 0 and draws.phase < phase:
            draws.measure(phase)
        batches = make_batches(draws.present(strata), first)
        # Batches that are read ahead are those of this phase: none is taken after its end.
        yield from islice(batches, end - first)
