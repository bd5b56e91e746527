"""The catalog's dataset types, one per kind of file; other packages read and write the files.

A dataset that saves a plan (`IngestionPlan`, a mapping of functions that make one shard each) runs
it shard by shard, in bounded memory. Tables, figures, models, image stores and tables in shards may
also be on object storage, with `credentials` and `fs_args` as Kedro's own datasets take them.
"""

from __future__ import annotations

import base64
import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NewType, NoReturn

from kedro.io.core import (
    AbstractDataset,
    AbstractVersionedDataset,
    DatasetError,
    Version,
    get_filepath_str,
    get_protocol_and_path,
)
from kedro_datasets.text import TextDataset

from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.storage.remote import RemoteFiles

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.plan import IngestionPlan
    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.models.model import Model, PUClassifier
    from pu_kd_pipeline.storage.folders import Folder
    from pu_kd_pipeline.storage.object_folder import ObjectFolder
    from pu_kd_pipeline.storage.sharded_table import ShardedTable


# kedro-viz recognizes a preview by the name of its return annotation, wherever that is defined.
TablePreview = NewType("TablePreview", dict[str, Any])
ImagePreview = NewType("ImagePreview", str)
JSONPreview = NewType("JSONPreview", str)
HTMLPreview = NewType("HTMLPreview", str)
N_THUMBNAILS = 40
_MAKE_AGAIN = ".make_again"  # hidden files are not part of a data set


class NotLocalError(InputError):
    """The catalog places data on another machine that has to be on this one."""


