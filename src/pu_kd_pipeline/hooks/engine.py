"""Where trainings find the workers that share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedro.framework.hooks import hook_impl

from pu_kd_pipeline.engines.current import set_engine
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.params.engine import EngineParams

if TYPE_CHECKING:
    from kedro.io import DataCatalog

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
    def before_node_run(self, catalog: DataCatalog) -> None:
        """Set the engine of the run, in the thread of the node."""
        set_engine(engine_of(catalog))

    @hook_impl
    def after_node_run(self) -> None:
        """Let later trainings of this process use this machine."""
        set_engine(LOCAL)

    @hook_impl
    def on_node_error(self) -> None:
        """Let later trainings of this process use this machine."""
        set_engine(LOCAL)
