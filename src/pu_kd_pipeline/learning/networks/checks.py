"""Checks that a network can be used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def check_network(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network turns an image of the stated size into K logits.

    Raises:
        ValueError: it cannot, with what it returned instead.
    """
    with torch.no_grad():
        image = torch.zeros(1, in_channels, size_px, size_px)
        was_training = network.training
        try:
            logits = network.eval()(image)
        except Exception as exc:
            raise ValueError(
                f"the network fails on an image of shape {tuple(image.shape[1:])}: {exc}"
            ) from exc
        finally:
            network.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (1, n_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the network returns {found} for one image; expected logits of shape {(1, n_classes)}"
        )


def check_training(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network in training mode turns two images into two rows of K logits; it is left as it is.

    Raises:
        ValueError: it cannot, with what it returned instead (Inception and GoogLeNet add auxiliary outputs).
    """
    images = torch.zeros(2, in_channels, size_px, size_px)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            logits = copy.deepcopy(network).train()(
                images
            )  # for BatchNorm would remember the images
        except Exception as exc:
            raise ValueError(
                f"the network cannot be trained on images of shape {tuple(images.shape[1:])}: {exc}"
            ) from exc
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"in training mode the network returns {found} for two images; expected logits of shape {(2, n_classes)}. "
            "Switch auxiliary outputs off in the options of the architecture, such as aux_logits: false"
        )
