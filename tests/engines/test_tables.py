"""Every engine makes the same shards, and survives the same faults."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline import progress
from pu_kd_pipeline.engines.current import set_shared_folder
from pu_kd_pipeline.engines.ray_cluster import connect
from pu_kd_pipeline.engines.tables import ShardMakers, work_folder
from pu_kd_pipeline.engines.worker import ShardError
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage.file_cache import FileCache
from pu_kd_pipeline.storage.object_folder import ObjectFolder
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.conftest import PROJECT
from tests.engines.works import ToyWork, engine_of

# In one process: the tests share a Ray cluster.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray: Any = pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    connect(engine_of("ray"))
    # Ray replaces it by its own, with which hooks would not see that a run is to end.
    assert signal.getsignal(signal.SIGTERM) is handler
    yield
    ray.shutdown()


@pytest.fixture(params=["processes", "ray"])
def kind(request: pytest.FixtureRequest) -> str:
    """An engine with workers."""
    if request.param == "ray":
        request.getfixturevalue("_ray")
    return str(request.param)


@pytest.fixture
def work(tmp_path: Path) -> ToyWork:
    folder = tmp_path / "started"
    folder.mkdir()
    return ToyWork(folder)


def makers_of(work: ToyWork, kind: str, *shards: str, **engine: Any) -> ShardMakers:
    arguments = {f"shard-{shard}": shard for shard in shards}
    return ShardMakers(work, arguments, engine=engine_of(kind, **engine))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_files_are_those_of_the_local_engine(work, kind, tmp_path, caplog):
    published: list[Any] = []
    listener = published.append
    shards = ("slow-1", "2", "three", "4")
    local = makers_of(work, "local", *shards)
    ShardedTable.write(tmp_path / "local", local)

    def listen(*event: Any) -> None:
        listener(event)

    progress.results.add(listen)
    try:
        with caplog.at_level(logging.INFO):
            table = ShardedTable.write(tmp_path / kind, makers_of(work, kind, *shards))
    finally:
        progress.results.remove(listen)

    # No other file: neither the work that was sent, nor temporary ones.
    assert contents(tmp_path / kind) == contents(tmp_path / "local")
    assert table.names == tuple(local)
    for shard in shards:
        pids = work.started_by(shard)
        assert len(pids) == 2
        assert os.getpid() == pids[0] != pids[1]
        # What a worker logs and publishes is seen here.
        assert f"made {shard}" in caplog.messages
        assert (shard, {"seed": 1}, {"accuracy": 0.5}) in published


def test_what_workers_are_started_with_is_not_in_the_cache(tmp_path):
    # Of a cluster, each machine may have a cache of its own.
    cache = FileCache.at(tmp_path / "cache", 1_000)
    remote = ObjectFolder("memory", "/bucket/table", {}, cache)
    shared = tmp_path / "checkpoints" / "node"
    set_shared_folder(shared)
    try:
        with work_folder(remote) as place:
            assert place == shared
            assert place.is_dir()
    finally:
        set_shared_folder(None)
    assert not shared.exists()
    assert not cache.folder.exists()

    with work_folder(remote) as place:
        assert place.is_relative_to(cache.folder)
    with work_folder(tmp_path) as place:
        assert place == tmp_path


def test_finished_shards_are_skipped(work, kind, tmp_path):
    ShardedTable.write(tmp_path / "table", makers_of(work, "local", "1", "2", "3"))
    ShardedTable.write(tmp_path / "table", makers_of(work, kind, "1", "2", "3", "4", "5"))
    for shard in ("1", "2", "3"):
        assert work.started_by(shard) == [os.getpid()]
    assert len(work.started_by("4")) == len(work.started_by("5")) == 1


def test_an_error_in_a_shard_is_raised_after_the_others(work, kind, tmp_path):
    shards = ("input-2", "slow-1", "slow-3", "slow-4")
    with pytest.raises(InputError, match="^image input-2 cannot be read: remove it$"):
        ShardedTable.write(tmp_path / "table", makers_of(work, kind, *shards))
    made = {file.stem for file in (tmp_path / "table").iterdir()}
    assert made == {"shard-slow-1", "shard-slow-3", "shard-slow-4"}


@pytest.mark.parametrize(
    ("shard", "error", "message"),
    [
        ("memory-2", UnavailableError, "^no memory is left$"),
        ("bug-2", ShardError, "^shard-bug-2: ZeroDivisionError: bug-2\nTraceback "),
    ],
)
def test_an_error_keeps_its_kind(work, tmp_path, shard, error, message):
    makers = makers_of(work, "processes", shard, "1")
    with pytest.raises(error, match=message) as caught:
        ShardedTable.write(tmp_path / "table", makers)
    assert type(caught.value) is error


def test_a_full_disk_is_one_for_the_process_that_started_the_workers(work, tmp_path):
    makers = makers_of(work, "processes", "disk-1", "2")
    with pytest.raises(ShardError) as caught:
        ShardedTable.write(tmp_path / "table", makers)
    # What decides the message and the exit code of a run.
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_killed_worker_costs_its_shard_in_flight(work, kind, tmp_path, caplog):
    shards = ("1", "dieonce-2", "slow-3", "4", "5")
    ShardedTable.write(tmp_path / "table", makers_of(work, kind, *shards))
    names = ShardedTable.open(tmp_path / "table").names
    assert len(names) == len(shards)
    times = [len(work.started_by(shard)) for shard in shards]
    assert times == [1, 2, 1, 1, 1]
    [lost] = [message for message in caplog.messages if "its worker was lost" in message]
    assert lost.startswith("shard-dieonce-2: ")


def test_workers_that_die_with_nothing_to_do_cost_the_others_nothing(work, kind, tmp_path):
    """Three workers are lost at once, and only one of them had a shard."""
    shards = ("together-1", "together-2", "killall-3")
    makers = makers_of(work, kind, *shards, n_workers=3)
    ShardedTable.write(tmp_path / "table", makers)
    assert len(ShardedTable.open(tmp_path / "table").names) == 3
    assert [len(work.started_by(shard)) for shard in shards] == [1, 1, 2]


def test_a_shard_that_kills_every_worker_is_given_up(work, kind, tmp_path):
    makers = makers_of(work, kind, "die-1", "2", "3")
    with pytest.raises(UnavailableError, match="^shard-die-1: its worker was lost 3 times"):
        ShardedTable.write(tmp_path / "table", makers)
    assert len(work.started_by("die-1")) == 3
    assert {file.stem for file in (tmp_path / "table").iterdir()} == {"shard-2", "shard-3"}


@pytest.mark.slow
def test_a_stall_ends_the_workers_and_names_the_shards_in_work(work, tmp_path):
    # Longer than a worker takes to start on a busy machine.
    makers = makers_of(work, "processes", "1", "hang-2", "3", stall_minutes=0.3)
    with pytest.raises(UnavailableError, match="no shard was finished for 0.3 minutes") as caught:
        ShardedTable.write(tmp_path / "table", makers)
    assert "in work: shard-hang-2. " in str(caught.value)
    wait_for_end(work.started_by("hang-2"))


def test_a_worker_with_other_code_refuses(tmp_path, kind):
    work = ToyWork(tmp_path, {"code or libraries": "version pid"})
    makers = makers_of(work, kind, "1", "2")
    with pytest.raises(InputError, match=r"^a worker on .*: its code or libraries differ from"):
        ShardedTable.write(tmp_path / "table", makers)
    assert list((tmp_path / "table").iterdir()) == []


def wait_for_end(pids: Iterable[int]) -> None:
    """Wait until processes have ended."""
    for pid in pids:
        while is_running(pid):
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    return state_of(pid) not in (None, "Z")


def state_of(pid: int) -> str | None:
    """Return the state of a process; None: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and these in turn."""
    found: set[int] = set()
    parents = [pid]
    while parents:
        parent = parents.pop()
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = {int(child) for child in file.read_text().split()}
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.extend(children - found)
            found |= children
    return found


DRIVER = """
import sys
from pathlib import Path

