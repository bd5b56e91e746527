"""Whole experiments by the functions of `infra` alone: unusual teachers, pools and labels, and what grew stale."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.evaluation import compare_models, describe_selection
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.metrics import area_under_roc
from pu_kd_pipeline.models.factory import input_contract, new_teacher
from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.contact_sheet import plot_contact_sheet
from pu_kd_pipeline.reporting.html import render_report
from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history
from pu_kd_pipeline.selection.class_weights import weigh_classes
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.class_prior import estimate_prior, given_prior
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from pu_kd_pipeline.training.teacher import train_classifier

TYPES: dict[str, Any] = {
    "data_ingestion": DataIngestionParams,
    "teacher": TeacherParams,
    "teacher_training": TeacherTrainingParams,
    "pu_training": PUTrainingParams,
    "subset_materialization": SubsetParams,
    "class_weighting": ClassWeightingParams,
    "distillation": DistillationParams,
    "evaluation": EvaluationParams,
}
QUICK = {
    "teacher_training": {"n_updates": 30},
    "pu_training": {
        "epochs": 2, "held_out_folds": 2, "prior_estimation": {"n_folds": 2, "epochs": 2, "n_bootstrap": 20},
    },
    "distillation": {"n_updates": 10, "record_every": 5},
    "evaluation": {"latency_repeats": 1},
}  # fmt: skip


def blocks_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the typed blocks of conf/base with quick numbers and the changes laid over them, as an environment is."""
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(OmegaConf.merge(QUICK, changes))
    parameters = read_parameters(Path(__file__).parents[2] / "conf", "base", given)
    return {name: kind.model_validate(parameters[name]) for name, kind in TYPES.items()}


@dataclass(frozen=True)
class Experiment:
    """What every stage left behind."""

    folder: Path
    blocks: dict[str, Any]
    stores: dict[str, ImageStore]
    teacher: Model
    labeled_features: ShardedTable
    pool_features: ShardedTable
    prior: dict[str, Any]
    classifier: PUClassifier
    scores: ShardedTable
    ranks: pd.DataFrame
    manifest: pd.DataFrame
    weights: pd.DataFrame
    vectors: pd.DataFrame
    metrics: dict[str, Any]
    histories: dict[str, pd.DataFrame]

    @property
    def subset_inputs(self) -> SubsetInputs:
        """What selection reads."""
        proxy = Proxy(self.teacher, self.pool_features, self.blocks["distillation"])
        return SubsetInputs(
            self.scores, self.stores["labeled"], self.stores["pool"], self.prior, self.ranks, proxy
        )

    def page(self) -> str:
        """Run the stage `reporting`."""
        scores, pool, names = (
            self.scores.to_pandas(),
            self.stores["pool"],
            list(self.teacher.card.classes),
        )
        plots = {
            "score_histogram": plot_score_histogram(scores, self.manifest, pool, self.prior),
            "contact_sheet": plot_contact_sheet(self.manifest, scores, pool, 4, names),
            "per_class_accuracy_plot": plot_per_class_accuracy(self.metrics, names),
            "distillation_curves": plot_distillation_history(self.histories["student"]),
            "pu_curves": plot_pu_history(self.histories["pu"]),
            "class_weights_plot": plot_class_weights(self.weights),
        }
        return render_report(
            "A variant", self.metrics, {}, self.prior, dict(self.manifest.attrs), plots, {}
        )


def ingest(blocks: dict[str, Any], name: str, folder: Path) -> ImageStore:
    """Run one plan of the stage `data_ingestion`."""
    params: DataIngestionParams = blocks["data_ingestion"]
    expected, class_names = input_contract(blocks["teacher"])
    plan = IngestionPlan(
        name,
        getattr(params, name),
        expected.size_px,
        expected.channels,
        class_names,
        params.store,
        params.seed,
    )
    return write_store(plan, folder / name)


def features_of(
    store: ImageStore, teacher: Model, name: str, folder: Path, blocks: dict[str, Any]
) -> ShardedTable:
    """Run the stage `feature_extraction` for one store."""
    return ShardedTable.write(
        folder / name, feature_shards(store, teacher, blocks["distillation"].compute)
    )


