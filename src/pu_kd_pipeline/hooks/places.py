"""Whether the places that the catalog names can hold the data of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.config import MissingConfigException
from kedro.io.core import DatasetError

from pu_kd_pipeline.datasets import NotLocalError
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.hooks.catalog import is_remote
from pu_kd_pipeline.incremental.staleness import CHECKPOINTS, RECORDS

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


def check_places(pipeline: Pipeline, catalog: DataCatalog, *, writes: bool = True) -> None:
    """Check where a run reads and writes, before its first node.

    Args:
        pipeline: what runs.
        catalog: of the run.
        writes: the run writes its outputs, and not only a plan.

    Raises:
        InputError: an entry has to be on this machine and is not, the data folder cannot be
            written, or an object store cannot be reached, or not be written.
    """
    names = []
    for name in sorted({*pipeline.datasets(), RECORDS, CHECKPOINTS}):
        is_parameter = name == "parameters" or name.startswith("params:")
        if not is_parameter and name in catalog:
            names.append(name)
    remote_names = []
    misplaced = []
    others: list[DatasetError] = []
    for name in names:
        try:
            dataset = catalog.get(name)
        except DatasetError as exc:
            if isinstance(exc.__cause__, NotLocalError):
                misplaced.append(f"`{name}`")
            else:
                others.append(exc)
            continue
        if is_remote(dataset):
            remote_names.append(name)
    if misplaced:
        listed = ", ".join(misplaced)
        raise InputError(
            f"the catalog places {listed} on another machine, and they have to be on this one: "
            "keep `data` here, and put image stores, tables, figures and models on object storage, "
            "with entries of their own in conf/<environment>/catalog.yml"
        )
    if others:
        raise others[0]  # such as a package that is missing
    if RECORDS in catalog:
        records: Any = catalog.get(RECORDS)
        _check_data_folder(records.filepath.parent)
    written = pipeline.all_outputs() if writes else set()
    for name in remote_names:
        _check_reachable(catalog, name, is_written=name in written)


def check_tracking_folder(loader: Mapping[str, Any]) -> None:
    """Refuse a folder for MLflow's own files that is not on this machine.

    Raises:
        InputError: the folder is used and has the address of another machine.
    """
    try:
        config = loader["mlflow"]
    except MissingConfigException:
        return
    folder = str(config.get("folder"))
    has_server = bool(os.environ.get("MLFLOW_TRACKING_URI") or config.get("tracking_uri"))
    if config.get("enabled") and not has_server and "://" in folder:
        raise InputError(
            f"mlflow.yml: folder: {folder} is not on this machine: name a folder here, or set "
            "tracking_uri to a server, or log nothing with --params=tracking=false"
        )


def check_versions(load_versions: Iterable[str], catalog: DataCatalog) -> None:
    """Refuse versions of entries that have none, which Kedro would ignore.

    Raises:
        InputError: names the entry.
    """
    for name in load_versions:
        dataset = catalog.get(name)
        if getattr(dataset, "_version", None) is None:
            raise InputError(
                f"--load-versions: the catalog entry `{name}` has no versions: set "
                "`versioned: true` in it before the run that writes it"
            )


def _check_data_folder(folder: Path) -> None:
    """Refuse a data folder that is a file, or that this user may not write to."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        is_folder = existing.is_dir()
        is_writable = os.access(existing, os.W_OK | os.X_OK)
    except OSError as exc:
        raise InputError(f"the data folder {folder} cannot be used: {exc}") from exc
    fix = "name another one with --params=data=/another/folder"
    if not is_folder:
        raise InputError(f"the data folder {folder} cannot be made: {existing} is no folder; {fix}")
    if not is_writable:
        raise InputError(
            f"the data folder {folder} cannot be written: {existing} is read-only; {fix}"
        )


def _check_reachable(catalog: DataCatalog, name: str, *, is_written: bool) -> None:
    check = getattr(catalog.get(name), "check_reachable", None)
    try:
        if check is not None:
            check(is_written=is_written)
        else:
            catalog.exists(name)
    except UnavailableError as exc:
        raise UnavailableError(f"catalog entry `{name}`: {exc}") from exc
    except InputError as exc:
        raise InputError(f"catalog entry `{name}`: {exc}") from exc
    # Kedro's own datasets raise whatever the library of the store raises.
    except Exception as exc:
        cause = exc.__cause__ or exc
        raise InputError(f"catalog entry `{name}`: {cause}") from exc
