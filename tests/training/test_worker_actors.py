"""What decides, without a cluster, whether and where workers of a training are started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pu_kd_pipeline.engines.current import set_engine
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.params.compute import TrainingWorkersParams
from pu_kd_pipeline.training import worker_teams
from pu_kd_pipeline.training.worker_actors import WorkerHost, _check_size, _places
from pu_kd_pipeline.training.worker_members import EndedWorkerError, interface_of
from pu_kd_pipeline.training.worker_teams import by_workers
from tests.engines.works import engine_of
from tests.training import worker_trainings
from tests.training.scene import COMPUTE

HOSTS = [("10.0.0.5", 4711, "eth0"), ("10.0.0.6", 4712, None)]
TWO = TrainingWorkersParams(n=2, timeout_s=5)


def cluster(*machines: dict[str, float]) -> Any:
    nodes = [{"Alive": True, "Resources": resources} for resources in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    return SimpleNamespace(nodes=lambda: nodes)


def test_a_cluster_that_is_too_small_is_refused_at_once() -> None:
    _check_size(cluster({"CPU": 2.0}, {"CPU": 1.0}), n=3, n_cpus=1, n_gpus=0)
    with pytest.raises(InputError, match="3 workers need a CPU each, and .* a place for 2: add"):
        _check_size(cluster({"CPU": 2.0}), n=3, n_cpus=1, n_gpus=0)
    with pytest.raises(InputError, match="2 workers need a CPU and a GPU each, and .* for 1: add"):
        _check_size(cluster({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}), n=2, n_cpus=1, n_gpus=1)


def test_machines_that_are_each_too_small_have_no_place_for_a_worker() -> None:
    machines = [{"CPU": 4.0}] * 4
    _check_size(cluster(*machines), n=4, n_cpus=4, n_gpus=0)
    message = r"2 workers need 8 CPUs \(compute.n_threads\) each, and .* a place for 0: add"
    with pytest.raises(InputError, match=message):
        _check_size(cluster(*machines), n=2, n_cpus=8, n_gpus=0)


def test_workers_of_a_cluster_meet_at_the_first_one() -> None:
    places = _places(HOSTS, "cpu", None)
    assert [place.rank for place in places] == [0, 1]
    environments = [place.environment() for place in places]
    for place, environment in zip(places, environments, strict=True):
        assert place.rendezvous == "tcp://10.0.0.5:4711"
        assert environment["WORLD_SIZE"] == "2"
        # A GPU that the run does not use must not be one that a worker uses.
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environments[0]["GLOO_SOCKET_IFNAME"] == "eth0"
    assert "GLOO_SOCKET_IFNAME" not in environments[1]


def test_each_worker_of_a_cluster_sees_its_own_gpu_alone() -> None:
    for place in _places(HOSTS, "cuda", None):
        environment = place.environment()
        assert (environment["LOCAL_RANK"], environment["LOCAL_WORLD_SIZE"]) == ("0", "1")
        # Ray has set it.
        assert "CUDA_VISIBLE_DEVICES" not in environment


def test_a_machine_that_does_not_see_the_data_folder_refuses(tmp_path: Path) -> None:
    [place, _] = _places(HOSTS, "cpu", 1)
    refusal = WorkerHost().start(place, tmp_path / "elsewhere", [], os.getcwd())
    assert refusal is not None
    assert f"cannot read {tmp_path / 'elsewhere'}: the data folder has to be on" in refusal
    # Nothing was started that would have to be ended.
    host = WorkerHost()
    host.end()


def test_a_worker_that_cannot_write_to_its_folder_refuses(tmp_path: Path) -> None:
    [place, _] = _places(HOSTS, "cpu", 1)
    (tmp_path / "worker-0.log").mkdir()
    refusal = WorkerHost().start(place, tmp_path, [], os.getcwd())
    assert refusal is not None
    assert "cannot be started: " in refusal
    assert "worker-0.log" in refusal


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone is asked")
def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch):
    """A function: what happens to each team -> a training on a cluster, and the teams' folders."""
    folders: list[Path] = []

    def trained_by(*fates: Exception | bytes) -> list[Path]:
        remaining = iter(fates)

        def actor_members(*arguments: Any) -> list[Any]:
            [folder] = [value for value in arguments if isinstance(value, Path)]
            assert any(folder.iterdir())
            folders.append(folder)
            fate = next(remaining)
            if isinstance(fate, Exception):
                raise fate
            member = SimpleNamespace(messages=lambda: iter([("result", (fate,))]), end=lambda: None)
            return [member]

        monkeypatch.setattr(worker_teams, "actor_members", actor_members)
        return folders

    set_engine(engine_of("ray"))
    yield trained_by
    set_engine(LOCAL)


def train() -> Any:
    return by_workers(worker_trainings.fails_in_one_worker, TWO, COMPUTE, "student")()


def test_a_training_is_started_again_after_two_losses(teams, caplog) -> None:
    lost = EndedWorkerError("its machine is gone")
    folders = teams(lost, lost, b"N.")  # the pickle of None
    assert train() is None
    assert len(set(folders)) == 3
    message = "all workers start again from the last checkpoint: its machine is gone"
    assert caplog.messages.count(message) == 2
    assert not any(folder.exists() for folder in folders)


def test_after_the_third_loss_the_run_ends(teams) -> None:
    lost = EndedWorkerError("its machine is gone")
    folders = teams(lost, lost, lost, b"N.")
    with pytest.raises(UnavailableError, match="^its machine is gone. The same command resumes"):
        train()
    assert len(folders) == 3


@pytest.mark.parametrize("error", [InputError("other code"), UnavailableError("no place")])
def test_what_others_would_meet_as_well_is_not_tried_again(teams, error) -> None:
    folders = teams(error, b"N.")
    with pytest.raises(type(error), match=str(error)):
        train()
    assert len(folders) == 1
