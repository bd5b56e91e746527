"""The parameters of conf/, read without Kedro: for experiments on machines that have only the learning libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pu_kd_pipeline.errors import InputError

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


def read_parameters(
    folder: Path, environment: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters of an environment, as Kedro's loader reads them with our settings.

    Args:
        folder: `conf`.
        environment: a folder in it, laid over `base` down to a single key.
        given: laid over both, nested.

    Raises:
        InputError: there is no such environment, or what it says does not fit together.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not (folder / environment).is_dir():
        raise InputError(f"there is no environment {environment!r} in {folder}")

    layers = [folder / name for name in dict.fromkeys(("base", environment))]
    known = OmegaConf.merge(
        *(OmegaConf.load(file) for layer in layers for file in sorted(layer.glob("globals*.yml")))
    )
    resolvers = {"globals": lambda key: OmegaConf.select(known, key), "images": image_file}
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    try:
        # base's `${seed}` and `${compute}` are resolved before an environment is laid over it, as Kedro does
        parts = [
            OmegaConf.to_container(
                OmegaConf.merge(*(OmegaConf.load(file) for file in files)), resolve=True
            )
            for layer in layers
            if (files := sorted(layer.glob("parameters*.yml")))
        ]
        parameters: Any = OmegaConf.to_container(OmegaConf.merge(*parts, dict(given or {})))
    except (OmegaConfBaseException, YAMLError) as error:
        raise InputError(
            f"the parameters of {environment!r} in {folder} cannot be read: {error}"
        ) from error
    finally:
        for name in resolvers:
            OmegaConf.clear_resolver(name)
    return dict(parameters)
