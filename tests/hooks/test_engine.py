"""Trainings of a node use the engine of the run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from pu_kd_pipeline.datasets import CheckpointsDataset
from pu_kd_pipeline.engines import ray_cluster
from pu_kd_pipeline.engines.current import current_engine, shared_folder
from pu_kd_pipeline.engines.shards import LOCAL
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.engine import EngineHooks
from pu_kd_pipeline.hooks.preflight import PreflightHooks
from pu_kd_pipeline.incremental.staleness import CHECKPOINTS
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import read_parameters
from tests.conftest import PROJECT
from tests.engines.works import engine_of


def catalog_of(**blocks: object) -> DataCatalog:
    datasets = {f"params:{name}": MemoryDataset(block) for name, block in blocks.items()}
    return DataCatalog(datasets)


@pytest.mark.parametrize(("n_threads", "n_cpus"), [(None, 3), (2, 6)])
def test_a_cluster_that_is_started_has_a_place_for_the_trainings_of_the_run(
    monkeypatch: pytest.MonkeyPatch, n_threads: int | None, n_cpus: int
) -> None:
    given = read_parameters(PROJECT / "conf", "base")["distillation"]
    compute = {**given["compute"], "n_threads": n_threads}
    batch = {"batch_size": 6, "training_workers": {"n": 3}, "compute": compute}
    block = DistillationParams.model_validate({**given, **batch})
    pipeline = Pipeline([Node(trained, "params:distillation", "text", name="train")])
    started: list[float] = []
    ray = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **options: started.append(options["num_cpus"])
    )
    monkeypatch.setattr(ray_cluster, "import_ray", lambda: ray)
    monkeypatch.setattr(ray_cluster, "n_own_cpus", lambda: 2)

    EngineHooks().before_pipeline_run(pipeline=pipeline, catalog=catalog_of(distillation=block))
    # Whichever node is the first to need it.
    ray_cluster.connect(engine_of("ray", n_workers=1))
    EngineHooks().before_pipeline_run(pipeline=Pipeline([]), catalog=catalog_of())
    ray_cluster.connect(engine_of("ray", n_workers=1))
    assert started == [n_cpus, 2]


def trained(params: DistillationParams) -> str:
    return params.objective


NODE = Node(trained, "params:distillation", "text", name="train")


@pytest.mark.parametrize("end", ["after_node_run", "on_node_error"])
def test_a_node_has_the_engine_of_the_run_until_it_ends(end: str) -> None:
    hooks = EngineHooks()
    # Kedro leaves a block as it is where no node reads it.
    catalog = catalog_of(engine=engine_of("ray").model_dump())
    hooks.before_node_run(node=NODE, catalog=catalog)
    assert current_engine() == engine_of("ray")
    getattr(hooks, end)()
    assert current_engine() == LOCAL


def test_without_the_block_it_is_the_local_one() -> None:
    EngineHooks().before_node_run(node=NODE, catalog=catalog_of())
    assert current_engine() == LOCAL


def test_outputs_that_are_saved_after_a_node_find_its_folder(tmp_path: Path) -> None:
    checkpoints = CheckpointsDataset(filepath=str(tmp_path / "checkpoints"), every_s=60)
    catalog = DataCatalog({CHECKPOINTS: checkpoints})
    hooks = EngineHooks()
    hooks.before_node_run(node=NODE, catalog=catalog)
    hooks.after_node_run()
    with shared_folder() as folder:
        assert folder == tmp_path / "checkpoints" / "train"
        assert folder.is_dir()
    hooks.before_node_run(node=NODE, catalog=catalog_of())
    with shared_folder() as folder:
        assert folder is None


def test_a_training_on_a_cluster_without_the_package_is_refused_before_any_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = read_parameters(PROJECT / "conf", "base")["distillation"]
    block = DistillationParams.model_validate({**given, "training_workers": {"n": 2}})
    catalog = catalog_of(distillation=block, engine=engine_of("ray"))
    pipeline = Pipeline([NODE])
    with pytest.raises(InputError, match="^engine.kind is ray, and Ray is not installed"):
        PreflightHooks().before_pipeline_run(
            run_params={"runner": None}, pipeline=pipeline, catalog=catalog
        )