class _OnDisk:
    """A dataset of one file or folder on this machine."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        protocol, path = get_protocol_and_path(filepath)
        if protocol != "file":
            raise NotLocalError(f"{filepath} is not on this machine")
        self.filepath = Path(path)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.filepath)}

    def _exists(self) -> bool:
        return self.filepath.exists()


class FolderDataset(_OnDisk, AbstractDataset[NoReturn, Path]):
    """A folder of files about the run; no node reads or writes it."""

    def save(self, data: NoReturn) -> None:
        """Refuse."""
        raise DatasetError(f"{self.filepath} is not written by any node")

    def load(self) -> Path:
        """Return the path of the folder."""
        return self.filepath


class CheckpointsDataset(FolderDataset):
    """The folder of checkpoints; a hook passes it to trainings.

    Args:
        filepath: the folder that has a subfolder per node that trains.
        every_s: seconds between two checkpoints of a training; 0: one after every update.
    """

    def __init__(
        self, *, filepath: str, every_s: float, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.every_s = every_s


class OptionalJSONDataset(_OnDisk, AbstractDataset[Any, Any]):
    """A JSON file that need not exist: without it, None is loaded.

    So a node may read what a person gives between two runs, or what another stage may have written.
    """

    def save(self, data: Any) -> None:
        """Write the file."""
        from pu_kd_pipeline.storage.atomic import replacing_file

        text = json.dumps(data, indent=2) + "\n"
        with replacing_file(self.filepath) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def load(self) -> Any:
        """Read the file, if there is one."""
        try:
            return json.loads(self.filepath.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise InputError(f"{self.filepath} cannot be read ({exc.strerror})") from exc
        except (ValueError, RecursionError) as exc:
            raise InputError(
                f"{self.filepath} is no JSON ({exc}): delete it, and write it again"
            ) from exc

    def preview(self) -> JSONPreview:
        """Return the content for kedro-viz; `null` where there is no file."""
        return JSONPreview(json.dumps(self.load()))

    def _exists(self) -> bool:
        return True


class ImageFolderDataset(_OnDisk, AbstractDataset["Mapping[str, np.ndarray]", Path]):
    """Image files in folders, one per class, which replace those of an earlier save.

    `images.csv` lists them, also where there are none.
    """

    def save(self, data: Mapping[str, np.ndarray]) -> None:
        """Write (C, H, W) uint8 images as PNG, by "class/file name"."""
        from pu_kd_pipeline.images.pictures import png_bytes
        from pu_kd_pipeline.storage.atomic import replacing_folder

        with replacing_folder(self.filepath) as folder:
            for name, pixels in data.items():
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(png_bytes(pixels))
            with open(folder / "images.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["path", "label"])
                writer.writerows([name, name.partition("/")[0]] for name in data)

    def load(self) -> Path:
        """Return the path of the folder."""
        return self.filepath


class FilesDataset(_OnDisk, AbstractDataset["Mapping[str, bytes]", Path]):
    """A folder of a few files, which replace those of an earlier save as a whole."""

    def save(self, data: Mapping[str, bytes]) -> None:
        """Write the content of each file, by its name."""
        from pu_kd_pipeline.storage.atomic import replacing_folder

        with replacing_folder(self.filepath) as folder:
            for name, content in data.items():
                (folder / name).write_bytes(content)

    def load(self) -> Path:
        """Return the path of the folder."""
        return self.filepath


class OptionalFolderDataset(_OnDisk, AbstractDataset[NoReturn, "Path | None"]):
    """A folder that another entry writes, or nobody: without it, None is loaded."""

    def save(self, data: NoReturn) -> None:
        """Refuse."""
        raise DatasetError(f"{self.filepath} is written by another catalog entry")

    def load(self) -> Path | None:
        """Return the path of the folder, if there is one."""
        return self.filepath if self.filepath.is_dir() else None

    def _exists(self) -> bool:
        return True


class _ShardFolder:
    """A folder of shards, on this machine or on an object store.

    On this machine, `filepath` is its path; otherwise it is None.

    Args:
        filepath: a path, or the URL of a folder on an object store, such as `s3://bucket/scores`.
        credentials: further arguments of the file system, from credentials.yml.
        fs_args: further arguments of the file system.
        cache: a folder on this machine for copies of remote shards; several entries may share it.
        cache_gb: what all files in the cache may take, 10^9 bytes.
        metadata: Kedro's metadata of the entry.
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        cache: str | None = None,
        cache_gb: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        protocol, path = get_protocol_and_path(filepath)
        self._protocol = protocol
        self.metadata = metadata
        # Of what this object saved last; None: it has saved nothing.
        self._saved_fingerprint: str | None = None
        self.filepath: Path | None = None
        self.remote: ObjectFolder | None = None
        self.folder: Folder
        if protocol == "file":
            self.filepath = Path(path)
            self.folder = self.filepath
            return
        options = {**(credentials or {}), **(fs_args or {})}
        self.remote = _object_folder(protocol, str(path), options, cache, cache_gb)
        self.folder = self.remote
        # Where hooks look for the address of a remote data set.
        self._filepath = PurePosixPath(path)

    def remote_files(self) -> dict[str, str] | None:
        """Return name -> mark of the content, of the files on an object store; None: it is here."""
        if self.remote is None:
            return None
        return {name: file.mark for name, file in self.remote.files().items()}

    def remove_remote(self, name: str) -> None:
        """Remove a file from the object store."""
        assert self.remote is not None
        self.remote.remove([name])

    def check_reachable(self, *, is_written: bool) -> None:
        """Check that the object store can be used, before a run begins.

        Args:
            is_written: the run writes to it.

        Raises:
            InputError: it cannot.
        """
        if self.remote is None:
            return
        if is_written:
            self.remote.check_writable()
        elif not self._exists():
            # Of a bucket that does not exist, this raises an error.
            self.remote.files()

    def _check_own(self, fingerprint: str) -> None:
        """Check that what is there now is what this object saved, if it saved anything.

        Nothing can lock a folder on an object store.

        Raises:
            InputError: it is not.
        """
        is_own = self._saved_fingerprint in (None, fingerprint)
        if self.remote is not None and not is_own:
            raise InputError(
                f"another run wrote {self.folder} meanwhile: give each run a prefix of its own"
            )

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.folder)}

    def _exists(self) -> bool:
        # Image stores and tables answer this, each by its own last file.
        raise NotImplementedError


