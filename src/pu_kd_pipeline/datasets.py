"""What the catalog needs to know of our files: one Kedro dataset a kind; reading and writing are others' business.

A dataset that saves a plan (`IngestionPlan`, a mapping of shard makers) runs it shard by shard in bounded memory.
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


# kedro-viz recognizes a preview by the name of its annotation, wherever that is defined
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
    """A folder in which something is kept beside what the nodes make; no node reads or writes it."""

    def save(self, data: NoReturn) -> None:
        """Refuse."""
        raise DatasetError(f"{self.filepath} is written by no node")

    def load(self) -> Path:
        """Return where it is."""
        return self.filepath


class CheckpointsDataset(FolderDataset):
    """The folder of checkpoints; trainings find it through a hook.

    Args:
        filepath: where every node that trains has a folder.
        every_s: seconds between two checkpoints of a training; 0: one after every update.
    """

    def __init__(
        self, *, filepath: str, every_s: float, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.every_s = every_s


class ImageStoreDataset(_OnDisk, AbstractDataset["IngestionPlan", "ImageStore"]):
    """An image store; saving an ingestion plan makes only the shards that are not there yet."""

    def save(self, data: IngestionPlan) -> None:
        """Run the plan."""
        from pu_kd_pipeline.images.ingestion import write_store

        write_store(data, self.filepath)

    def load(self) -> ImageStore:
        """Open the store; nothing is read yet."""
        from pu_kd_pipeline.images.store import ImageStore

        return ImageStore.open(self.filepath)

    def _exists(self) -> bool:
        return (self.filepath / "store.json").is_file()


class ShardedTableDataset(
    _OnDisk, AbstractDataset["Mapping[str, Callable[[], pa.Table]]", "ShardedTable"]
):
    """A table of one Parquet file a shard; saving makes only the shards that are not there yet.

    Shards that the table no longer has are removed, or kept for later with `keeps_others`.
    """

    def __init__(
        self, *, filepath: str, keeps_others: bool = False, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.keeps_others = keeps_others

    def save(self, data: Mapping[str, Callable[[], pa.Table]]) -> None:
        """Make the missing shards."""
        from pu_kd_pipeline.storage.sharded_table import ShardedTable

        ShardedTable.write(self.filepath, data, keeps_others=self.keeps_others)

    def load(self) -> ShardedTable:
        """Open the table; nothing is read yet."""
        from pu_kd_pipeline.storage.sharded_table import ShardedTable

        return ShardedTable.open(self.filepath)

    def files(self) -> list[Path]:
        """Return the files of the table, as far as they are there; others in its folder are none of its."""
        from pu_kd_pipeline.storage.sharded_table import files_of_table

        return files_of_table(self.filepath)

    def _exists(self) -> bool:
        return (self.filepath / "shards.json").is_file()


class TableDataset(_OnDisk, AbstractDataset["pd.DataFrame", "pd.DataFrame"]):
    """A Parquet table whose `DataFrame.attrs` live in the file's metadata."""

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
        return TablePreview(self.load().head(nrows).to_dict(orient="split"))


class FigureDataset(_OnDisk, AbstractDataset["Figure", NoReturn]):
    """A picture of a matplotlib figure; matplotlib is not imported before there is one.

    Args:
        save_args: further arguments of `Figure.savefig`; the format is that of the file's name.
    """

    def __init__(
        self,
        *,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.save_args = {
            "format": self.filepath.suffix.removeprefix(".") or None,
            **(save_args or {}),
        }

    def save(self, data: Figure) -> None:
        """Draw the picture."""
        from pu_kd_pipeline.storage.atomic import replacing_file

        with replacing_file(self.filepath) as temporary, open(temporary, "wb") as file:
            data.savefig(file, **self.save_args)

    def load(self) -> NoReturn:
        """Refuse: a picture is no figure any more."""
        raise DatasetError(f"{self.filepath} is a picture and cannot be loaded as a figure again")

    def preview(self) -> ImagePreview:
        """Return the picture for kedro-viz, as base64."""
        return ImagePreview(base64.b64encode(self.filepath.read_bytes()).decode())


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
