"""The configuration of experiment tracking: its file, and what the environment sets."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pu_kd_pipeline.masking import without_credentials
from pu_kd_pipeline.params.paths import is_url

# MLflow's own defaults wait for minutes or as long as a server asks for, and send telemetry even
# where DO_NOT_TRACK=1.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # The worker computes nothing: more threads would only take memory.
    "OMP_NUM_THREADS": "1",
}


class TrackingConfig(BaseModel):
    """The file conf/base/mlflow.yml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    enabled: bool
    tracking_uri: str | None = Field(description="null: a SQLite file in `folder`")
    folder: str = Field(
        description="folder of the SQLite file and its artifacts, relative to the project folder"
    )
    data: str | None = Field(
        default=None,
        description="the data folder of the run; `shared_folder` is for its `mlflow` alone, so "
        "that another `folder` is used unchanged",
    )
    shared_folder: str | None = Field(
        default=None,
        description="used in place of `folder` where that is `mlflow` in a data folder inside "
        "the project; null: each data folder has a store of its own",
    )
    experiment: str = Field(min_length=1)
    registered_model: str | None = Field(
        description="name of `student_model` in the model registry; null: it is not registered"
    )
    served_model: str | None = Field(
        default=None,
        description="name in the model registry of the form of `student_model` that takes files, "
        "for `mlflow models serve`; null: there is none",
    )
    input_example: str | None = Field(
        default=None,
        description="catalog entry of images of which two are stored with each model, as its input "
        "example; null: a generated pattern",
    )
    system_metrics_interval_s: float | None = Field(gt=0, description="null: no system metrics")
    max_wait_s: float = Field(
        gt=0,
        description="the most that a run waits for MLflow at its end; long runs wait up to 5 % of "
        "their time",
    )

    @field_validator("registered_model", "served_model")
    @classmethod
    def _is_a_name_of_mlflow(cls, name: str | None) -> str | None:
        # MLflow itself refuses it only when the student exists, at the end of the run.
        if name is not None and (not name.strip(". ") or set(name) & {"/", ":"}):
            raise ValueError(
                f"{name!r} is no name of a registered model: it needs a letter or digit, and no "
                "'/' or ':'"
            )
        return name


STORE = "mlflow"  # the folder of a store in a data folder


def store_folder(config: TrackingConfig, project_path: Path) -> Path:
    """Return the absolute folder of the SQLite file and its artifacts.

    The data folders inside a project share one store, so that their runs are one list. A data
    folder elsewhere, such as on another disk, keeps its own.

    Args:
        config: where to log.
        project_path: folder that relative paths start from.
    """
    if config.shared_folder is not None and config.data is not None:
        data = Path(os.path.abspath(project_path / config.data))
        is_default = os.path.abspath(project_path / config.folder) == str(data / STORE)
        if is_default and is_inside(data, project_path):
            return (project_path / config.shared_folder).resolve()
    return own_folder(config, project_path)


def is_inside(folder: Path, project_path: Path) -> bool:
    """Return whether a folder is inside the project, by its name or by where links lead.

    `data` is often a link to a larger disk, and the project may be reached through one.
    """
    by_name = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(project_path))
    return by_name or folder.resolve().is_relative_to(project_path.resolve())


def data_name(config: TrackingConfig, project_path: Path) -> str:
    """Return the data folder of the run, relative to the project where it is inside; "" if unknown.

    It distinguishes runs of different data.
    """
    if config.data is None:
        return ""
    if is_url(config.data):
        return without_credentials(config.data)
    data = Path(os.path.abspath(project_path / config.data))
    project = Path(os.path.abspath(project_path))
    for folder, root in ((data, project), (data.resolve(), project.resolve())):
        if folder.is_relative_to(root):
            return folder.relative_to(root).as_posix()
    return str(data)


def own_folder(config: TrackingConfig, project_path: Path) -> Path:
    """Return the absolute `folder`: where the store is, or was before it was shared."""
    return (project_path / config.folder).resolve()


def shared_run_id() -> str | None:
    """Return the run that this process shares with other stages, or None.

    It is MLFLOW_RUN_ID, or else the content of the file that PU_KD_RUN_ID_FILE names.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        return run_id
    file_name = os.environ.get("PU_KD_RUN_ID_FILE")
    if not file_name:
        return None
    path = Path(file_name)
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    # An empty file: the run could not be opened, so every stage has a run of its own.
    return text.strip() or None
