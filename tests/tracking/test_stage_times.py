"""Time, memory and pace of the stages of a run."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from pu_kd_pipeline import progress
from pu_kd_pipeline.tracking.stage_times import StageTimes


def test_stages_have_their_time_memory_and_pace():
    times = StageTimes()
    times.start("pool.read", "pool")
    held = bytearray(200 * 1024 * 1024)
    # Written to, or the system gives no memory.
    held[::4096] = b"x" * len(held[::4096])
    times.add_pace("images", 300, 2.0)
    times.touch()
    del held
    time.sleep(0.02)
    times.start("pool.score", "pool")
    times.add_pace("images", 100, 2.0)
    # The same node again, as for each of its inputs.
    times.start("pool.score", "pool")
    times.touch()
    times.start("report", None)
    times.touch()
    times.finish()

    metrics = times.metrics()
    assert metrics["stages/pool/images_per_second"] == pytest.approx(100)
    assert metrics["stages/pool/seconds"] == sum(node.seconds for node in times.nodes[:2])
    # What was freed before a node is not its peak.
    freed = metrics["stages/pool/peak_memory_mb"] - metrics["stages/report/peak_memory_mb"]
    assert freed > 150
    assert "stages/report/images_per_second" not in metrics

    page = times.page(["ingest <x>"])
    assert page.count("<rect") == 3
    assert "ingest &lt;x&gt;" in page
    for outside in ("http", "src=", "<script", "@import"):
        assert outside not in page


def test_inputs_that_load_in_threads_are_one_node():
    times = StageTimes()
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        times.start("pool.read", "pool")

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.touch()
    times.finish()
    assert [node.node for node in times.nodes] == ["pool.read"]


def test_the_memory_of_a_gpu_is_that_of_the_busiest(monkeypatch):
    peaks = {0: 0, 1: 3 << 20}
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=lambda device: peaks.update({device: peaks[device] // 3}),
        max_memory_allocated=peaks.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    times = StageTimes()
    times.start("train", None)
    peaks[1] += 4 << 20
    times.touch()
    times.finish()
    assert times.metrics()["stages/train/gpu_memory_mb"] == 5


def test_repeated_records_of_a_resumed_loop_do_not_count(monkeypatch):
    # Long, because a busy machine may hold a loop for a moment.
    monkeypatch.setattr(progress, "SHORTEST_STEP_S", 0.2)
    found = []

    def listen(*pace):
        found.append(pace)

    def records():
        for update in range(100, 900, 100):
            yield {"update": update, "loss": 1.0}
        for update in (900, 1000):
            time.sleep(0.25)
            yield {"update": update, "loss": 1.0}

    progress.paces.add(listen)
    try:
        list(progress.watch(records(), name="distillation", total=10))
    finally:
        progress.paces.remove(listen)
    [(unit, n_updates, seconds)] = found
    assert unit == "updates"
    assert n_updates == 200
    assert 0.5 <= seconds < 30


def test_a_loop_of_epochs_has_epochs_per_second(monkeypatch):
    monkeypatch.setattr(progress, "SHORTEST_STEP_S", 0.0)
    found = []

    def listen(*pace):
        found.append(pace[:2])

    progress.paces.add(listen)
    try:
        # The number of updates is no step here.
        records = [{"epoch": 1, "update": 50}, {"epoch": 2, "update": 100}]
        list(progress.watch(records, name="pu_training", total=2))
        list(progress.watch([{"loss": 1.0}], name="nothing to count", total=1))
    finally:
        progress.paces.remove(listen)
    # Nor is the start of the first one known.
    assert found == [("epochs", 1)]
