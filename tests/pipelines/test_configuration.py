"""Runs from archives, packages and object storage, and the default pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import PROJECT, QUICK, run_kedro
from tests.pipelines.finished_run import MODEL_INPUT, REPORTING
from tests.s3_server import BUCKET, s3_credentials

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished_run")]
TYPES = "pu_kd_pipeline.datasets"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of the configuration without environments."""
    folder = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf" / "base", folder / "base")
    (folder / "local").mkdir()
    return folder


def test_a_run_without_a_name_and_full_are_the_same_run_in_either_order(run: Path) -> None:
    for options in ([], ["--pipeline=full"], ["--pipelines=full"], []):
        result = run_kedro(*options, data=run)

        assert result.returncode == 0, result.stdout + result.stderr
        assert "Nothing to do: all" in result.stdout, result.stdout


def test_a_run_from_an_archive_is_the_run_from_the_folder(
    run: Path, conf: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "conf")
    result = run_kedro(f"--conf-source={archive}", data=run)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing to do: all" in result.stdout, result.stdout


def test_an_installed_package_runs_in_any_folder_with_conf_or_its_archive(
    run: Path, conf: Path, tmp_path: Path
) -> None:
    reason = "setuptools builds the wheel: pip install 'setuptools>=77.0.3'"
    pytest.importorskip("setuptools", minversion="77.0.3", reason=reason)
    source = tmp_path / "source"
    shutil.copytree(PROJECT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    build = [*pip, "--no-build-isolation", f"--target={installed}", str(source)]
    subprocess.run(build, check=True, timeout=300)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "conf")
    given = ",".join(["data=007", "tracking=false", *QUICK, "checkpoint_every_s=300"])
    script = [sys.executable, str(installed / "bin" / "pu-kd-pipeline")]
    module = [sys.executable, "-m", "pu_kd_pipeline", f"--conf-source={archive}"]
    with_conf = tmp_path / "with_conf"
    without_conf = tmp_path / "without_conf"
    shutil.copytree(conf, with_conf / "conf")

    for folder, command in ((with_conf, script), (without_conf, module)):
        shutil.copytree(run, folder / "007")
        result = subprocess.run(
            [*command, "--pipeline=class_weighting", f"--params={given}"],
            cwd=folder,
            env={**os.environ, "COLUMNS": "250", "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert result.returncode == 0, result.stdout + result.stderr
        # Relative data starts at the folder of the run, and is that of the run that was copied.
        assert "Nothing to do:" in result.stdout, result.stdout


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A prefix on object storage, and the credentials for it."""
    if request.param == "memory":
        yield "memory://runs", {}
        return
    with s3_credentials() as credentials:
        yield f"s3://{BUCKET}/runs", credentials


def test_entries_of_an_environment_may_be_on_object_storage(
    store: tuple[str, dict[str, Any]], run: Path, conf: Path
) -> None:
    prefix, credentials = store
    entries = {
        "class_weights": ("TableDataset", "class_weights.parquet"),
        "weight_vectors": ("TableDataset", "weight_vectors.parquet"),
        "class_weights_plot": ("FigureDataset", "class_weights_plot.png"),
    }
    catalog = {}
    for name, (kind, file) in entries.items():
        entry = {"type": f"{TYPES}.{kind}", "filepath": f"{prefix}/{file}", "credentials": "store"}
        catalog[name] = entry
    environment = conf / "remote"
    environment.mkdir()
    (environment / "catalog.yml").write_text(yaml.safe_dump(catalog))
    (environment / "credentials.yml").write_text(yaml.safe_dump({"store": credentials}))
    (run / MODEL_INPUT / "class_weights.parquet").unlink()
    (run / REPORTING / "class_weights_plot.png").unlink()

    options = [f"--conf-source={conf}", "--env=remote", "--pipeline=class_weighting"]
    result = run_kedro(*options, data=run)

    assert result.returncode == 0, result.stdout + result.stderr
    # Nothing is written next to it, and no folder is named after the protocol.
    assert not (run / MODEL_INPUT / "class_weights.parquet").exists()
    assert not (run / REPORTING / "class_weights_plot.png").exists()
    assert not (PROJECT / f"{prefix.partition(':')[0]}:").exists()
    assert "ran" in result.stdout

    again = run_kedro(*options, data=run)

    # A store with checksums is compared; `memory://` is empty again, as it ends with its process.
    assert again.returncode == 0, again.stdout + again.stderr
    assert ("Nothing to do" in again.stdout) == prefix.startswith("s3")


def test_data_on_object_storage_is_refused_before_the_run_in_one_sentence(run: Path) -> None:
    result = run_kedro(data=Path("unused"), params=("data=memory://x/y",))

    assert result.returncode == ExitCode.USER_ERROR
    assert "Traceback" not in result.stdout + result.stderr
    assert "`checkpoints`, `node_records`" in result.stderr
    assert "keep `data` here, and put image stores, tables, figures and models" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (PROJECT / "memory:").exists()
