"""The catalog's dataset types, one per kind of file; other packages read and write the files.

A dataset that saves a plan (`IngestionPlan`, a mapping of functions that make one shard each) runs
it shard by shard, in bounded memory.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, NoReturn

from kedro.io.core import AbstractDataset, DatasetError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

    from pu_kd_pipeline.images.plan import IngestionPlan
    from pu_kd_pipeline.images.store import ImageStore
    from pu_kd_pipeline.models.model import Model, PUClassifier
    from pu_kd_pipeline.storage.sharded_table import ShardedTable


# kedro-viz recognizes a preview by the name of its return annotation, wherever that is defined.
TablePreview = NewType("TablePreview", dict[str, Any])
ImagePreview = NewType("ImagePreview", str)


class _OnDisk:
    """A dataset of one file or folder."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self.filepath = Path(filepath)
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


class ImageStoreDataset(_OnDisk, AbstractDataset["IngestionPlan", "ImageStore"]):
    """An image store; saving an ingestion plan makes only the missing and damaged shards."""

    def make_again(self) -> None:
        """Make the next save read and decode every image, also those that are stored or set aside.

        It holds until a save has succeeded, also in later processes: if one is stopped in between,
        it leaves the old store, whose images must not be kept then.
        """
        if self.filepath.is_dir():
            self._make_again_file.touch()

    def save(self, data: IngestionPlan) -> None:
        """Run the plan."""
        from pu_kd_pipeline.images.ingestion import write_store

        marker = self._make_again_file
        write_store(data, self.filepath, makes_again=marker.exists())
        marker.unlink(missing_ok=True)

    @property
    def _make_again_file(self) -> Path:
        # Hidden files are not part of a data set.
        return self.filepath / ".make_again"

    def load(self) -> ImageStore:
        """Open the store; nothing is read yet."""
        from pu_kd_pipeline.images.store import ImageStore

        return ImageStore.open(self.filepath)

    def _exists(self) -> bool:
        # The file is written last: without it, the store is incomplete.
        return (self.filepath / "store.json").is_file()


class ShardedTableDataset(
    _OnDisk, AbstractDataset["Mapping[str, Callable[[], pa.Table]]", "ShardedTable"]
):
    """A table with one Parquet file per shard; saving makes only the missing and damaged shards.

    Args:
        filepath: the folder of the files.
        keeps_others: keep shards that the table no longer has, instead of removing them.
        metadata: Kedro's metadata of the entry.
    """

    def __init__(
        self, *, filepath: str, keeps_others: bool = False, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
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

        ShardedTable.write(
            self.filepath, data, keeps_others=self.keeps_others, makes_again=self._makes_again
        )
        self._makes_again = False

    def load(self) -> ShardedTable:
        """Open the table; nothing is read yet."""
        from pu_kd_pipeline.storage.sharded_table import ShardedTable

        return ShardedTable.open(self.filepath)

    def files(self) -> list[Path]:
        """Return the existing files of the table, without other files in its folder."""
        from pu_kd_pipeline.storage.sharded_table import table_files

        return table_files(self.filepath)

    def _exists(self) -> bool:
        # The file is written last: without it, the table is incomplete.
        return (self.filepath / "shards.json").is_file()


class TableDataset(_OnDisk, AbstractDataset["pd.DataFrame", "pd.DataFrame"]):
    """A Parquet table; its `DataFrame.attrs` are stored in the file's metadata."""

    def save(self, data: pd.DataFrame) -> None:
        """Write the table."""
        from pu_kd_pipeline.storage.table import write_table

        write_table(data, self.filepath)

    def load(self) -> pd.DataFrame:
        """Read the table."""
        from pu_kd_pipeline.storage.table import read_table

        return read_table(self.filepath)

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first rows for kedro-viz."""
        first_rows = self.load().head(nrows)
        return TablePreview(first_rows.to_dict(orient="split"))


class FigureDataset(_OnDisk, AbstractDataset["Figure", NoReturn]):
    """A picture of a Matplotlib figure; Matplotlib is imported only when a figure is made.

    Args:
        filepath: the picture; its suffix is the format.
        save_args: further arguments of `Figure.savefig`.
        metadata: Kedro's metadata of the entry.
    """

    def __init__(
        self,
        *,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        # Named explicitly, because `savefig` gets an open file, which has no suffix.
        file_format = self.filepath.suffix.removeprefix(".") or None
        self.save_args = {"format": file_format, **(save_args or {})}

    def save(self, data: Figure) -> None:
        """Write the picture."""
        from pu_kd_pipeline.storage.atomic import replacing_file

        with replacing_file(self.filepath) as temporary, open(temporary, "wb") as file:
            data.savefig(file, **self.save_args)

    def load(self) -> NoReturn:
        """Refuse: a picture cannot be turned back into a figure."""
        raise DatasetError(f"{self.filepath} is a picture and cannot be loaded as a figure again")

    def preview(self) -> ImagePreview:
        """Return the picture for kedro-viz, as base64."""
        encoded = base64.b64encode(self.filepath.read_bytes())
        return ImagePreview(encoded.decode())


class ModelDataset(_OnDisk, AbstractDataset["Model", "Model"]):
    """A classifier: weights.safetensors and card.json in one folder."""

    def save(self, data: Model) -> None:
        """Write the folder."""
        from pu_kd_pipeline.models.model import save_model

        save_model(data, self.filepath)

    def load(self) -> Model:
        """Rebuild the network from its card and load its weights."""
        from pu_kd_pipeline.models.model import load_model

        return load_model(self.filepath)


class PUClassifierDataset(_OnDisk, AbstractDataset["PUClassifier", "PUClassifier"]):
    """A PU classifier: weights.safetensors and card.json in one folder."""

    def save(self, data: PUClassifier) -> None:
        """Write the folder."""
        from pu_kd_pipeline.models.model import save_model

        save_model(data, self.filepath)

    def load(self) -> PUClassifier:
        """Rebuild the classifier from its card and load its weights."""
        from pu_kd_pipeline.models.model import load_pu_classifier

        return load_pu_classifier(self.filepath)
