"""BatchNorm and dropout of a whole batch, of which every worker holds a part."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pu_kd_pipeline.learning.workers import Workers

# Attributes of a layer.
_WORKERS = "_workers"
_SECTIONS = "_sections"
_N_PROBED = 4  # images
# Of the largest value: rounding depends on the size of a batch, and layers make it larger.
_TOLERANCE = 1e-3


class NotShareableError(ValueError):
    """Several workers cannot train a network as one process would; the message begins with it."""


@contextmanager
def synchronized(
    network: nn.Module, workers: Workers, sections: Sequence[int] = ()
) -> Iterator[None]:
    """Let BatchNorm and dropout of a network act on the whole batch inside the `with` block.

    BatchNorm normalizes by the mean and the variance of all workers' images, and dropout draws the
    numbers of the whole batch, so that they are those of one process. The layers stay the same
    objects, with their parameters, buffers and hooks; nothing of this is saved.

    Args:
        network: on its device. Every worker calls it with equally many images.
        workers: that train together; for one, nothing changes.
        sections: sizes of the sections of the whole batch, of each of which every worker has its
            part; none: the batch is one section.

    Raises:
        NotShareableError: a layer normalizes batches, or drops values, in a way of its own; or,
            inside the block, dropout gets another number of items for each image.
    """
    if workers.n == 1:
        yield
        return
    former = []
    for name, layer in network.named_modules():
        changed = _shared_kind(name, layer)
        if changed is not None:
            former.append((layer, type(layer), changed))
    for layer, _, changed in former:
        layer.__class__ = changed
        setattr(layer, _WORKERS, workers)
        setattr(layer, _SECTIONS, tuple(sections))
    try:
        yield
    finally:
        for layer, kind, _ in former:
            layer.__class__ = kind
            delattr(layer, _WORKERS)
            delattr(layer, _SECTIONS)


def check_shareable(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Check that several workers compute with a network what one process would.

    Beyond BatchNorm and layers of dropout it must not draw random numbers in training, such as by a
    function that its `forward` calls, which would be the same for the parts of all workers. And
    what it does with an image must not depend on the other images of the batch.

    Args:
        network: left in the modes and with the weights that it has.
        image_shape: (C, H, W) of an image.

    Raises:
        NotShareableError: it does.
    """
    for name, layer in network.named_modules():
        _shared_kind(name, layer)
    state = dict([*network.named_parameters(), *network.named_buffers()])
    before = {name: value.detach().clone() for name, value in state.items()}
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    for module in network.modules():
        # They are shared by `synchronized`. BatchNorm would also count the images.
        if type(module) in (*_BATCH_NORMS, *_masking_layers()):
            module.eval()
    try:
        _check_images_are_independent(network, image_shape, before)
    finally:
        _restore(network, before)
        for module, is_training in modes:
            module.training = is_training


def _check_images_are_independent(
    network: nn.Module, image_shape: tuple[int, int, int], state: Mapping[str, Tensor]
) -> None:
    device = next(network.parameters()).device
    # Noise, because zeros would hide how images differ.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_N_PROBED, *image_shape, generator=generator).to(device)
    random_before = _random_states(device)
    whole, state_after = _outputs(network, images, state)
    if _random_states(device) != random_before:
        raise NotShareableError(
            "it draws random numbers in training outside of torch's layers of dropout, which "
            "several workers would draw otherwise than one"
        )
    parts = []
    # Parts as workers have them; not single images, for which some layers have no variance.
    for part in images.chunk(_N_PROBED // 2):
        outputs, state_after_part = _outputs(network, part, state)
        parts.append(outputs)
        for name, value in state_after.items():
            # Spectral norm changes its state, too, but in the same way with any images.
            if not _is_close(state_after_part[name], value):
                raise NotShareableError(
                    f"its state {name} changes in training by the images of a batch, of which each "
                    "worker sees a part"
                )
    if not _is_close(torch.cat(parts), whole):
        raise NotShareableError(
            "what it computes from an image depends on the other images of the batch, of which "
            "each worker sees a part: a layer other than torch's BatchNorm computes with the whole "
            "batch, or BatchNorm has track_running_stats=False"
        )


def _outputs(
    network: nn.Module, images: Tensor, state: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs for images from a given state, and the buffers after that."""
    _restore(network, state)
    # In full precision: TF32 has fewer digits, and sizes of batches differ in when it is used.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        outputs = network(images)
    buffers = {name: value.clone() for name, value in network.named_buffers() if name in state}
    return outputs, buffers


def _restore(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name in state:
                value.copy_(state[name])


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Return whether tensors are equal up to rounding."""
    if found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 1.0
    tolerance = _TOLERANCE * scale
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def _shared_kind(name: str, layer: nn.Module) -> type | None:
    """Return the type that a layer has while workers share it; None: each works by itself.

    Args:
        name: of the layer, for messages.
        layer: of a network.

    Raises:
        NotShareableError: a subclass may compute something else than what workers share.
    """
    kind = type(layer)
    masking = _masking_layers()
    if kind in masking:
        return _masking(kind)  # type: ignore[arg-type]
    if kind in _BATCH_NORMS:
        return _BATCH_NORMS[kind]
    what = ""
    if isinstance(layer, _BatchNorm):
        what = "normalizes batches"
    if isinstance(layer, tuple(masking)):
        what = "drops values"
    if what:
        raise NotShareableError(
            f"its layer {name} ({kind.__name__}) {what} in a way of its own, which cannot be "
            "computed by several workers: use torch's own class"
        )
    return None


def _masking_layers() -> dict[Any, int | None]:
    """Return the layers that multiply their input by random numbers, which do not depend on it.

    With each, how many of the first axes it draws numbers for; None: for all.
    """
    # Torchvision takes seconds to import, and one worker does not need it.
    from pu_kd_pipeline.learning.networks.vision import torchvision

    depth = torchvision.ops.StochasticDepth
    return {nn.Dropout: None, nn.Dropout1d: 2, nn.Dropout2d: 2, nn.Dropout3d: 2, depth: 1}


def _random_states(device: torch.device) -> list[Any]:
    """Return the states of all global generators that a network may draw from."""
    states: list[Any] = [random.getstate(), torch.get_rng_state().tolist()]
    # Networks of others may use the generator that is shared.
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002
    states += [np.asarray(numbers).tolist(), rest]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).tolist())
    return states


