"""Checks that a network can be used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.networks.outputs import (
    OutputError,
    describe_output,
    output_entries,
)


def check_network(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network turns an image of the stated size into K logits.

    Raises:
        ValueError: it does not; the message holds what it returned instead.
    """
    with torch.no_grad():
        image = torch.zeros(1, in_channels, size_px, size_px)
        was_training = network.training
        try:
            logits = network.eval()(image)
        except OutputError:
            raise
        except Exception as exc:
            raise ValueError(
                f"the network fails on an image of shape {tuple(image.shape[1:])}: {exc}"
            ) from exc
        finally:
            network.train(was_training)
    expected = (1, n_classes)
    if not _has_shape(logits, expected):
        raise ValueError(
            f"the network returns {describe_output(logits)} for one image; "
            f"expected logits of shape {expected}{_hint(logits, expected)}"
        )


def check_training(network: nn.Module, n_classes: int, in_channels: int, size_px: int) -> None:
    """Check that a network in training mode turns two images into two rows of K logits.

    The network and torch's random state stay unchanged.

    Raises:
        ValueError: it does not (Inception and GoogLeNet add auxiliary outputs); the message holds
            what it returned instead.
    """
    # BatchNorm in training mode refuses a single image of one pixel
    images = torch.zeros(2, in_channels, size_px, size_px)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            # A copy, because BatchNorm would update its statistics.
            logits = copy.deepcopy(network).train()(images)
        except OutputError:
            raise
        except Exception as exc:
            raise ValueError(
                f"the network cannot be trained on images of shape {tuple(images.shape[1:])}: {exc}"
            ) from exc
    expected = (2, n_classes)
    if not _has_shape(logits, expected):
        raise ValueError(
            f"in training mode the network returns {describe_output(logits)} for two images; "
            f"expected logits of shape {expected}. Switch auxiliary outputs off in the options of "
            "the architecture, such as aux_logits: false"
        )


def _has_shape(output: object, shape: tuple[int, ...]) -> bool:
    return isinstance(output, Tensor) and output.shape == shape


def _hint(output: object, expected: tuple[int, int]) -> str:
    """Return how to get logits from what a network returned; empty if it is unknown."""
    if isinstance(output, Tensor):
        if output.ndim == 4 and output.shape[:2] == expected:
            return ": use a factory (package.module:function) whose network flattens its output"
        return ""
    keys = [key for key, value in output_entries(output).items() if _has_shape(value, expected)]
    if not keys:
        return ""
    choices = " or ".join(map(str, keys))
    return f": of a teacher, set teacher.output.key to the entry that holds them ({choices})"
