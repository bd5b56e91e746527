"""Where trainings find the workers that share them, and workers what they are started with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.engines.current import set_engine, set_shared_folder
from pu_kd_pipeline.engines.ray_cluster import set_cpus_of_trainings
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.incremental.staleness import CHECKPOINTS
from pu_kd_pipeline.params.engine import EngineParams

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

ENGINE = "engine"  # the block


def engine_of(catalog: DataCatalog) -> EngineParams:
    """Return the block `engine`, also where no node of the run reads it."""
    name = f"params:{ENGINE}"
    if name not in catalog:
        return LOCAL
    # Kedro makes models of the blocks that nodes read, and leaves others as they are.
    return EngineParams.model_validate(catalog.load(name))


class EngineHooks:
    """Lets the trainings of a run use the cluster that its shards use."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Set how many CPUs a cluster needs that is started for the run."""
        n_cpus = 0
        for name in pipeline.inputs():
            if not name.startswith("params:"):
                continue
            block = catalog.load(name)
            if hasattr(block, "training_workers"):
                n_cpus = max(n_cpus, block.training_workers.n * (block.compute.n_threads or 1))
        set_cpus_of_trainings(n_cpus)

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog) -> None:
        """Set the engine of the run, in the thread of the node, and a folder for its work."""
        set_engine(engine_of(catalog))
        folder = None
        if CHECKPOINTS in catalog:
            dataset: Any = catalog.get(CHECKPOINTS)
            folder = dataset.filepath / node.name
        # It stays until the next node: shards are made when outputs are saved, after the node.
        set_shared_folder(folder)

    @hook_impl
    def after_node_run(self) -> None:
        """Let later trainings of this process use this machine."""
        set_engine(LOCAL)

    @hook_impl
    def on_node_error(self) -> None:
        """Let later trainings of this process use this machine."""
        set_engine(LOCAL)
