"""Kedro's settings: where configuration comes from, and what happens around a run."""

import os
from pathlib import Path

from kedro.config import OmegaConfigLoader

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks import InputHooks, PreflightHooks, SignalHooks, SummaryHooks, TrackingHooks

# Kedro calls the last first: input is checked before anything is tracked, and the summary is the last word.
HOOKS = (SummaryHooks(), TrackingHooks(), SignalHooks(), PreflightHooks(), InputHooks())

IMAGES_VARIABLE = "PU_KD_DATA"


def image_file(name: str) -> str:
    """Return where `${images:name}` of a configuration file is: in the folder that PU_KD_DATA names.

    Raises:
        InputError: the variable is not set.
    """
    folder = os.environ.get(IMAGES_VARIABLE)
    if not folder:
        raise InputError(
            f"the environment variable {IMAGES_VARIABLE} is not set: name the folder that holds {name}, such as "
            f"{IMAGES_VARIABLE}=/data/images kedro run …"
        )
    return str(Path(folder) / name)


CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "custom_resolvers": {"images": image_file},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    # an environment says only what differs from base, down to a single key
    "merge_strategy": {"parameters": "soft", "globals": "soft", "mlflow": "soft"},
}
