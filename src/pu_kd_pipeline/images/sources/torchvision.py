"""Data sets of torchvision."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable, map_in_order
from pu_kd_pipeline.images.sources.base import SourceLostError, listing_table
from pu_kd_pipeline.images.sources.files import (
    READ_THREADS,
    file_state,
    is_printable,
    lost_source_error,
    printable,
    read_file,
    state_of,
    tree,
)
from pu_kd_pipeline.params.paths import is_url, resolved_path

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage
    from pu_kd_pipeline.params.data_ingestion import ImageSource


DEFAULT_TORCHVISION_ROOT = "data/01_raw"
# Where the files are and come from does not change the images.
_PLACE_OPTIONS = ("root", "download")


class TorchvisionSource:
    """A data set of torchvision by its class name, with any options of that class."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._source = source
        self._dataset = _open_dataset(source)

    def why_not_shared(self, n_images: int) -> str | None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind the images: another process opens the data set itself."""
        return {"source": self._source, "state": self.state(self._source)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the data set that was opened elsewhere, which is there already.

        Raises:
            SourceLostError: it is not there, or its files changed.
        """
        source: ImageSource = state["source"]
        if self.state(source) != state["state"]:
            name = f"torchvision's {source.dataset}"
            raise SourceLostError(lost_source_error(name, "its files changed, or are not there"))
        options = {**source.options}
        options.pop("download", None)
        is_there = {"download": False, "options": options}
        self._source = source
        self._dataset = _open_dataset(source.model_copy(update=is_there))

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return the state of the folder that torchvision keeps the data set in."""
        return state_of(lambda: tree(_root_of(source)))

    def listing(self) -> pd.DataFrame:
        n = len(self._dataset)
        if n == 0:
            raise InputError(
                f"torchvision's {self._source.dataset} is empty with options {self._source.options}"
            )
        numbers = self._labels(n)
        labels: list[int | None] | None = None
        if numbers is not None:
            # A negative number, as in the split `unlabeled` of STL10, is no class.
            labels = [number if number >= 0 else None for number in numbers]
        label_names = self._label_names(labels)
        files = _sample_files(self._dataset)
        if files:
            return _listing_of_files(files, labels, label_names)

        # A part of the id for each option: the parts of a data set count their images from 0 alike.
        prefix = str(self._source.dataset)
        options = self._options()
        for key in sorted(options):
            prefix += f"/{key}={options[key]}"
        ids = [f"{prefix}/{position}" for position in range(n)]

        # Which of the files make which image is known to torchvision alone.
        versions = [self.state(self._source)] * n
        positions = np.arange(n)
        return listing_table(ids, labels, label_names, versions, position=positions)

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        positions = rows["position"].tolist()
        files = _sample_files(self._dataset)
        if not files:
            return map(self._image, positions)

        root = str(self._dataset.root)
        return map_in_order(
            lambda position: read_file(files[position], root), positions, READ_THREADS
        )

    def _image(self, position: int) -> RawImage | Unusable:
        try:
            image = self._dataset[position][0]
        # Data sets that open a file per image raise whatever their reader does.
        except Exception:
            return Unusable(Reason.UNREADABLE)
        # EMNIST's files are column by column, and torchvision does not turn the images.
        if self._source.dataset == "EMNIST":
            return np.asarray(image).T
        return image

    def _labels(self, n: int) -> list[int] | None:
        """Return the class of every image, from the data set's own list if it has one."""
        for attribute in ("targets", "labels", "_labels", "y", "_samples", "samples"):
            values = getattr(self._dataset, attribute, None)
            if values is None or len(values) != n:
                continue
            if isinstance(values[0], tuple):  # (file, class)
                values = [value[-1] for value in values]
            labels = np.asarray(values)
            is_integer = np.issubdtype(labels.dtype, np.integer)
            if labels.ndim == 1 and is_integer:
                known: list[int] = labels.tolist()
                return known

        # Without a list every image has to be decoded, which is slow.
        if self._source.labels == "ignore":
            return None
        return self._targets(n)

    def _targets(self, n: int) -> list[int] | None:
        """Return the class of every image, read with the image; None if it is not one class."""
        targets: list[Any] = []
        for position in range(n):
            target = self._dataset[position][1]
            targets.append(target)
        if any(np.ndim(target) != 0 for target in targets):
            return None  # boxes, masks or several classes
        return [int(target) for target in targets]

    def _label_names(self, labels: list[int | None] | None) -> list[str | None] | None:
        """Return the class name of every image; None where the data set has no names for them."""
        names = _class_names(self._dataset)
        if labels is None or not names:
            return None
        known = [label for label in labels if label is not None]
        if not known or max(known) >= len(names):
            return None
        return [None if label is None else names[label] for label in labels]

    def _options(self) -> dict[str, Any]:
        """Return the options that choose a part of the data set, with defaults filled in."""
        dataset_class = type(self._dataset)
        accepted = inspect.signature(dataset_class.__init__).parameters
        options = {}
        for name in ("train", "split"):
            if name not in accepted:
                continue
            default = accepted[name].default
            if default is not inspect.Parameter.empty:
                options[name] = default
        for name, value in self._source.options.items():
            if name not in _PLACE_OPTIONS:
                options[name] = value
        return options


