"""Averages of a network's weights over a training, and the BatchNorm statistics that fit them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class WeightAverage:
    """An average of the parameters of a network; call `after_update` after every update.

    With w_1, ..., w_n the parameters after each update, the average is sum_i d^(n-i) w_i divided by
    sum_i d^(n-i). At d = 1 this is the mean of stochastic weight averaging (Izmailov et al. 2018,
    arXiv:1803.05407, Algorithm 1, here of every update). Below, it is the exponential moving
    average with the correction of Adam, which has no trace of the initial weights.

    Args:
        network: the network in training, on its device.
        decay: d in (0, 1].
        n_skipped: updates before those that are averaged.

    Attributes:
        network: see above.
        n_updates: updates so far, with those that are skipped.
    """

    def __init__(self, network: nn.Module, *, decay: float, n_skipped: int = 0) -> None:
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"decay must be above 0 and at most 1, got {decay!r}")
        self.network = network
        self._decay = decay
        self._n_skipped = n_skipped
        self.n_updates = 0
        self._total = 0.0  # sum_i d^(n-i)
        self._average: dict[str, Tensor] = {}

    @property
    def has_started(self) -> bool:
        """Whether an update has been averaged."""
        return self._total > 0.0

    def after_update(self) -> None:
        """Take the parameters as they are now into the average."""
        self.n_updates += 1
        if self.n_updates <= self._n_skipped:
            return
        self._total = self._decay * self._total + 1.0
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name in self._average:
                    self._average[name].lerp_(parameter, 1.0 / self._total)
                else:
                    # A copy: the optimizer changes the parameter itself.
                    self._average[name] = parameter.clone()

    def apply(self) -> None:
        """Give the network its averaged parameters; its buffers stay."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self._average[name])

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "total": self._total, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_updates = state["n_updates"]
        self._total = state["total"]
        # A checkpoint is read to the CPU.
        device = next(self.network.parameters()).device
        self._average = {name: value.to(device) for name, value in state["average"].items()}


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has running statistics that belong to its weights."""
    return bool(_batch_norms(network))


def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of BatchNorm to those of some batches.

    Those of a training belong to the weights that the batches were seen with, and averaged weights
    have others (Izmailov et al. 2018, sec. 3.2). Each statistic becomes the mean over the batches.
    All other layers are in eval mode, so that no random number is drawn.

    Args:
        network: left in the modes that it has.
        batches: (N, C, H, W) normalized images on its device; at least one batch.
    """
    with _reestimating(network), torch.no_grad():
        for images in batches:
            network(images)


def _batch_norms(network: nn.Module) -> list[Any]:
    # torch has no public type for BatchNorm of any dimension.
    found: list[Any] = []
    for module in network.modules():
        if isinstance(module, _BATCH_NORMS) and module.track_running_stats:
            found.append(module)
    return found


@contextmanager
def _reestimating(network: nn.Module) -> Iterator[None]:
    """Put the network into eval mode, and its BatchNorm into one that averages from the start."""
    modes = [(module, module.training) for module in network.modules()]
    norms = _batch_norms(network)
    momenta = [(norm, norm.momentum) for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        # To torch, no momentum means the mean of all batches.
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, is_training in modes:
            module.training = is_training