def _object_folder(
    protocol: str,
    path: str,
    options: Mapping[str, Any],
    cache: str | None,
    cache_gb: float | None,
) -> ObjectFolder:
    """Return a folder on an object store.

    Raises:
        InputError: it cannot hold shards, or the entry has no cache.
    """
    # What data on this machine does not need.
    from pu_kd_pipeline.params.paths import resolved_path
    from pu_kd_pipeline.storage.file_cache import GB, FileCache
    from pu_kd_pipeline.storage.object_folder import ObjectFolder

    address = f"{protocol}://{path.lstrip('/')}"
    is_number = isinstance(cache_gb, int | float) and not isinstance(cache_gb, bool)
    if not cache or cache_gb is None or not is_number or not cache_gb > 0:
        raise InputError(
            f"{address} needs a cache on this machine: set `cache` to a folder, and `cache_gb` to "
            "its size in 10^9 bytes"
        )
    if "://" in cache:
        raise InputError(f"the cache of {address} has to be a folder on this machine, not {cache}")
    folder = resolved_path(cache)
    return ObjectFolder(protocol, path, options, FileCache.at(folder, int(cache_gb * GB)))


class ImageStoreDataset(_ShardFolder, AbstractDataset["IngestionPlan", "ImageStore"]):
    """An image store; saving an ingestion plan makes only the missing and damaged shards."""

    def make_again(self) -> None:
        """Make the next save read and decode every image, also those that are stored or set aside.

        It holds until a save has succeeded, also in later processes: if one is stopped in between,
        it leaves the old store, whose images must not be kept then.
        """
        if self.remote is not None:
            self.remote.write_text(_MAKE_AGAIN, "")
        elif self.filepath is not None and self.filepath.is_dir():
            (self.filepath / _MAKE_AGAIN).touch()

    def save(self, data: IngestionPlan) -> None:
        """Run the plan."""
        from pu_kd_pipeline.images.ingestion import write_store
        from pu_kd_pipeline.storage.folders import file_exists, remove_hidden

        store = write_store(data, self.folder, makes_again=file_exists(self.folder, _MAKE_AGAIN))
        self._saved_fingerprint = store.fingerprint
        remove_hidden(self.folder, _MAKE_AGAIN)

    def content_state(self) -> dict[str, Any] | None:
        """Return what changes whenever a reader would see other images, ids, labels or reports.

        The files also hold when each source file changed, which no reader looks at.

        Returns:
            Texts and numbers, or None for a store that is damaged or does not exist.
        """
        from pu_kd_pipeline.images.store_file import SOURCES_FILE, read_store_file
        from pu_kd_pipeline.storage.folders import read_text

        try:
            specification, shards, quarantine_counts = read_store_file(self.folder)
            report = read_text(self.folder, SOURCES_FILE)
        except UnavailableError:
            raise
        except (InputError, OSError, UnicodeDecodeError):
            return None
        return {
            "specification": specification.content_fields(),
            # Each name ends in a fingerprint of the content.
            "shards": [shard.name for shard in shards],
            "quarantine": quarantine_counts,
            "sources": report,
        }

    def load(self) -> ImageStore:
        """Open the store; nothing is read yet.

        Raises:
            InputError: it cannot be used, or another run replaced what this object saved.
        """
        from pu_kd_pipeline.images.store import ImageStore

        store = ImageStore.open(self.folder)
        self._check_own(store.fingerprint)
        return store

    def counts(self) -> dict[str, int]:
        """Return the number of images, for kedro-viz."""
        return {"rows": len(self.load())}

    def preview(self, n_images: int = N_THUMBNAILS) -> ImagePreview:
        """Return images from all over the store for kedro-viz, as base64."""
        import numpy as np

        from pu_kd_pipeline.images.pictures import png_bytes, thumbnails

        store = self.load()
        n = min(n_images, len(store))
        rows = np.linspace(0, max(len(store) - 1, 0), n).astype(np.int64)
        sheet = thumbnails(store.read(rows), n_columns=8)
        return ImagePreview(base64.b64encode(png_bytes(sheet)).decode())

    def _exists(self) -> bool:
        from pu_kd_pipeline.storage.folders import file_exists

        # The file is written last: without it, the store is incomplete.
        return file_exists(self.folder, "store.json")


