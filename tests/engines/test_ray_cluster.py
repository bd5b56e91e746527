"""What is asked of a Ray cluster, and how it is refused; no cluster is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.engines.ray_cluster import import_ray, kept_exit_codes, n_workers_of
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks import preflight
from tests.conftest import PROJECT
from tests.engines.works import engine_of


def cluster(**resources: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: resources)


@pytest.mark.parametrize(
    ("resources", "engine", "expected"),
    [
        ({"CPU": 8.0}, {}, 7),
        ({"CPU": 1.0}, {}, 1),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus_per_worker": 1}, 2),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus_per_worker": 0.5}, 4),
        ({"CPU": 8.0}, {"n_workers": 3}, 3),
    ],
)
def test_one_cpu_stays_free(resources, engine, expected):
    params = engine_of("ray", **{"n_workers": None, **engine})
    assert n_workers_of(params, cluster(**resources)) == expected


def test_gpus_that_the_cluster_lacks_are_refused():
    params = engine_of("ray", gpus_per_worker=1)
    with pytest.raises(InputError, match="the Ray cluster has 0 GPUs"):
        n_workers_of(params, cluster(CPU=8.0))


def test_without_the_package_a_run_is_refused_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r'^engine.kind is ray, and Ray is not installed: pip install "pu-kd-pipeline\[ray\]"'
    with pytest.raises(InputError, match=message):
        import_ray()
    with pytest.raises(InputError, match=message):
        preflight.check({"engine": engine_of("ray")})
    preflight.check({"engine": engine_of("processes")})


def test_a_folder_that_hides_the_package_is_named(tmp_path: Path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pu_kd_pipeline.engines.ray_cluster import import_ray; import_ray()",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"a folder hides the package of that name ({tmp_path / 'ray'}): rename the folder"
    assert message in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "ray://10.0.0.5:10001"}, "is an address for Ray's client"),
        ({"address": "10.0.0.5"}, "should be host:port"),
        ({"gpus_per_worker": 1.5}, "should be a whole number"),
        ({"kind": "processes", "gpus_per_worker": 1}, "needs kind ray"),
        ({"kind": "dask"}, "'local', 'processes' or 'ray'"),
        ({"n_workers": 0}, "greater than 0"),
        ({"stall_minutes": 0}, "greater than 0"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        engine_of(**{"kind": "ray", **changes})


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.5:6379", "[::1]:6379"])
def test_addresses_of_clusters_are_accepted(address):
    assert engine_of("ray", address=address).address == address


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_a_call_of_ray_ends_the_run_with_its_own_code(name):
    number = getattr(signal, name)

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(number, end)
    try:
        with pytest.raises(SystemExit) as caught, kept_exit_codes():
            try:
                signal.raise_signal(number)
            except SystemExit as exc:
                # As Ray does.
                raise RuntimeError("System error: SystemExit is raised") from exc
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is end
        # Whoever called Ray may have taken its error for that of a worker.
        with pytest.raises(SystemExit) as caught, kept_exit_codes(), suppress(SystemExit):
            signal.raise_signal(number)
        assert caught.value.code == 128 + number
        # Errors without a signal stay what they are.
        with pytest.raises(RuntimeError, match="^a bug$"), kept_exit_codes():
            raise RuntimeError("a bug")
    finally:
        signal.signal(number, previous)
