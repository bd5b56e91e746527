"""The comparisons that conf/ configures."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from pu_kd_pipeline.comparison.grid import make_cells
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.overrides import with_overrides
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
    character_sweeps = environment("mnist_characters_sweeps")
    assert environment("mnist") == tables
    for parameters in (sweeps, characters, character_sweeps):
        assert parameters["pu_training"] == tables["pu_training"]
        assert parameters["distillation"] == {**tables["distillation"], "n_updates": 3000}
    for block in ("teacher", "teacher_training"):
        assert characters[block] == tables[block]
    variants = character_sweeps["comparison"]["variants"]
    shared = [name for name in variants if name.endswith("000")]
    assert len(shared) == 12
    for name in shared:
        assert sweeps["comparison"]["variants"][name] == variants[name]


SELECTION = ("caltech", "cifar10_small", "mnist_characters", "rare")


def test_the_environments_of_the_selection_table_compare_the_same_students():
    """Sources, sizes and lengths may differ, and the original images, which not all have."""
    tables = []
    for name in SELECTION:
        comparison = environment(name)["comparison"]
        for key in ("labeled_per_class", "n_updates"):
            assert comparison.pop(key)
        assert set(comparison.pop("budgets")) == {"small", "large"}
        comparison["variants"].pop("kd_original", None)
        tables.append(comparison)
    assert all(table == tables[0] for table in tables)
    assert tables[0]["variant_set"] == "selection"


def test_the_cifar_environments_share_their_networks():
    small = environment("cifar10_small")
    # The same sources, too.
    sources = OmegaConf.load(PROJECT / "conf" / "cifar10_small" / "parameters.yml")
    of_rules = OmegaConf.load(PROJECT / "conf" / "cifar10_small_rules" / "parameters.yml")
    assert of_rules["data_ingestion"] == sources["data_ingestion"]
    for name in ("cifar10_small_rules", "rare"):
        parameters = environment(name)
        for block in ("teacher", "teacher_training", "pu_training", "distillation"):
            assert parameters[block] == small[block]


def test_the_images_hidden_in_the_rare_pool_are_seen_by_nobody_else():
    parameters = OmegaConf.load(PROJECT / "conf" / "rare" / "parameters.yml")
    ingestion: dict[str, Any] = OmegaConf.to_container(parameters["data_ingestion"], resolve=False)
    planted, unrelated = ingestion["pool"]
    [teacher_training] = ingestion["teacher_training"]
    [labeled] = ingestion["labeled"]
    assert planted["path"] == teacher_training["path"] == labeled["path"]
    n_planted = planted["label_ranks"][1]
    assert planted["label_ranks"][0] == 0
    for source in (teacher_training, labeled):
        assert source["label_ranks"][0] >= n_planted
    # Every class that the other environment counts as related is left out of the rest.
    small = OmegaConf.load(PROJECT / "conf" / "cifar10_small" / "parameters.yml")
    related = small["data_ingestion"]["pool"][0]["label_map"]
    assert sorted(unrelated["exclude_labels"]) == sorted(int(label) for label in related)
    assert unrelated["label_map"] == {}
