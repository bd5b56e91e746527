"""The configuration of experiment tracking."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# MLflow's own defaults wait for minutes, and send telemetry even where DO_NOT_TRACK=1.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class TrackingConfig(BaseModel):
    """The file conf/base/mlflow.yml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    enabled: bool
    tracking_uri: str | None = Field(description="null: a SQLite file in `folder`")
    folder: str = Field(
        description="folder of the SQLite file and its artifacts, relative to the project folder"
    )
    experiment: str = Field(min_length=1)
    registered_model: str | None = Field(
        description="name in the model registry; null: the model is not registered"
    )
    system_metrics_interval_s: float | None = Field(gt=0, description="null: no system metrics")
