"""Kedro's settings: where configuration comes from, and what happens around a run."""

from pu_kd_pipeline.hooks.checkpoints import CheckpointHooks
from pu_kd_pipeline.hooks.configuration import ConfigLoader
from pu_kd_pipeline.hooks.engine import EngineHooks
from pu_kd_pipeline.hooks.inputs import InputHooks
from pu_kd_pipeline.hooks.preflight import PreflightHooks
from pu_kd_pipeline.hooks.project import ProjectHooks
from pu_kd_pipeline.hooks.run_log import RunLogHooks
from pu_kd_pipeline.hooks.signals import SignalHooks
from pu_kd_pipeline.hooks.summary import SummaryHooks
from pu_kd_pipeline.hooks.tracking import TrackingHooks
from pu_kd_pipeline.hooks.viz import VizHooks
from pu_kd_pipeline.params.environment import RESOLVERS

# Kedro calls the last one first: paths are set before anything reads them, input is checked before
# tracking starts, the summary comes after everything else, and the warnings after the summary.
HOOKS = (
    RunLogHooks(),
    VizHooks(),
    SummaryHooks(),
    TrackingHooks(),
    CheckpointHooks(),
    EngineHooks(),
    SignalHooks(),
    PreflightHooks(),
    InputHooks(),
    ProjectHooks(),
)

CONFIG_LOADER_CLASS = ConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "custom_resolvers": RESOLVERS,
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    # An environment lists only what differs from base, down to a single key.
    "merge_strategy": {"parameters": "soft", "globals": "soft", "mlflow": "soft"},
}
