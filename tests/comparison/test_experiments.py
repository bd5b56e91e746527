"""The comparisons that conf/ configures."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from pu_kd_pipeline.comparison.grid import make_cells, with_overrides
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from tests.comparison.builders import BASE, PROJECT, block_of


def environment(name: str) -> dict[str, Any]:
    """Return the parameters of an environment's own file, after checking that they make a grid."""
    # OmegaConf refuses a key that is there twice; YAML alone keeps the last.
    loaded = OmegaConf.load(PROJECT / "conf" / name / "parameters.yml")
    parameters: dict[str, Any] = OmegaConf.to_container(loaded, resolve=False)
    # Where the images are, and the title, may differ between environments that compare the same.
    ingestion = parameters.pop("data_ingestion", None)
    if ingestion is not None:
        DataIngestionParams.model_validate(block_of("data_ingestion", **ingestion))
    comparison = with_overrides(block_of("comparison"), parameters["comparison"])
    assert make_cells(ComparisonParams.model_validate(comparison), BASE)
    parameters["comparison"].pop("title")
    return parameters


def test_the_mnist_environments_compare_the_same_students():
    """Sources apart, and in sweeps the number of updates: they make their students the same way."""
    tables = environment("mnist_planted")
    sweeps = environment("mnist_planted_sweeps")
    characters = environment("mnist_characters")
    assert environment("mnist") == tables
    for parameters in (sweeps, characters):
        assert parameters["pu_training"] == tables["pu_training"]
        assert parameters["distillation"] == {**tables["distillation"], "n_updates": 3000}
    for block in ("teacher", "teacher_training"):
        assert characters[block] == tables[block]
    variants = characters["comparison"]["variants"]
    shared = [name for name in variants if name.endswith("000")]
    assert len(shared) == 12
    for name in shared:
        assert sweeps["comparison"]["variants"][name] == variants[name]