class _SynchronizedBatchNorm(_BatchNorm):
    """Normalizes by the mean and the variance of all workers' images.

    torch.nn.SyncBatchNorm does the same on GPUs alone.
    """

    _workers: Workers

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # As BatchNorm does under autocast: bf16 has too few digits for a variance.
        values = input.float()
        axes = [axis for axis in range(input.ndim) if axis != 1]
        own_variance, own_mean = torch.var_mean(values, axes, correction=0)
        own = torch.stack([own_mean, own_variance])
        # (n, C) each; the mean over workers is that over images, because their parts are equal.
        means, variances = self._workers.gather(own.unsqueeze(0)).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        n_values = self._workers.n * input.numel() // input.shape[1]
        self._update_statistics(mean.detach(), variance.detach(), n_values)

        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = [1, -1] + [1] * (input.ndim - 2)
        normalized = torch.addcmul(shift.view(shape), values, scale.view(shape))
        return normalized.to(input.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor, n_values: int) -> None:
        if not self.track_running_stats or self.running_mean is None:
            return
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:
                # To torch, no momentum means the mean of all batches.
                momentum = 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (n_values / max(n_values - 1, 1)), momentum)


class _BatchNorm1d(_SynchronizedBatchNorm, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_SynchronizedBatchNorm, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_SynchronizedBatchNorm, nn.BatchNorm3d):
    pass


_BATCH_NORMS: dict[type, type] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}


@cache
def _masking(kind: Any) -> type:
    """Return a subclass of a layer whose mask is this worker's part of that of the whole batch."""
    n_axes = _masking_layers()[kind]

    def forward(self: Any, input: Tensor) -> Tensor:
        if not self.training:
            return kind.forward(self, input)  # type: ignore[no-any-return]
        shape = list(input.shape)
        if n_axes is not None:
            # What is dropped as a whole needs one number.
            shape[n_axes:] = [1] * (input.ndim - n_axes)
        shape[0] *= self._workers.n
        mask = kind.forward(self, _ones(shape, input))
        # A copy: the backward pass would keep a view, and with it the whole mask.
        return input * _own_part(mask, self._workers, self._sections).clone()

    return type(f"_{kind.__name__}", (kind,), {"forward": forward})


def _ones(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return ones with the type and device of a tensor, and its order in memory.

    Torch draws in that order: images and tokens may be in another one than that of their axes.
    """
    axes = sorted(range(like.ndim), key=like.stride, reverse=True)
    ones = torch.ones([shape[axis] for axis in axes], device=like.device, dtype=like.dtype)
    places = [axes.index(axis) for axis in range(like.ndim)]
    return ones.permute(places)


def _own_part(items: Tensor, workers: Workers, sections: Sequence[int]) -> Tensor:
    """Return this worker's part of each section of a whole batch.

    Args:
        items: (N, ...) of the whole batch.
        workers: this one, and how many there are.
        sections: number of images of each section; none: the batch is one.

    Raises:
        NotShareableError: a layer has another number of items for each image in each section.
    """
    if not sections:
        return workers.own(items)
    n_each, rest = divmod(len(items), sum(sections))
    if rest:
        raise NotShareableError(
            f"a layer of dropout got {len(items)} items of {sum(sections)} images, which cannot "
            "be divided among workers"
        )
    sizes = [n_each * size for size in sections]
    return torch.cat([workers.own(section) for section in items.split(sizes)])
