"""Parameters read from conf/ without Kedro, for machines with only the learning libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from pu_kd_pipeline.errors import InputError

IMAGES_VARIABLE = "PU_KD_DATA"


def image_file(name: str) -> str:
    """Return the path of `${images:name}` in a configuration file: in the folder PU_KD_DATA.

    Raises:
        InputError: the variable is not set.
    """
    folder = os.environ.get(IMAGES_VARIABLE)
    if not folder:
        raise InputError(
            f"the environment variable {IMAGES_VARIABLE} is not set: name the folder that holds "
            f"{name}, such as {IMAGES_VARIABLE}=/data/images kedro run …"
        )
    return str(Path(folder) / name)


def package_file(name: str) -> str:
    """Return the path of `${package_file:package/folder/file}`: in an installed package.

    The package is not imported.

    Raises:
        InputError: the package is not installed or is a part of one, or it has no such file.
    """
    package, _, inner = name.partition("/")
    parts = PurePosixPath(inner).parts
    if ".." in parts or inner.startswith("/"):
        raise InputError(
            f"${{package_file:{name}}}: {inner!r} leads out of the package {package!r}: write "
            "package/file, with a path below the folder of the package"
        )
    try:
        # Of a name with dots, Python would import the package in front of the last one.
        found = find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations or not inner:
        raise InputError(
            f"${{package_file:{name}}}: there is no installed package {package!r}: install it, or "
            "write package/file"
        )
    for folder in found.submodule_search_locations:
        path = Path(folder) / inner
        if path.is_file():
            return str(path)
    raise InputError(f"${{package_file:{name}}}: the package {package!r} has no file {inner!r}")


_NOT_THERE = object()  # None is the value of a key that is null

# Names in `${name:...}` of configuration files -> what they stand for.
RESOLVERS = {"images": image_file, "package_file": package_file}


def read_parameters(
    folder: Path, environment: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters of an environment, as Kedro's loader reads them with our settings.

    Args:
        folder: the folder `conf`.
        environment: a folder in it; its keys override those of `base`, at any depth.
        given: nested values that override both. Those whose key is in globals.yml, such as
            `recipe`, also change all parameters that refer to it.

    Raises:
        InputError: the environment does not exist, or its parameters contradict each other.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not (folder / environment).is_dir():
        raise InputError(f"there is no environment {environment!r} in {folder}")

    # Without duplicates: `base` itself is an environment, too.
    layers = [folder / name for name in dict.fromkeys(("base", environment))]
    global_files: list[Path] = []
    for layer in layers:
        global_files += sorted(layer.glob("globals*.yml"))
    global_values = _merged(global_files)
    values = dict(given or {})
    # As Kedro's session does with `--params=recipe=paper`.
    given_globals = {key: value for key, value in values.items() if key in global_values}
    global_values = OmegaConf.merge(global_values, given_globals)

    def globals_resolver(key: str) -> Any:
        value = OmegaConf.select(global_values, key, default=_NOT_THERE)
        if value is _NOT_THERE:
            raise InputError(f"globals.yml of {environment!r} in {folder} has no key {key!r}")
        return value

    OmegaConf.register_new_resolver("globals", globals_resolver, replace=True)
    for name, function in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
    try:
        parts: list[Any] = []
        for layer in layers:
            files = sorted(layer.glob("parameters*.yml"))
            if files:
                # Resolved layer by layer, as Kedro does: base's `${seed}` is base's own seed.
                parts.append(OmegaConf.to_container(_merged(files), resolve=True))
        parts.append(values)
        parameters: Any = OmegaConf.to_container(OmegaConf.merge(*parts))
    except (OmegaConfBaseException, YAMLError) as error:
        # A resolver's own message is a sentence; OmegaConf wraps it.
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(
            f"the parameters of {environment!r} in {folder} cannot be read: {error}"
        ) from error
    finally:
        for name in ("globals", *RESOLVERS):
            OmegaConf.clear_resolver(name)
    return dict(parameters)


def _merged(files: list[Path]) -> Any:
    """Return the content of configuration files; later ones override earlier ones."""
    from omegaconf import OmegaConf

    contents = [OmegaConf.load(file) for file in files]
    return OmegaConf.merge(*contents)