from pu_kd_pipeline.cli.errors import errors_as_exit_codes
from pu_kd_pipeline.hooks.signals import SignalHooks
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.engines.test_tables import makers_of
from tests.engines.works import ToyWork

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    kind, _, address = sys.argv[2].partition("@")
    with errors_as_exit_codes():
        SignalHooks().before_pipeline_run()
        work = ToyWork(folder)
        makers = makers_of(work, kind, "1", "hang-1", "hang-2", address=address or None)
        ShardedTable.write(folder / "table", makers)
"""
EXIT_CODES = {
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGKILL: -signal.SIGKILL,
}


@pytest.mark.slow
@pytest.mark.parametrize("number", EXIT_CODES)
@pytest.mark.parametrize("place", ["processes", "ray", "ray@"])
def test_workers_end_with_the_run(tmp_path, number, place, request):
    if place == "ray@":
        request.getfixturevalue("_ray")
        import ray

        place += ray.get_runtime_context().gcs_address
    elif place == "ray":
        pytest.importorskip("ray")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), place],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    work = ToyWork(tmp_path)
    started = [tmp_path / f"hang-{shard}.started" for shard in (1, 2)]
    while not all(file.exists() and file.read_text() for file in started):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    own = descendants(driver.pid)
    # Workers, and with Ray its services; of a cluster at an address, none belongs to the run.
    assert len(own) >= {"processes": 2, "ray": 4}.get(place, 0)

    sent = time.monotonic()
    if number == signal.SIGINT:
        # As a terminal does, to all processes of the command.
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    _, message = driver.communicate()
    wait_for_end({*own, *work.started_by("hang-1"), *work.started_by("hang-2")})
    # Seconds, on a machine that is not busy.
    assert time.monotonic() - sent < 90
    assert driver.returncode == EXIT_CODES[number], message
    assert ("Stopped by Ctrl-C." in message) == (number == signal.SIGINT)
    assert "Traceback" not in message
    # What was finished is kept for the next run.
    assert [file.stem for file in (tmp_path / "table").glob("shard-*")] == ["shard-1"]
    if place.startswith("ray@"):
        assert len(ray.nodes()) == 1
        assert ray.nodes()[0]["Alive"]
