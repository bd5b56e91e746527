"""Checkpoints of the trainings of a node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.incremental.staleness import CHECKPOINTS
from pu_kd_pipeline.training import checkpoints

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node


class CheckpointHooks:
    """Has the trainings of a node keep checkpoints in a folder of its own, until what it gives is saved."""

    def __init__(self) -> None:
        self._unsaved: dict[
            str, tuple[Path, set[str]]
        ] = {}  # node -> its folder, and its outputs that are to come

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog) -> None:
        """Tell trainings where to keep them; nowhere without an entry of the catalog that says so."""
        if CHECKPOINTS in catalog:
            dataset: Any = catalog.get(CHECKPOINTS)
            folder = dataset.filepath / node.name
            self._unsaved[node.name] = (folder, set(node.outputs))
            checkpoints.keep_in(folder, dataset.every_s)

    @hook_impl
    def after_node_run(self) -> None:
        """Have later trainings of this process keep none: what follows the node is the saving of its outputs."""
        checkpoints.keep_nowhere()

    @hook_impl
    def on_node_error(self) -> None:
        """Do the same, and leave the checkpoints: the node goes on from there."""
        checkpoints.keep_nowhere()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Remove a node's checkpoints once the last of its outputs is saved; Kedro saves after `after_node_run`."""
        if node.name in self._unsaved:
            folder, outputs = self._unsaved[node.name]
            outputs.discard(dataset_name)
            if not outputs:
                del self._unsaved[node.name]
                checkpoints.remove(folder)
