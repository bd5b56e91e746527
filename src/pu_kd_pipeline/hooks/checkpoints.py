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
    """Lets trainings of a node write checkpoints to its own folder, until its outputs are saved."""

    def __init__(self) -> None:
        # By node: its checkpoint folder, and its outputs that are not saved yet.
        self._folders: dict[str, Path] = {}
        self._unsaved_outputs: dict[str, set[str]] = {}

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog) -> None:
        """Set the checkpoint folder, if the catalog has an entry for it."""
        if CHECKPOINTS not in catalog:
            return
        dataset: Any = catalog.get(CHECKPOINTS)
        folder = dataset.filepath / node.name
        self._folders[node.name] = folder
        self._unsaved_outputs[node.name] = set(node.outputs)
        checkpoints.set_checkpoint_folder(folder, dataset.every_s)

    @hook_impl
    def after_node_run(self) -> None:
        """Disable checkpoints for later trainings of this process."""
        checkpoints.disable_checkpoints()

    @hook_impl
    def on_node_error(self) -> None:
        """Disable checkpoints; those that exist stay, because the node resumes from them."""
        checkpoints.disable_checkpoints()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Remove a node's checkpoints once its last output is saved."""
        # Kedro saves the outputs after `after_node_run`, so that hook would be too early.
        if node.name not in self._folders:
            return
        unsaved = self._unsaved_outputs[node.name]
        unsaved.discard(dataset_name)
        if not unsaved:
            del self._unsaved_outputs[node.name]
            checkpoints.remove(self._folders.pop(node.name))
