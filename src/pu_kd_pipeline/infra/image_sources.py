"""Where images come from: torchvision data sets, folders, Parquet with image bytes, and the embedded demo.

A source answers two questions: which images are there (`listing`, without decoding any) and what are the raw images of
these rows (`read`, with bounded memory). Which labels count, which images are drawn and how they are decoded is decided
elsewhere, and the same for every source.
"""

from __future__ import annotations

import difflib
import inspect
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.image_decoding import Reason, Unusable, map_in_order

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pu_kd_pipeline.infra.image_decoding import RawImage
    from pu_kd_pipeline.params import ImageSource

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
DEFAULT_TORCHVISION_ROOT = "data/01_raw"
_READ_THREADS = 8  # opening files waits for the disk or the network
_READ_ROWS = 1_000
_MOST_FILE_BYTES = 2**28  # several files are held at a time; a hundred million pixels seldom need as much
_READ_BYTES = 8 * 2**20  # read-ahead of a Parquet column, so that a row group is never held as a whole


class SourceLostError(InputError):
    """A source was there when the run began and cannot be read any more; what is finished is worth keeping."""


class Source(Protocol):
    """A place that images come from."""

    def listing(self) -> pd.DataFrame:
        """Return one row an image, in a stable order.

        Columns: `id` (string, unique), `label` (Int64 or null), `label_name` (string or null), `version` (string,
        changes whenever the image may have), `fault` (the reason why it cannot be used, or null) and the source's own.

        Raises:
            InputError: the source is not there, is empty, or is not what it should be.
        """
        ...

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        """Yield the raw image of each of these rows of the listing, which are in the listing's order.

        Raises:
            SourceLostError: the source as a whole is no longer there, or is damaged.
        """
        ...


def open_source(source: ImageSource, seed: int) -> Source:
    """Return the reader of a source; `seed` draws the split of the embedded demo."""
    if source.type == "demo":
        return DemoSource(str(source.part), seed)
    kinds: dict[str, Callable[[ImageSource], Source]] = {
        "torchvision": TorchvisionSource,
        "folder": FolderSource,
        "parquet": ParquetSource,
    }
    return kinds[source.type](source)


