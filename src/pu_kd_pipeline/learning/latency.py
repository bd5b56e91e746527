"""How long forward passes take, so that one network gives one number.

Speed drifts during a run (other processes, clock rates, caches), and networks measured one
after another then differ by when they were measured. Here they take turns, in short blocks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

N_BLOCKS = 40
"""Turns of each network. The more there are, the likelier is one without a disturbance."""


@dataclass(frozen=True)
class Latency:
    """The duration of one forward pass."""

    ms: float
    """That of the fastest block, since disturbances only make a block slower."""
    spread_ms: float
    """The median of the blocks minus the fastest: differences up to it mean nothing."""


def measure_latencies(
    passes: Mapping[str, Callable[[], Any]],
    n_repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Return the latency of each forward pass, measured in turns.

    Each network has `N_BLOCKS` blocks of equal length, one at a time: all networks in order, then
    in reverse order, so that none always follows the same one. A block begins with a pass that is
    not counted, because the one before has filled the caches with another network. The duration of
    a block is the median of its passes.

    Args:
        passes: by name, runs one forward pass and returns when it is finished.
        n_repeats: fewest passes of each network that are counted, at least 1; fewer than
            `N_BLOCKS` give as many blocks.
        clock: returns the time in seconds.
    """
    n_blocks = min(N_BLOCKS, n_repeats)
    passes_per_block = -(-n_repeats // n_blocks)  # rounded up
    blocks_s: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for _ in range(n_blocks):
        for name in order:
            duration_s = _block_s(passes[name], passes_per_block, clock)
            blocks_s[name].append(duration_s)
        order.reverse()

    latencies = {}
    for name, durations_s in blocks_s.items():
        fastest_s = min(durations_s)
        spread_s = statistics.median(durations_s) - fastest_s
        latencies[name] = Latency(1000 * fastest_s, 1000 * spread_s)
    return latencies


def _block_s(run_pass: Callable[[], Any], n_passes: int, clock: Callable[[], float]) -> float:
    """Return the median duration of passes that follow each other, after one that is not timed."""
    run_pass()
    times_s = []
    for _ in range(n_passes):
        start_s = clock()
        run_pass()
        end_s = clock()
        times_s.append(end_s - start_s)
    return statistics.median(times_s)


def network_latencies(
    networks: Mapping[str, nn.Module], image_shapes: Mapping[str, tuple[int, ...]], n_repeats: int
) -> dict[str, Latency]:
    """Return the latency of each network on one image, with one thread.

    Args:
        networks: by name; in evaluation mode, and all on one device.
        image_shapes: by the same names, (C, H, W).
        n_repeats: see `measure_latencies`.
    """
    passes = {}
    for name, network in networks.items():
        passes[name] = _forward_pass(network, image_shapes[name])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return measure_latencies(passes, n_repeats)
    finally:
        torch.set_num_threads(n_threads)


def _forward_pass(network: nn.Module, image_shape: tuple[int, ...]) -> Callable[[], Any]:
    """Return a function that runs the network on one image and waits for the result."""
    parameter = next(network.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    image = torch.zeros(1, *image_shape, device=device)

    def run_pass() -> None:
        network(image)
        # Elsewhere a call returns before the result is there.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run_pass