class ShardedTableDataset(
    _ShardFolder, AbstractDataset["Mapping[str, Callable[[], pa.Table]]", "ShardedTable"]
):
    """A table with one Parquet file per shard; saving makes only the missing and damaged shards.

    Args:
        filepath: the folder of the files.
        keeps_others: keep shards that the table no longer has, instead of removing them.
        storage: further arguments of all folders of shards.
    """

    def __init__(self, *, filepath: str, keeps_others: bool = False, **storage: Any) -> None:
        super().__init__(filepath=filepath, **storage)
        self.keeps_others = keeps_others
        self._makes_again = False

    def make_again(self) -> None:
        """Make the next save make every shard that is saved, also those that exist.

        These are removed before the first is made, so that a save that was stopped can be resumed
        by another. Shards that are only kept because of `keeps_others` stay.
        """
        self._makes_again = True

    def save(self, data: Mapping[str, Callable[[], pa.Table]]) -> None:
        """Make the missing and damaged shards."""
        from pu_kd_pipeline.storage.sharded_table import ShardedTable

        table = ShardedTable.write(
            self.folder, data, keeps_others=self.keeps_others, makes_again=self._makes_again
        )
        self._makes_again = False
        self._saved_fingerprint = table.fingerprint

    def load(self) -> ShardedTable:
        """Open the table; nothing is read yet.

        Raises:
            InputError: it cannot be used, or another run replaced what this object saved.
        """
        from pu_kd_pipeline.storage.sharded_table import ShardedTable

        table = ShardedTable.open(self.folder)
        self._check_own(table.fingerprint)
        return table

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows and columns, for kedro-viz; checksums are not compared."""
        from pu_kd_pipeline.storage.previews import table_counts

        if self.filepath is None:
            return {"rows": len(self.load())}
        return table_counts([file for file in self.files() if file.suffix == ".parquet"])

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first rows for kedro-viz."""
        import pandas as pd

        from pu_kd_pipeline.storage.previews import table_preview

        first = next(self.load().shards(), None)
        if first is None:
            return TablePreview(table_preview(pd.DataFrame()))
        rows = first.slice(0, nrows).replace_schema_metadata().to_pandas()
        return TablePreview(table_preview(rows))

    def files(self) -> list[Path]:
        """Return the existing files of the table, without other files in its folder."""
        from pu_kd_pipeline.storage.sharded_table import table_files

        if self.filepath is None:
            return []
        return table_files(self.filepath)

    def written_at_s(self, shard: str) -> float:
        """Return when a shard was written, in seconds since 1970."""
        from pu_kd_pipeline.storage.sharded_table import shard_file

        name = shard_file(shard)
        if self.remote is not None:
            return self.remote.written_at_s(name)
        assert self.filepath is not None
        return (self.filepath / name).stat().st_mtime

    def remote_files(self) -> dict[str, str] | None:
        """Return name -> mark of the content, of the files of a table on an object store."""
        from pu_kd_pipeline.storage.sharded_table import remote_table_files

        if self.remote is None:
            return None
        return {name: file.mark for name, file in remote_table_files(self.remote).items()}

    def _exists(self) -> bool:
        from pu_kd_pipeline.storage.folders import file_exists

        # The file is written last: without it, the table is incomplete.
        return file_exists(self.folder, "shards.json")