def file_system(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a local path or URL, and the path in it; nothing is opened yet.

    Raises:
        InputError: there is no such kind of URL, or the package that reads it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(path)
    except ImportError as exc:
        raise InputError(f"{path} cannot be read yet: {exc}, with pip in the environment of this project") from exc
    except ValueError as exc:
        raise InputError(f"{path} cannot be read ({exc}): correct `path` of the source") from exc
    return found


def default_name(source: ImageSource) -> str:
    """Return what the index calls a source that was given no name."""
    if source.type == "demo":
        return "demo"
    path = PurePosixPath(str(source.path).rstrip("/"))
    is_pattern = any(wildcard in path.name for wildcard in "*?[")
    return source.dataset or (path.parent.name if is_pattern else path.stem) or source.type


def _table(
    ids: Any, labels: Any = None, label_names: Any = None, versions: Any = None, faults: Any = None, **locators: Any
) -> pd.DataFrame:
    n = len(ids)
    return pd.DataFrame(
        {
            "id": pd.Series(ids, dtype="str"),
            "label": pd.Series([None] * n if labels is None else labels, dtype="Int64"),
            "label_name": pd.Series([None] * n if label_names is None else label_names, dtype="str"),
            "version": pd.Series(versions if versions is not None else [""] * n, dtype="str"),
            "fault": pd.Series([None] * n if faults is None else faults, dtype="str"),
            **locators,
        }
    )


# --- the embedded demo ------------------------------------------------------------------------------------------------


class DemoSource:
    """Digits of scikit-learn; in the part `pool`, letters and photo patches as well."""

    def __init__(self, part: str, seed: int) -> None:
        self._part, self._seed = part, seed

    def listing(self) -> pd.DataFrame:
        from pu_kd_pipeline.infra.demo_images import demo_part

        part = demo_part(self._part, self._seed)
        labels = pd.Series(part.labels, dtype="Int64").where(part.labels >= 0)
        # negatives are drawn by the seed; a digit is the same in every split
        versions = ["1" if is_digit else f"1.{self._seed}" for is_digit in part.labels >= 0]
        return _table(part.ids, labels, part.label_names, versions, position=np.arange(len(part.ids)))

    def read(self, rows: pd.DataFrame) -> Iterator[np.ndarray]:
        from pu_kd_pipeline.infra.demo_images import demo_part

        yield from demo_part(self._part, self._seed).images[rows["position"].to_numpy()]


# --- folders ----------------------------------------------------------------------------------------------------------


class FolderSource:
    """Image files below a folder; the first folder under it names the class. Local, or any fsspec URL.

    Hidden files are left out. Links to files outside the folder and links to folders are listed with a fault.
    """

    def __init__(self, source: ImageSource) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self._path = str(source.path)
        self._fs, self._root = file_system(self._path)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def listing(self) -> pd.DataFrame:
        if not self._fs.isdir(self._root):
            raise InputError(f"there is no folder {self._path}: correct `path` of the source")
        found = sorted(self._local_files() if self._is_local else self._remote_files())
        if not found:
            raise InputError(f"{self._path} holds no image: files ending in {', '.join(EXTENSIONS)} are looked for")
        paths, versions, faults = zip(*found, strict=True)
        folders = [path.split("/")[0] if "/" in path else None for path in paths]
        return _table(paths, None, folders, versions, [fault or None for fault in faults], path=list(paths))

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        return map_in_order(self._fetch, rows["path"].tolist(), _READ_THREADS)

    def _fetch(self, path: str) -> bytes | Unusable:
        try:
            if self._is_local:
                return Path(self._root, path).read_bytes()
            return bytes(self._fs.cat_file(f"{self._root.rstrip('/')}/{path}"))
        except MemoryError:
            return Unusable(Reason.TOO_LARGE)
        except Exception as exc:  # each kind of remote file system has errors of its own
            if self._is_local:
                if not isinstance(exc, OSError):
                    raise
                check_is_there_still(self._root, self._path)
            return Unusable(Reason.NOT_OPENED)

    def _local_files(self) -> Iterator[tuple[str, str, str]]:
        """Yield (path below the folder, version, fault or empty)."""
        root = Path(self._root)
        real_root = root.resolve()
        closed: list[OSError] = []
        for folder, subfolders, names in os.walk(root, onerror=closed.append):  # which follows no link
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
            for name in links + [name for name in names if _is_image(name)]:
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                if not _is_printable(relative):
                    yield _printable(relative), "", Reason.NAME
                else:
                    version, fault = _state_of(path, real_root)
                    yield relative, version, fault
        for error in closed:
            yield _printable(os.path.relpath(error.filename, root)), "", Reason.NOT_OPENED

    def _remote_files(self) -> Iterator[tuple[str, str, str]]:
        root = self._fs._strip_protocol(self._root).rstrip("/")
        for path, about in self._fs.find(root, detail=True).items():
            relative = path.removeprefix(root).lstrip("/")
            if _is_image(relative) and not any(part.startswith(".") for part in relative.split("/")):
                is_too_large = (about.get("size") or 0) > _MOST_FILE_BYTES
                yield relative, _remote_version(about), Reason.TOO_LARGE if is_too_large else ""


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _is_printable(path: str) -> bool:
    return path == _printable(path)


def _printable(path: str) -> str:
    """Return a path that was found on disk as text that any file can hold: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _state_of(path: Path, real_root: Path | None = None) -> tuple[str, str]:
    """Return the version of a file, and why it may not be opened: it leads out of `real_root`, is no plain file, …"""
    try:
        about = path.stat()
        leads_out = (
            real_root is not None
            and path.is_symlink()
            and (stat.S_ISDIR(about.st_mode) or not path.resolve().is_relative_to(real_root))
        )
    except (OSError, RuntimeError):  # a link to nothing or in a circle, a file that is gone or out of reach
        return "", Reason.LINK if path.is_symlink() else Reason.NOT_OPENED
    if leads_out:
        return "", Reason.LINK
    if not stat.S_ISREG(about.st_mode):
        return "", Reason.UNREADABLE
    return f"{about.st_size}-{about.st_mtime_ns}", Reason.TOO_LARGE if about.st_size > _MOST_FILE_BYTES else ""


def check_is_there_still(folder: str, name: str) -> None:
    """Raise a SourceLostError where a folder is gone or empty: deleted, or no longer mounted."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise SourceLostError(_lost(name, "it is gone, or no longer mounted"))


def _lost(name: str, why: object) -> str:
    return (
        f"{name} could not be read to its end ({why}). Finished shards are kept: once the source is whole again, the "
        "same command goes on from there"
    )


def _remote_version(about: dict[str, Any]) -> str:
    """Return what a file system knows of a file that changes with its content."""
    marks = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")
    return "-".join([str(about.get("size")), *(str(about[mark]) for mark in marks if about.get(mark) is not None)])


# --- Parquet ----------------------------------------------------------------------------------------------------------


class ParquetSource:
    """Parquet files with the columns `image` (bytes) and, where there are any, `id`, `label` and `label_name`.

    One file, a folder or a glob; local or any fsspec URL. `image` may be a struct with a field `bytes`, as Hugging Face
    writes it. Without ids an image is called by its file and row.
    """

    def __init__(self, source: ImageSource) -> None:
        self._path = str(source.path)
        self._fs, root = file_system(self._path)
        if self._fs.isdir(root):
            root = f"{root.rstrip('/')}/*.parquet"
        is_pattern = any(mark in root for mark in "*?[")
        found = self._fs.glob(root, detail=True) if is_pattern else {root: {}}
        self._files: list[str] = sorted(file for file, about in found.items() if about.get("type") != "directory")
        if not self._files or not self._fs.exists(self._files[0]):
            raise InputError(f"there is no Parquet file at {self._path}: correct `path` of the source")

    def listing(self) -> pd.DataFrame:
        tables = [self._list_file(number, file) for number, file in enumerate(self._files)]
        listing = pd.concat(tables, ignore_index=True)
        if listing.empty:
            raise InputError(f"{self._path} holds no image: it has no rows")
        return listing

    def read(self, rows: pd.DataFrame) -> Iterator[bytes | Unusable]:
        for number in rows["file"].unique():
            try:
                with self._fs.open(self._files[number]) as opened:
                    rows_of_file = rows.loc[rows["file"] == number, "row"].to_numpy()
                    yield from self._read_file(self._open(opened), rows_of_file)
            except Exception as exc:  # a damaged file makes its reader raise nearly anything, and so does the network
                raise SourceLostError(_lost(self._files[number], f"{type(exc).__name__}: {exc}")) from exc

    def _list_file(self, number: int, file: str) -> pd.DataFrame:
        with self._told_of(file), self._fs.open(file) as opened:
            parquet = self._open(opened)
            columns = set(parquet.schema_arrow.names)
            self._check_columns(parquet, file)
            about = self._fs.info(file)
            n_rows = parquet.metadata.num_rows
            if about.get("size") is not None and not 0 <= n_rows <= about["size"]:
                raise ValueError(f"it declares {n_rows:,} rows in {about['size']:,} bytes")
            known = parquet.read([name for name in ("id", "label", "label_name") if name in columns])
            if known.num_columns and known.num_rows != n_rows:
                raise ValueError(f"it declares {n_rows:,} rows and has {known.num_rows:,}")
            values = {name: _plain_values(known[name], name, file) for name in known.column_names}
        if "label" in values and any(isinstance(label, str) for label in values["label"]):
            values["label_name"] = values.pop("label")
        stem = PurePosixPath(file).stem
        ids = [
            f"{stem}:{row}" if value is None else str(value)
            for row, value in enumerate(values.get("id", [None] * n_rows))
        ]
        versions = [_remote_version(about)] * n_rows
        return _table(
            ids,
            values.get("label"),
            values.get("label_name"),
            versions,
            file=np.full(n_rows, number),
            row=np.arange(n_rows),
        )

    @contextmanager
    def _told_of(self, file: str) -> Iterator[None]:
        """Turn whatever the reader of a damaged file raises into a sentence."""
        try:
            yield
        except InputError:
            raise
        except Exception as exc:
            raise InputError(
                f"{file} is not a Parquet file that can be read ({type(exc).__name__}: {exc}): correct `path`, or mend "
                "the file"
            ) from exc

    def _open(self, opened: Any) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        return pq.ParquetFile(opened, buffer_size=_READ_BYTES, pre_buffer=False)

    def _check_columns(self, parquet: pq.ParquetFile, file: str) -> None:
        import pyarrow as pa

        schema = parquet.schema_arrow
        if "image" not in schema.names:
            raise InputError(
                f"{file} has no column 'image'; found: {', '.join(schema.names) or 'none'}. A source of type 'parquet' "
                "needs image files' bytes in `image`, and may have `id`, `label` (int) and `label_name`: rename columns"
            )
        for name in ("image", "id", "label", "label_name"):
            if schema.names.count(name) > 1:
                raise InputError(f"{file} has more than one column {name!r}: rename all but one")
        kind = schema.field("image").type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(f"{file}: the column 'image' is {kind}; it must hold the bytes of image files (binary)")

    def _read_file(self, parquet: pq.ParquetFile, rows: np.ndarray) -> Iterator[bytes | Unusable]:
        """Yield the images of ascending row numbers, touching only the row groups that hold some."""
        groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(groups)])
        n_read = 0
        for group in np.unique(np.searchsorted(starts, rows, side="right") - 1):
            start = starts[group]
            for batch in parquet.iter_batches(_READ_ROWS, row_groups=[int(group)], columns=["image"]):
                first, last = np.searchsorted(rows, [start, start + batch.num_rows])
                for value in batch.column(0).take(rows[first:last] - start).to_pylist():
                    image = value.get("bytes") if isinstance(value, dict) else value
                    yield Unusable(Reason.EMPTY) if image is None else image
                n_read += last - first
                start += batch.num_rows
        if n_read != len(rows):
            raise ValueError(f"of {len(rows):,} rows {n_read:,} are there")


