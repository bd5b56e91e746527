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
from pu_kd_pipeline.images.sources.base import listing_table
from pu_kd_pipeline.images.sources.files import (
    READ_THREADS,
    file_state,
    is_printable,
    path_state,
    printable,
    read_file,
)

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage
    from pu_kd_pipeline.params.data_ingestion import ImageSource


DEFAULT_TORCHVISION_ROOT = "data/01_raw"


class TorchvisionSource:
    """A data set of torchvision by its class name, with any options of that class."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self._source = source
        self._dataset = _open_dataset(source)

    @staticmethod
    def state(source: ImageSource) -> str:
        """Return the state of the folder that torchvision keeps the data set in."""
        folder = source.path or source.options.get("root") or DEFAULT_TORCHVISION_ROOT
        return path_state(str(folder))

    def listing(self) -> pd.DataFrame:
        n = len(self._dataset)
        if n == 0:
            raise InputError(
                f"torchvision's {self._source.dataset} is empty with options {self._source.options}"
            )
        labels = self._labels(n)
        names = _class_names(self._dataset)
        faults: list[str | None] | None = None
        label_names = None
        if labels is not None and names and min(labels) >= 0 and max(labels) < len(names):
            label_names = [names[label] for label in labels]
        if files := _sample_files(self._dataset):
            root = os.path.commonpath([os.path.dirname(file) for file in files])
            ids = [printable(os.path.relpath(file, root)) for file in files]
            label_names = label_names and [printable(name) for name in label_names]
            states = [file_state(Path(file)) for file in files]
            versions = [version for version, _ in states]
            faults = [
                (fault or None) if is_printable(file) else str(Reason.NAME)
                for file, (_, fault) in zip(files, states, strict=True)
            ]
        else:
            options = [f"{key}={value}" for key, value in sorted(self._options().items())]
            ids = [
                "/".join([str(self._source.dataset), *options, str(position)])
                for position in range(n)
            ]
            versions = ["1"] * n
        return listing_table(ids, labels, label_names, versions, faults, position=np.arange(n))

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        positions = rows["position"].tolist()
        if files := _sample_files(self._dataset):
            root = str(self._dataset.root)
            return map_in_order(
                lambda position: read_file(files[position], root), positions, READ_THREADS
            )
        return map(self._image, positions)

    def _image(self, position: int) -> RawImage | Unusable:
        try:
            image = self._dataset[position][0]
        except (
            Exception
        ):  # data sets that open files as they are asked raise whatever their reader does
            return Unusable(Reason.UNREADABLE)
        # EMNIST's files are column by column, and torchvision hands them out as they are: turned against MNIST's
        return np.asarray(image).T if self._source.dataset == "EMNIST" else image

    def _labels(self, n: int) -> list[int] | None:
        """Return the class of every image, from the data set's own list where it has one."""
        for attribute in ("targets", "labels", "_labels", "y", "_samples", "samples"):
            values = getattr(self._dataset, attribute, None)
            if values is None or len(values) != n:
                continue
            if isinstance(values[0], tuple):
                values = [value[-1] for value in values]
            labels = np.asarray(values)
            if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
                return [int(label) for label in labels]
        if self._source.labels == "ignore":
            return None
        targets = [self._dataset[position][1] for position in range(n)]
        return (
            [int(target) for target in targets]
            if all(np.ndim(target) == 0 for target in targets)
            else None
        )

    def _options(self) -> dict[str, Any]:
        """Return the options that tell one part of a data set from another, those left to their defaults included."""
        known = inspect.signature(type(self._dataset).__init__).parameters
        defaults = {
            name: known[name].default
            for name in ("train", "split")
            if name in known and known[name].default is not inspect.Parameter.empty
        }
        return {**defaults, **self._source.options}


def _open_dataset(source: ImageSource) -> Any:
    from pu_kd_pipeline.learning.networks.vision import datasets

    known = [
        name
        for name in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, name))
        and issubclass(kind, datasets.VisionDataset)
    ]
    name = str(source.dataset)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:8]
        raise InputError(f"torchvision has no data set {name!r}: did you mean {' or '.join(near)}?")
    kind = getattr(datasets, name)
    accepted = inspect.signature(kind.__init__).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    arguments = {
        key: value
        for key, value in (
            ("root", source.path or DEFAULT_TORCHVISION_ROOT),
            ("download", source.download),
        )
        if key in accepted or (takes_more and key == "download")
    }
    try:
        return kind(**arguments, **source.options)
    except TypeError as exc:
        options = ", ".join(key for key in accepted if key not in ("self", "root", "download"))
        raise InputError(
            f"torchvision's {name} does not take these options ({exc}): it knows {options}"
        ) from exc
    except Exception as exc:  # each data set reads files of its own, in its own way
        mend = (
            "check the network and `path`"
            if source.download
            else "set `download: true`, or `path` to its folder"
        )
        raise InputError(
            f"torchvision's {name} at {arguments.get('root')} cannot be opened ({exc}): {mend}"
        ) from exc


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None) or []
    return [
        str(name[0] if isinstance(name, tuple) else name) for name in names
    ]  # ImageNet's are tuples of synonyms


def _sample_files(dataset: Any) -> list[str]:
    """Return the image files of a data set that is a folder, so that they are read like any other."""
    from pu_kd_pipeline.learning.networks.vision import datasets

    return (
        [file for file, _ in dataset.samples] if isinstance(dataset, datasets.DatasetFolder) else []
    )