class _Stored(AbstractVersionedDataset[Any, Any]):
    """A dataset of one file, or of a folder of a few files, on this machine or on object storage.

    On this machine and without versions, `filepath` is its path; otherwise it is None.

    Args:
        filepath: a path, or a URL of any file system of fsspec, such as `s3://bucket/x.parquet`.
        version: Kedro's version, for `versioned: true`.
        credentials: further arguments of the file system, from credentials.yml.
        fs_args: further arguments of the file system; `open_args_load` and `open_args_save` are
            passed on when a file is read or written.
        metadata: Kedro's metadata of the entry.
    """

    # Files of a folder, in the order in which they are written: the last one makes it complete.
    _parts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        protocol, path = get_protocol_and_path(filepath, version)
        options = {**(credentials or {}), **(fs_args or {})}
        self._files = RemoteFiles(protocol, options, self._parts)
        self._protocol = protocol
        self.metadata = metadata
        self.filepath: Path | None = None
        if protocol == "file" and version is None:
            self.filepath = Path(path)
        super().__init__(
            filepath=PurePosixPath(path),
            version=version,
            exists_function=self._files.is_complete,
            glob_function=self._files.glob,
        )

    def remote_files(self) -> dict[str, str] | None:
        """Return "" -> checksum of what is stored on another machine; nothing if there is nothing.

        None: it is on this machine, has versions, or its file system states no checksum.
        """
        if self._protocol == "file" or self._version is not None:
            return None
        state = self.remote_state()
        if state is not None:
            return {"": state}
        return None if self._exists_remotely() else {}

    def _exists_remotely(self) -> bool:
        return self._files.is_complete(self._location(self._get_load_path()))

    def remote_state(self) -> str | None:
        """Return a checksum of what is stored on another machine, as its file system states it.

        None: it is on this machine, it does not exist, or its file system states no checksum.
        """
        if self._protocol == "file":
            return None
        return self._files.checksum(self._location(self._get_load_path()))

    def _describe(self) -> dict[str, Any]:
        return {
            "filepath": str(self._filepath),
            "protocol": self._protocol,
            "version": self._version,
        }

    def _exists(self) -> bool:
        if self.filepath is not None:
            return self.filepath.exists()
        return self._exists_remotely()

    def _release(self) -> None:
        super()._release()
        self._files.forget_lists()

    @contextmanager
    def _reading(self) -> Iterator[Path]:
        """Yield a path on this machine with the content."""
        stored = self._location(self._get_load_path())
        if self._protocol == "file":
            yield Path(stored)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / PurePosixPath(stored).name
            self._files.download(stored, local)
            try:
                yield local
            except InputError as exc:
                # The user knows the address and not the temporary copy.
                message = str(exc).replace(str(local), self._files.url(stored))
                raise InputError(message) from exc

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """Yield a path on this machine; what is written there is then stored."""
        stored = self._location(self._get_save_path())
        if self._protocol == "file":
            yield Path(stored)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / PurePosixPath(stored).name
            yield local
            self._files.upload(local, stored)

    def _location(self, path: PurePosixPath) -> str:
        return str(get_filepath_str(path, self._protocol))


class TableDataset(_Stored):
    """A Parquet table; its `DataFrame.attrs` are stored in the file's metadata."""

    def save(self, data: pd.DataFrame) -> None:
        """Write the table."""
        from pu_kd_pipeline.storage.table import write_table

        with self._writing() as path:
            write_table(data, path)

    def load(self) -> pd.DataFrame:
        """Read the table."""
        from pu_kd_pipeline.storage.table import read_table

        with self._reading() as path:
            return read_table(path)

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows and columns, for kedro-viz."""
        from pu_kd_pipeline.storage.previews import table_counts

        with self._reading() as path:
            return table_counts([path])

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first rows for kedro-viz."""
        from pu_kd_pipeline.storage.previews import table_preview

        return TablePreview(table_preview(self.load().head(nrows)))