def _plain_values(column: pa.ChunkedArray, name: str, file: str) -> list[Any]:
    """Return a column of ids, labels or names as integers or strings; floats that are whole become integers.

    Raises:
        InputError: it holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_floating(kind) and name == "label":
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    is_number = pa.types.is_integer(kind) or (
        name == "label" and (pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind))
    )
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_number or is_text or pa.types.is_null(kind)):
        raise InputError(f"{file}: the column {name!r} is {kind}; it must hold text or whole numbers")
    try:
        values: list[Any] = (column.cast(pa.int64()) if is_number else column).to_pylist()
    except pa.ArrowInvalid as exc:
        raise InputError(f"{file}: the column {name!r} holds more than whole numbers of 64 bits ({exc})") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{file}: the column {name!r} holds text that is not UTF-8 ({exc}): mend it") from exc
    return values


# --- torchvision ------------------------------------------------------------------------------------------------------


class TorchvisionSource:
    """A data set of torchvision by its class name, with any options of that class."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._dataset = _open_dataset(source)

    def listing(self) -> pd.DataFrame:
        n = len(self._dataset)
        if n == 0:
            raise InputError(f"torchvision's {self._source.dataset} is empty with options {self._source.options}")
        labels = self._labels(n)
        names = _class_names(self._dataset)
        faults: list[str | None] | None = None
        label_names = None
        if labels is not None and names and min(labels) >= 0 and max(labels) < len(names):
            label_names = [names[label] for label in labels]
        if files := _sample_files(self._dataset):
            root = os.path.commonpath([os.path.dirname(file) for file in files])
            ids = [_printable(os.path.relpath(file, root)) for file in files]
            label_names = label_names and [_printable(name) for name in label_names]
            states = [_state_of(Path(file)) for file in files]
            versions = [version for version, _ in states]
            faults = [
                (fault or None) if _is_printable(file) else str(Reason.NAME)
                for file, (_, fault) in zip(files, states, strict=True)
            ]
        else:
            options = [f"{key}={value}" for key, value in sorted(self._options().items())]
            ids = ["/".join([str(self._source.dataset), *options, str(position)]) for position in range(n)]
            versions = ["1"] * n
        return _table(ids, labels, label_names, versions, faults, position=np.arange(n))

    def read(self, rows: pd.DataFrame) -> Iterator[RawImage | Unusable]:
        positions = rows["position"].tolist()
        if files := _sample_files(self._dataset):
            root = str(self._dataset.root)
            return map_in_order(lambda position: _read_file(files[position], root), positions, _READ_THREADS)
        return map(self._image, positions)

    def _image(self, position: int) -> RawImage | Unusable:
        try:
            image = self._dataset[position][0]
        except Exception:  # data sets that open files as they are asked raise whatever their reader does
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
        return [int(target) for target in targets] if all(np.ndim(target) == 0 for target in targets) else None

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
    from pu_kd_pipeline.learning.vision import datasets

    known = [
        name
        for name in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, name)) and issubclass(kind, datasets.VisionDataset)
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
        for key, value in (("root", source.path or DEFAULT_TORCHVISION_ROOT), ("download", source.download))
        if key in accepted or (takes_more and key == "download")
    }
    try:
        return kind(**arguments, **source.options)
    except TypeError as exc:
        options = ", ".join(key for key in accepted if key not in ("self", "root", "download"))
        raise InputError(f"torchvision's {name} does not take these options ({exc}): it knows {options}") from exc
    except Exception as exc:  # each data set reads files of its own, in its own way
        mend = "check the network and `path`" if source.download else "set `download: true`, or `path` to its folder"
        raise InputError(f"torchvision's {name} at {arguments.get('root')} cannot be opened ({exc}): {mend}") from exc


def _class_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "classes", None) or []
    return [str(name[0] if isinstance(name, tuple) else name) for name in names]  # ImageNet's are tuples of synonyms


def _sample_files(dataset: Any) -> list[str]:
    """Return the image files of a data set that is a folder, so that they are read like any other."""
    from pu_kd_pipeline.learning.vision import datasets

    return [file for file, _ in dataset.samples] if isinstance(dataset, datasets.DatasetFolder) else []


def _read_file(file: str, root: str) -> bytes | Unusable:
    try:
        return Path(file).read_bytes()
    except MemoryError:
        return Unusable(Reason.TOO_LARGE)
    except OSError:
        check_is_there_still(root, root)
        return Unusable(Reason.NOT_OPENED)