def run(blocks: dict[str, Any], folder: Path) -> Experiment:
    """Run every stage, with models and tables read back from disk as the catalog does it."""
    stores = {
        name: ingest(blocks, name, folder)
        for name in ("labeled", "pool", "test", "teacher_training")
    }
    labeled, pool = stores["labeled"], stores["pool"]
    if blocks["teacher"].weights is None:
        teacher, _ = train_classifier(
            blocks["teacher"], stores["teacher_training"], blocks["teacher_training"]
        )
    else:
        teacher = new_teacher(blocks["teacher"])
    save_model(teacher, folder / "teacher")
    teacher = load_model(folder / "teacher")
    labeled_features = features_of(labeled, teacher, "labeled_features", folder, blocks)
    pool_features = features_of(pool, teacher, "pool_features", folder, blocks)
    params: PUTrainingParams = blocks["pu_training"]
    if params.class_prior is None:
        prior = estimate_prior(labeled_features, pool_features, params)
    else:
        prior = given_prior(params.class_prior, labeled_features, pool_features)
    if params.backbone == "frozen":
        classifier, history, ranks = train_head(
            labeled_features, pool_features, teacher, prior["value"], params
        )
    else:
        classifier, history, ranks = train_end_to_end(
            labeled, pool, teacher, prior["value"], params
        )
    save_model(classifier, folder / "classifier")
    classifier = load_pu_classifier(folder / "classifier")
    scores = ShardedTable.write(
        folder / "scores", score_shards(pool_features, pool, classifier, params.compute)
    )
    proxy = Proxy(teacher, pool_features, blocks["distillation"])
    inputs = SubsetInputs(scores, labeled, pool, prior, ranks, proxy)
    manifest = choose_subset(inputs, blocks["subset_materialization"])
    random_manifest = choose_random_subset(inputs, manifest, blocks["subset_materialization"])
    weighted = {
        name: weigh_classes(
            each, labeled_features, pool_features, teacher.card.classes, blocks["class_weighting"]
        )
        for name, each in {"student": manifest, "random_student": random_manifest}.items()
    }
    students = {
        name: distill(
            each, labeled, pool, teacher, weighted[name][1], blocks["distillation"], name=name
        )
        for name, each in {"student": manifest, "random_student": random_manifest}.items()
    }
    models = {"teacher": teacher, **{name: student for name, (student, _) in students.items()}}
    metrics = compare_models(models, stores["test"], blocks["evaluation"])
    metrics["selection"] = {**describe_selection(manifest, scores, pool, prior), "gain": 0.0}
    return Experiment(
        folder, blocks, stores, teacher, labeled_features, pool_features, prior, classifier, scores, ranks, manifest,
        *weighted["student"], metrics, {"pu": history, "student": students["student"][1]},
    )  # fmt: skip


# --- variants ---------------------------------------------------------------------------------------------------------

WITHOUT_KEDRO = """
import json, sys
from pathlib import Path


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kedro", "kedro_datasets", "mlflow", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
import torch
from tests.pipelines.test_end_to_end_variants import TYPES, run

torch.set_num_threads(1)
folder = Path(sys.argv[1])
given = json.loads((folder / "blocks.json").read_text())
made = run({name: TYPES[name].model_validate(block) for name, block in given.items()}, folder)
assert "data:image/png" in made.page()
print("RESULT" + json.dumps(made.metrics))
"""


def test_a_whole_experiment_runs_without_kedro_and_mlflow(tmp_path):
    blocks = {name: block.model_dump(mode="json") for name, block in blocks_of({}).items()}
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KEDRO, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads(result.stdout.rpartition("RESULT")[2])
    assert metrics["selection"]["true_class_prior"] == pytest.approx(0.2)
    assert 0 < metrics["student"]["accuracy"] <= 1


EVEN_OR_ODD = {str(digit): digit % 2 for digit in range(10)}