def _listing_of_files(
    files: list[str], labels: list[int | None] | None, label_names: list[str | None] | None
) -> pd.DataFrame:
    """Return the listing of a data set that is a folder of image files."""
    folders = {os.path.dirname(file) for file in files}
    root = os.path.commonpath(folders)
    # The names are those of folders, which may hold bytes that are not text.
    if label_names:
        label_names = [printable(name or "") for name in label_names]

    ids = []
    versions = []
    faults: list[str | None] = []
    for file in files:
        relative = os.path.relpath(file, root)
        ids.append(printable(relative))
        version, fault = file_state(file)
        if not is_printable(file):
            fault = str(Reason.NAME)
        versions.append(version)
        faults.append(fault or None)

    positions = np.arange(len(files))
    return listing_table(ids, labels, label_names, versions, faults, position=positions)


def _open_dataset(source: ImageSource) -> Any:
    """Return the data set object of torchvision.

    Raises:
        InputError: no such data set exists, it does not accept the options, or it cannot be opened.
    """
    name = str(source.dataset)
    dataset_class = _dataset_class(name)
    accepted = inspect.signature(dataset_class.__init__).parameters
    arguments: dict[str, Any] = {}
    if "root" in accepted:  # FakeData has no files
        arguments["root"] = str(_root_of(source))
    # A class that takes any keyword passes it on to its parent, which may know it.
    kinds = [parameter.kind for parameter in accepted.values()]
    passes_more_on = inspect.Parameter.VAR_KEYWORD in kinds
    if "download" in accepted or passes_more_on:
        arguments["download"] = source.download or source.options.get("download", False)
    options = {**source.options, **arguments}

    try:
        return dataset_class(**options)
    except TypeError as exc:
        known = [key for key in accepted if key not in ("self", *_PLACE_OPTIONS)]
        raise InputError(
            f"torchvision's {name} does not take these options ({exc}): it knows {', '.join(known)}"
        ) from exc
    except Exception as exc:  # each data set reads files of its own, in its own way
        fix = "set `download: true`, or `path` to its folder"
        if arguments.get("download"):
            fix = "check the network and `path`"
        root = arguments.get("root")
        raise InputError(f"torchvision's {name} at {root} cannot be opened ({exc}): {fix}") from exc


def _root_of(source: ImageSource) -> Path:
    """Return the folder that torchvision keeps the data set in.

    Raises:
        InputError: two are given, or it is on another machine.
    """
    given = source.options.get("root")
    if source.path is not None and given is not None:
        raise InputError(
            f"torchvision's {source.dataset} has a `path` ({source.path}) and an option `root` "
            f"({given}): leave one of them out"
        )
    folder = str(source.path or given or DEFAULT_TORCHVISION_ROOT)
    if is_url(folder):
        raise InputError(f"torchvision reads local folders only, and {folder} is none")
    return resolved_path(folder)


def _dataset_class(name: str) -> Any:
    from pu_kd_pipeline.learning.networks.vision import datasets

    known = []
    for each in datasets.__all__:
        candidate = getattr(datasets, each)
        if inspect.isclass(candidate) and issubclass(candidate, datasets.VisionDataset):
            known.append(each)

    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        # Without a near name, a few that show what names look like
        suggestions = " or ".join(near or known[:8])
        raise InputError(f"torchvision has no data set {name!r}: did you mean {suggestions}?")
    return getattr(datasets, name)


def _class_names(dataset: Any) -> list[str]:
    names = []
    # Caltech101 and Caltech256 call them categories.
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    for name in classes or []:
        if isinstance(name, tuple):  # ImageNet has several names for a class
            name = name[0]
        names.append(str(name))
    return names


def _sample_files(dataset: Any) -> list[str]:
    """Return the image files of a data set that is a folder; they are read like any other file."""
    from pu_kd_pipeline.learning.networks.vision import datasets

    if not isinstance(dataset, datasets.DatasetFolder):
        return []
    return [file for file, _ in dataset.samples]
