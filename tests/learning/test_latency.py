"""Latencies: the procedure, by a clock that does what the test says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.latency import (
    N_BLOCKS,
    Latency,
    measure_latencies,
    network_latencies,
)


class Machine:
    """A clock that forward passes move on, by a duration that depends on the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []
        self.slowdown = lambda now_s: 1.0

    def clock(self) -> float:
        return self.now_s

    def network(self, name: str, ms: float):
        def run_pass() -> None:
            # The first pass after another network finds cold caches.
            is_cold = not self.calls or self.calls[-1] != name
            factor = self.slowdown(self.now_s) * (10 if is_cold else 1)
            self.calls.append(name)
            self.now_s += factor * ms / 1000

        return run_pass


def test_a_steady_machine_gives_the_duration_without_spread():
    machine = Machine()
    passes = {"teacher": machine.network("teacher", 5), "student": machine.network("student", 1)}
    latencies = measure_latencies(passes, 30, clock=machine.clock)
    assert latencies["teacher"].ms == pytest.approx(5)
    assert latencies["student"].ms == pytest.approx(1)
    for latency in latencies.values():
        assert latency.spread_ms == pytest.approx(0, abs=1e-9)


def test_one_network_measured_twice_gives_one_number_although_the_machine_slows_down():
    machine = Machine()
    # Another process starts in the middle: measured one after the other, 1 ms and 2 ms.
    machine.slowdown = lambda now_s: 1.0 if now_s < 0.3 else 2.0
    passes = {"first": machine.network("first", 1), "second": machine.network("second", 1)}
    latencies = measure_latencies(passes, 200, clock=machine.clock)
    first, second = latencies["first"], latencies["second"]
    assert first.ms == pytest.approx(1)
    assert second.ms == pytest.approx(1)
    assert abs(first.ms - second.ms) <= min(first.spread_ms, second.spread_ms) + 1e-9


def test_a_disturbance_is_not_in_the_latency_but_in_the_spread():
    machine = Machine()
    # A quarter of the time at full speed.
    machine.slowdown = lambda now_s: 1.0 if int(now_s * 20) % 4 == 0 else 1.5
    latency = measure_latencies(
        {"student": machine.network("student", 1)}, 600, clock=machine.clock
    )
    assert latency["student"].ms == pytest.approx(1)
    assert latency["student"].spread_ms == pytest.approx(0.5)


def test_networks_take_turns_in_blocks_in_alternating_order():
    machine = Machine()
    passes = {name: machine.network(name, 1) for name in "abc"}
    measure_latencies(passes, 2 * N_BLOCKS, clock=machine.clock)
    # A block: one pass that is not counted, and two that are.
    first_turn = "aaabbbccc"
    expected = first_turn
    for turn in range(1, N_BLOCKS):
        expected += first_turn[::-1] if turn % 2 else first_turn
    assert "".join(machine.calls) == expected


@pytest.mark.parametrize(("n_repeats", "n_calls"), [(1, 2), (3, 6), (N_BLOCKS + 1, 3 * N_BLOCKS)])
def test_few_repeats_give_fewer_blocks_and_at_least_as_many_passes(n_repeats: int, n_calls: int):
    machine = Machine()
    latencies = measure_latencies(
        {"student": machine.network("student", 1)}, n_repeats, clock=machine.clock
    )
    assert len(machine.calls) == n_calls
    assert isinstance(latencies["student"], Latency)


def test_networks_run_with_one_thread_and_the_number_of_threads_is_restored():
    threads = []

    class Network(nn.Linear):
        def forward(self, images):
            threads.append(torch.get_num_threads())
            assert torch.is_inference_mode_enabled()
            return super().forward(images.flatten(1))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        latencies = network_latencies({"a": Network(4, 2)}, {"a": (1, 2, 2)}, n_repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert latencies["a"].ms > 0


def test_a_network_without_parameters_is_measured():
    latencies = network_latencies({"a": nn.Flatten()}, {"a": (1, 2, 2)}, n_repeats=1)
    assert latencies["a"].ms > 0