def demo(part: str, **changes: Any) -> list[dict[str, Any]]:
    """Return one source of digits, which are told to be even or odd."""
    return [
        {"type": "demo", "part": part, "labels": "classes", "label_map": EVEN_OR_ODD, **changes}
    ]


def test_two_classes_with_one_labeled_image_each_and_a_pool_smaller_than_a_batch(tmp_path):
    sources = {
        "labeled": demo("labeled", per_class=1),
        "pool": demo("pool", labels="truth", limit=12),
        "test": demo("test", limit=40),
        "teacher_training": demo("teacher_training", limit=60),
    }
    budget = {"criterion": "budget", "budget": 5000}  # more than there is
    made = run(
        blocks_of(
            {
                "data_ingestion": sources,
                "teacher": {"classes": ["even", "odd"]},
                "pu_training": {"class_prior": 0.3},
                "subset_materialization": budget,
            }
        ),
        tmp_path,
    )
    assert len(made.manifest) == 2 + 12
    assert made.metrics["selection"]["n_selected"] == 12
    assert len(made.metrics["student"]["per_class_accuracy"]) == 2
    assert made.prior["method"] == "given"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A flat folder of color and gray photos of several sizes, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
        image = Image.fromarray(pixels) if number % 2 else Image.fromarray(pixels[:, :, 0])
        image.save(folder / f"{number:02d}.{'png' if number % 3 else 'jpg'}")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return folder


@pytest.mark.parametrize("backbone", ["frozen", "full"])
def test_a_torchvision_teacher_with_encoded_images_and_a_pool_of_which_nothing_is_known(
    photos, tmp_path, backbone
):
    """MobileNet's default taps lie in blocks that torchvision's feature extraction does not look into."""
    made = run(
        blocks_of(
            {
                "data_ingestion": {
                    "labeled": demo("labeled", per_class=4),
                    "pool": [{"type": "folder", "path": str(photos)}, *demo("pool", labels="ignore", limit=30)],
                    "test": demo("test", limit=10),
                    "teacher_training": demo("teacher_training", limit=20),
                    "store": {"kind": "encoded", "shard_size": 25},
                },
                "teacher": {
                    "architecture": "mobilenet_v2",
                    "architecture_options": {"width_mult": 0.25},
                    "classes": ["even", "odd"],
                    "input": {"size_px": 32, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229] * 3},
                },
                "teacher_training": {"n_updates": 3, "batch_size": 8},
                "pu_training": {
                    "backbone": backbone, "features": "descriptor", "class_prior": 0.4, "epochs": 1,
                    "held_out_folds": 0,
                },
                "distillation": {
                    "student_architecture": "shufflenet_v2_x0_5", "student_options": {"width": None}, "batch_size": 8,
                    "n_updates": 2,
                },
            }
        ),
        tmp_path,
    )  # fmt: skip
    assert made.stores["pool"].kind == "encoded"
    assert len(made.stores["pool"].shards) == 3
    assert made.stores["pool"].quarantine["id"].tolist() == ["broken.png"]
    assert made.stores["pool"].read(np.arange(60)).shape == (60, 3, 32, 32)
    assert len(made.teacher.card.taps) == 4
    assert made.scores.to_pandas()["pu_score"].std() > 0
    assert made.ranks.empty
    assert not {"auc", "precision", "recall", "true_class_prior"} & set(made.metrics["selection"])
    if backbone == "frozen":
        assert "by the hidden truth" not in made.page()


def test_a_pool_whose_truth_is_known_in_part_is_reported(photos, tmp_path):
    sources = [
        {"type": "folder", "path": str(photos)},
        {"type": "demo", "part": "pool", "labels": "truth"},
    ]
    made = run(blocks_of({"data_ingestion": {"pool": sources}}), tmp_path)
    assert "auc" not in made.metrics["selection"]  # a part of the truth is no truth to measure with
    assert made.page().count("data:image/png;base64,") == 6


USERS_NETWORKS = """
from torch import nn


def small(n_classes, in_channels, width=8):
    layers = nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, n_classes)
    return nn.Sequential(*layers)
"""


