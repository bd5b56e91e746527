"""How shards are distributed among workers of any kind."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from pu_kd_pipeline.engines.shards import _Distribution, map_shards
from pu_kd_pipeline.engines.worker import Answer, Lost
from pu_kd_pipeline.errors import InputError, UnavailableError
from tests.engines.works import ToyWork, engine_of

Reaction = Callable[[int, str | None], "Answer | Lost | None"]


def lost(reason: str, had_begun: bool = False) -> Lost:
    return Lost(reason, had_begun)


class ScriptedWorkers:
    """Workers that answer as a function says: of the worker, and its shard (None: at the start)."""

    def __init__(self, reaction: Reaction) -> None:
        self._reaction = reaction
        self.n_started = 0
        self.events: list[tuple[int, Answer | Lost]] = []
        self.submitted: list[tuple[int, str]] = []

    def start(self) -> int:
        worker = self.n_started
        self.n_started += 1
        self._react(worker, None)
        return worker

    def submit(self, worker: int, name: str, argument: Any) -> None:
        self.submitted.append((worker, name))
        self._react(worker, name)

    def wait(self, timeout_s: float) -> list[tuple[int, Answer | Lost]]:
        events = self.events
        self.events = []
        return events

    def stop(self) -> None: ...

    def _react(self, worker: int, name: str | None) -> None:
        event = self._reaction(worker, name)
        if event is not None:
            self.events.append((worker, event))


def results_of(
    reaction: Reaction, n_shards: int, n_workers: int = 2, stall_s: float = 5.0
) -> tuple[list[str], ScriptedWorkers]:
    workers = ScriptedWorkers(reaction)
    arguments = {f"s{number}": number for number in range(n_shards)}
    distribution = _Distribution(workers, arguments, stall_s)
    return [name for name, _ in distribution.results(n_workers)], workers


def test_each_worker_has_one_shard_at_a_time():
    finished, workers = results_of(lambda _worker, _name: Answer("done"), n_shards=5)
    assert sorted(finished) == ["s0", "s1", "s2", "s3", "s4"]
    assert [name for _, name in workers.submitted] == ["s0", "s1", "s2", "s3", "s4"]
    assert {worker for worker, _ in workers.submitted} == {0, 1}


def test_a_worker_that_never_starts_holds_up_nothing():
    def reaction(worker: int, _name: str | None) -> Answer | None:
        return None if worker == 0 else Answer("done")

    finished, _ = results_of(reaction, n_shards=4)
    assert len(finished) == 4


def test_a_worker_that_is_lost_while_it_waits_gets_no_shard():
    workers: ScriptedWorkers

    def reaction(worker: int, name: str | None) -> Answer | Lost:
        if name is None or worker == 2:
            return Answer("done")
        # The one that has nothing to do, and then the one with the shard.
        workers.events.append((1 - worker, lost("its node is gone")))
        return lost("its node is gone", had_begun=True)

    workers = ScriptedWorkers(reaction)
    results = list(_Distribution(workers, {"s0": 0}, 5.0).results(2))
    assert results == [("s0", None)]
    assert workers.submitted == [(1, "s0"), (2, "s0")]


def test_workers_that_were_lost_before_they_began_cost_a_shard_no_attempt():
    """One machine with six workers is gone, and nothing has said so before they get a shard."""

    def reaction(worker: int, name: str | None) -> Answer | Lost:
        if name is None or worker > 5:
            return Answer("done")
        return lost("its node is gone")

    finished, workers = results_of(reaction, n_shards=1, n_workers=6)
    assert finished == ["s0"]
    assert len(workers.submitted) == 7


def test_a_shard_is_begun_three_times_however_often_it_was_sent():
    n_begun = 0

    def reaction(worker: int, name: str | None) -> Answer | Lost:
        nonlocal n_begun
        if name is None:
            return Answer("done")
        # Every second worker ends before it begins.
        had_begun = worker % 2 == 1
        n_begun += had_begun
        return lost("it was killed by SIGKILL", had_begun)

    message = "^s0: its worker was lost 3 times, the last one because it was killed by SIGKILL"
    with pytest.raises(UnavailableError, match=message):
        results_of(reaction, n_shards=1, n_workers=4)
    assert n_begun == 3


def test_workers_that_never_begin_are_not_replaced_for_ever():
    def reaction(_worker: int, name: str | None) -> Answer | Lost:
        return Answer("done") if name is None else lost("the machine is out of memory")

    message = r"^engine: \d+ workers in a row ended before they made a shard, .* out of memory$"
    with pytest.raises(UnavailableError, match=message):
        results_of(reaction, n_shards=5, n_workers=3)


def test_idle_workers_that_end_are_not_replaced_for_ever():
    workers: ScriptedWorkers

    def reaction(worker: int, name: str | None) -> Answer | Lost | None:
        # As soon as one is ready, it is lost.
        if name is None:
            workers.events.append((worker, Answer("done")))
            return lost("its node is gone")
        return None

    workers = ScriptedWorkers(reaction)
    with pytest.raises(UnavailableError, match=r"^engine: \d+ workers in a row"):
        list(_Distribution(workers, {"s0": 0, "s1": 0}, 5.0).results(2))
    assert workers.n_started < 10


def test_workers_may_be_lost_again_once_a_shard_was_finished():
    """The limit is on what happens in a row: a run of weeks may lose many workers."""
    lost_at = set()

    def reaction(worker: int, name: str | None) -> Answer | Lost:
        # Each shard loses its first three workers before they begin.
        if name is None:
            return Answer("done")
        lost_at.add((worker, name))
        n_tries = sum(each == name for _, each in lost_at)
        return Answer("done") if n_tries == 4 else lost("its node is gone")

    finished, _ = results_of(reaction, n_shards=30, n_workers=1)
    assert len(finished) == 30


def test_workers_that_end_at_their_start_are_not_started_for_ever():
    with pytest.raises(UnavailableError, match=r"^engine: 4 workers in a row ended .* exit code 9"):
        results_of(lambda _worker, _name: lost("it ended with exit code 9"), n_shards=4)


def test_lost_starts_do_not_end_the_shards_in_work():
    def reaction(worker: int, _name: str | None) -> Answer | Lost:
        return Answer("done") if worker == 0 else lost("memory ran out")

    finished, workers = results_of(reaction, n_shards=6, n_workers=8)
    assert len(finished) == 6
    assert {worker for worker, _ in workers.submitted} == {0}


def test_a_late_refusal_lets_the_shards_in_work_finish():
    workers: ScriptedWorkers

    def reaction(worker: int, name: str | None) -> Answer | Lost | None:
        if worker == 2:
            return Answer("refused", "its code differs")
        if name == "s0":
            return lost("it was killed", had_begun=True)
        # Answered only once the new worker has refused.
        return None if name == "s1" else Answer("done")

    workers = ScriptedWorkers(reaction)
    distribution = _Distribution(workers, {f"s{number}": 0 for number in range(5)}, 5.0)
    finished = []
    waits = 0

    def wait(timeout_s: float) -> list[tuple[int, Answer | Lost]]:
        nonlocal waits
        waits += 1
        events, workers.events = workers.events, []
        if not events and waits > 3:
            [late] = [worker for worker, name in workers.submitted if name == "s1"]
            events = [(late, Answer("done"))]
        return events

    workers.wait = wait
    with pytest.raises(InputError, match="^its code differs$"):
        for name, _ in distribution.results(2):
            finished.append(name)
    assert finished == ["s1"]


def test_time_in_which_the_run_was_stopped_is_no_stall(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 50_000.0, 50_001.0, 50_002.0])
    monkeypatch.setattr("pu_kd_pipeline.engines.shards.time.monotonic", lambda: next(clock))
    answers = iter([[], [], [], [(0, Answer("done"))]])

    def reaction(_worker: int, name: str | None) -> Answer | None:
        return Answer("done") if name is None else None

    workers = ScriptedWorkers(reaction)
    first_wait = workers.wait
    workers.wait = lambda timeout_s: first_wait(timeout_s) or next(answers)
    results = _Distribution(workers, {"s0": 0}, 100.0).results(1)
    assert [name for name, _ in results] == ["s0"]


def test_a_stall_names_the_shards_in_work():
    def reaction(_worker: int, name: str | None) -> Answer | None:
        return Answer("done") if name in (None, "s0") else None

    message = r"^engine: no shard was finished for 0.005 minutes; in work: s1, s2\. "
    with pytest.raises(UnavailableError, match=message):
        results_of(reaction, n_shards=4, stall_s=0.3)


def test_a_stall_without_any_worker_says_so():
    with pytest.raises(UnavailableError, match="in work: none, because no worker is ready"):
        results_of(lambda _worker, _name: None, n_shards=4, stall_s=0.1)


def test_after_ten_failed_shards_no_others_are_started(caplog):
    def reaction(_worker: int, name: str | None) -> Answer:
        return Answer("done") if name is None else Answer("input", f"the disk is full, {name}")

    workers = ScriptedWorkers(reaction)
    arguments = {f"s{number}": number for number in range(100)}
    with pytest.raises(InputError, match="^the disk is full, s0$"):
        list(_Distribution(workers, arguments, 5.0).results(2))
    assert 10 <= len(workers.submitted) <= 11
    assert "9 further shards failed" in caplog.text or "10 further shards failed" in caplog.text


class ReloadedWork(ToyWork):
    """Of code that is not known."""

    def facts(self) -> dict[str, str]:
        return {"code or libraries": uuid.uuid4().hex}


def test_code_that_is_not_known_is_refused_before_workers_start(tmp_path):
    work = ReloadedWork(tmp_path)
    with pytest.raises(InputError, match=r"restart this process, or set engine\.kind to local"):
        list(map_shards(work, {"a": "1", "b": "2"}, engine_of("processes"), tmp_path))