class OptionalTableDataset(_Stored):
    """A Parquet table that another entry writes, or nobody: without it, None is loaded."""

    def save(self, data: NoReturn) -> None:
        """Refuse."""
        raise DatasetError(f"{self._filepath} is written by another catalog entry")

    def load(self) -> pd.DataFrame | None:
        """Read the table, if there is one."""
        from pu_kd_pipeline.storage.table import read_table

        if not super()._exists():
            return None
        with self._reading() as path:
            return read_table(path)

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first rows for kedro-viz; none where there is no table."""
        import pandas as pd

        from pu_kd_pipeline.storage.previews import table_preview

        table = self.load()
        return TablePreview(table_preview(pd.DataFrame() if table is None else table.head(nrows)))

    def _exists(self) -> bool:
        return True


class PageDataset(TextDataset):
    """Kedro's text file, with a preview of pages and other text; all its arguments are Kedro's."""

    def preview(self) -> HTMLPreview:
        """Return the text for kedro-viz."""
        from pu_kd_pipeline.storage.previews import page_preview

        is_html = PurePosixPath(self._filepath).suffix == ".html"
        return HTMLPreview(page_preview(self.load(), is_html=is_html))


class FigureDataset(_Stored):
    """A picture of a Matplotlib figure; Matplotlib is imported only when a figure is made.

    Args:
        filepath: the picture; its suffix is the format.
        save_args: further arguments of `Figure.savefig`.
        storage: further arguments of all stored datasets.
    """

    def __init__(
        self, *, filepath: str, save_args: dict[str, Any] | None = None, **storage: Any
    ) -> None:
        super().__init__(filepath=filepath, **storage)
        # Named explicitly, because `savefig` gets an open file, which has no suffix.
        file_format = PurePosixPath(filepath).suffix.removeprefix(".") or None
        self.save_args = {"format": file_format, **(save_args or {})}

    def save(self, data: Figure) -> None:
        """Write the picture."""
        from pu_kd_pipeline.storage.atomic import replacing_file

        with (
            self._writing() as path,
            replacing_file(path) as temporary,
            open(temporary, "wb") as file,
        ):
            data.savefig(file, **self.save_args)

    def load(self) -> NoReturn:
        """Refuse: a picture cannot be turned back into a figure."""
        raise DatasetError(f"{self._filepath} is a picture and cannot be loaded as a figure again")

    def preview(self) -> ImagePreview:
        """Return the picture for kedro-viz, as base64."""
        with self._reading() as path:
            encoded = base64.b64encode(path.read_bytes())
        return ImagePreview(encoded.decode())


class _ModelFolder(_Stored):
    """A folder with the weights of a network and its card."""

    # A folder without a card is no model, so that the card is written last.
    _card = "card.json"
    _parts = ("weights.safetensors", _card)

    def save(self, data: Model | PUClassifier) -> None:
        """Write the folder."""
        from pu_kd_pipeline.models.model import save_model

        with self._writing() as path:
            save_model(data, path)

    def preview(self) -> JSONPreview:
        """Return the card for kedro-viz."""
        with self._reading() as path:
            return JSONPreview((path / self._card).read_text(encoding="utf-8"))


class ModelDataset(_ModelFolder):
    """A classifier: weights.safetensors and card.json in one folder."""

    def load(self) -> Model:
        """Rebuild the network from its card and load its weights."""
        from pu_kd_pipeline.models.model import load_model

        with self._reading() as path:
            return load_model(path)


class PUClassifierDataset(_ModelFolder):
    """A PU classifier: weights.safetensors and card.json in one folder."""

    def load(self) -> PUClassifier:
        """Rebuild the classifier from its card and load its weights."""
        from pu_kd_pipeline.models.model import load_pu_classifier

        with self._reading() as path:
            return load_pu_classifier(path)