def test_a_users_network_with_a_state_dict_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(USERS_NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_networks  # type: ignore[import-not-found]

    state = {
        f"module.{name}": value for name, value in users_networks.small(10, 1).state_dict().items()
    }
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "teacher.pt")
    teacher = {"architecture": "users_networks:small", "weights": str(tmp_path / "teacher.pt")}
    student = {"student_architecture": "users_networks:small", "student_options": {"width": 2}}
    changes = {
        "teacher": teacher,
        "distillation": student,
        "data_ingestion": {"teacher_training": []},
    }
    made = run(blocks_of(changes), tmp_path)
    torch.testing.assert_close(
        made.teacher.network.state_dict()["0.weight"], state["module.0.weight"]
    )
    assert made.metrics["student"]["parameters"] < made.metrics["teacher"]["parameters"]


# --- what grew stale --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return run(blocks_of({}), tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def other_teacher(made: Experiment) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return new_teacher(made.blocks["teacher"])


def test_selection_finds_the_digits(made):
    relevant = made.stores["pool"].index["relevant"].to_numpy(dtype=bool)
    assert area_under_roc(made.scores.to_pandas()["pu_score"].to_numpy(), relevant) > 0.6


def test_features_of_another_teacher_are_refused(made, other_teacher, tmp_path):
    blocks, pool = made.blocks, made.stores["pool"]
    features = features_of(pool, other_teacher, "features", tmp_path, blocks)
    with pytest.raises(
        InputError,
        match=r"pool_features: another network than the PU classifier's teacher made them",
    ):
        score_shards(features, pool, made.classifier, blocks["pu_training"].compute)
    with pytest.raises(
        InputError, match=r"pool_features: another network than teacher_model made them"
    ):
        train_head(made.labeled_features, features, made.teacher, 0.2, blocks["pu_training"])


def test_a_pool_that_grew_asks_for_features_and_scores_first(made, tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "one.png")
    params = made.blocks["data_ingestion"]
    more = {"type": "folder", "path": str(tmp_path), "name": "more"}
    sources = [source.model_dump() for source in params.pool] + [more]
    grown = DataIngestionParams.model_validate(params.model_dump() | {"pool": sources})
    pool = ingest({**made.blocks, "data_ingestion": grown}, "pool", tmp_path)
    assert len(pool) == len(made.stores["pool"]) + 1
    with pytest.raises(
        InputError, match=r"pool_features: pool_images changed since they were made"
    ):
        score_shards(made.pool_features, pool, made.classifier, made.blocks["pu_training"].compute)
    with pytest.raises(InputError, match=r"pool_scores: they cover 3,500 of the 3,501 pool images"):
        choose_subset(
            replace(made.subset_inputs, pool_images=pool), made.blocks["subset_materialization"]
        )


def distilled(made: Experiment, manifest: pd.DataFrame, teacher: Model) -> Any:
    stores = made.stores["labeled"], made.stores["pool"]
    return distill(
        manifest, *stores, teacher, made.vectors, made.blocks["distillation"], name="distillation"
    )


def test_weight_vectors_of_another_manifest_or_teacher_are_refused(made, other_teacher):
    other = choose_subset(
        made.subset_inputs, made.blocks["subset_materialization"].model_copy(update={"budget": 9})
    )
    with pytest.raises(InputError, match="weight_vectors: they were made for another manifest"):
        distilled(made, other, made.teacher)
    with pytest.raises(InputError, match="weight_vectors: another network than teacher_model"):
        distilled(made, made.manifest, other_teacher)


def test_a_student_of_another_teacher_is_pointed_out(made, other_teacher, caplog):
    student, _ = distilled(made, made.manifest, made.teacher)
    caplog.clear()
    test = made.stores["test"]
    compare_models({"teacher": made.teacher, "student": student}, test, made.blocks["evaluation"])
    assert not caplog.records
    compare_models({"teacher": other_teacher, "student": student}, test, made.blocks["evaluation"])
    assert [record.getMessage() for record in caplog.records] == [
        "student_model learned from another teacher than teacher_model: distill it again"
    ]
