"""A whole experiment without Kedro: every stage's functions, called in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pu_kd_pipeline.evaluation import compare_models, describe_selection, measure_students
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.features.scoring import score_shards
from pu_kd_pipeline.images.duplicates import Excluded, excluded_images, find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.yardstick import Yardstick
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
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.contact_sheet import plot_contact_sheet
from pu_kd_pipeline.reporting.html import render_report
from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history
from pu_kd_pipeline.selection.class_weights import compute_class_weights
from pu_kd_pipeline.selection.manifest import SubsetInputs, choose_random_subset, choose_subset
from pu_kd_pipeline.selection.proxy import Proxy
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.training.class_prior import estimate_prior, given_prior
from pu_kd_pipeline.training.distillation import distill
from pu_kd_pipeline.training.pu_classifier import train_end_to_end, train_head
from pu_kd_pipeline.training.teacher import train_classifier

PROJECT = Path(__file__).resolve().parents[2]
TYPES: dict[str, Any] = {
    "data_ingestion": DataIngestionParams,
    "teacher": TeacherParams,
    "teacher_training": TeacherTrainingParams,
    "pu_training": PUTrainingParams,
    "subset_materialization": SubsetParams,
    "class_weighting": ClassWeightingParams,
    "distillation": DistillationParams,
    "evaluation": EvaluationParams,
    "yardstick": YardstickParams,
}
QUICK = {
    "teacher_training": {"n_updates": 30},
    "pu_training": {
        "epochs": 2,
        "max_unlabeled": 1_000_000,
        "held_out_folds": 2,
        "prior_estimation": {"n_folds": 2, "epochs": 2, "n_bootstrap": 20},
    },
    "distillation": {"n_updates": 10, "record_every": 5},
    # One repeat measures nothing useful, but takes the same path.
    "evaluation": {"latency_repeats": 1},
}


def blocks_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the typed blocks of conf/base, overridden by QUICK and by the changes."""
    # Imported here, because experiments run on machines without it.
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(OmegaConf.merge(QUICK, changes))
    parameters = read_parameters(PROJECT / "conf", "base", given)
    blocks = {}
    for name, model in TYPES.items():
        blocks[name] = model.model_validate(parameters[name])
    return blocks


@dataclass(frozen=True)
class Experiment:
    """The results of all stages."""

    blocks: dict[str, Any]
    stores: dict[str, ImageStore]
    teacher: Model
    labeled_features: ShardedTable
    pool_features: ShardedTable
    prior: dict[str, Any]
    classifier: PUClassifier
    scores: ShardedTable
    ranks: pd.DataFrame
    excluded: Excluded
    manifest: pd.DataFrame
    weights: pd.DataFrame
    vectors: pd.DataFrame
    metrics: dict[str, Any]
    pu_history: pd.DataFrame
    student_history: pd.DataFrame

    @property
    def subset_inputs(self) -> SubsetInputs:
        """The inputs of selection."""
        proxy = Proxy(self.teacher, self.pool_features, self.blocks["distillation"])
        return SubsetInputs(
            self.scores,
            self.stores["labeled"],
            self.stores["pool"],
            self.prior,
            self.ranks,
            proxy,
            self.excluded,
            student=self.blocks["distillation"],
        )

    def page(self) -> str:
        """Run the stage `reporting` and return its page."""
        return render_report(
            "A variant",
            self.metrics,
            {},
            self.prior,
            dict(self.manifest.attrs),
            self._plots(),
            {},
        )

    def _plots(self) -> dict[str, Figure]:
        scores = self.scores.to_pandas()
        pool = self.stores["pool"]
        class_names = list(self.teacher.card.classes)
        return {
            "score_histogram": plot_score_histogram(scores, self.manifest, pool, self.prior),
            "contact_sheet": plot_contact_sheet(self.manifest, scores, pool, 4, class_names),
            "per_class_accuracy_plot": plot_per_class_accuracy(self.metrics, class_names),
            "distillation_curves": plot_distillation_history(self.student_history),
            "pu_curves": plot_pu_history(self.pu_history),
            "class_weights_plot": plot_class_weights(self.weights),
        }


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
        expected.shorter_side_px,
        expected.interpolation,
    )
    return write_store(plan, folder / name)


def features_of(
    store: ImageStore, teacher: Model, name: str, folder: Path, blocks: dict[str, Any]
) -> ShardedTable:
    """Run the stage `feature_extraction` for one store."""
    shards = feature_shards(store, teacher, blocks["distillation"].compute)
    return ShardedTable.write(folder / name, shards)


def run(blocks: dict[str, Any], folder: Path) -> Experiment:
    """Run every stage; models and tables are read back from disk, as the catalog does it."""
    stores = {}
    for name in ("labeled", "pool", "test", "teacher_training"):
        stores[name] = ingest(blocks, name, folder)
    labeled = stores["labeled"]
    pool = stores["pool"]
    teacher = _teacher(blocks, stores["teacher_training"], folder)
    labeled_features = features_of(labeled, teacher, "labeled_features", folder, blocks)
    pool_features = features_of(pool, teacher, "pool_features", folder, blocks)
    duplicates = find_duplicates(stores, None)
    measured = choose_yardstick(
        labeled,
        pool,
        labeled_features,
        pool_features,
        teacher,
        duplicates,
        blocks["yardstick"],
    )
    yardstick = Yardstick(measured, stores)
    excluded = excluded_images(duplicates, blocks["subset_materialization"], measured)

    params: PUTrainingParams = blocks["pu_training"]
    if params.class_prior is None:
        prior = estimate_prior(labeled_features, pool_features, params)
    else:
        prior = given_prior(params.class_prior, labeled_features, pool_features)
    # With a frozen backbone, features are the same in every epoch: the head reads their tables.
    if params.backbone == "frozen":
        trained = train_head(labeled_features, pool_features, teacher, prior["value"], params)
    else:
        trained = train_end_to_end(labeled, pool, teacher, prior["value"], params)
    classifier, pu_history, ranks = trained
    save_model(classifier, folder / "classifier")
    classifier = load_pu_classifier(folder / "classifier")
    score_makers = score_shards(pool_features, pool, classifier, params.compute)
    scores = ShardedTable.write(folder / "scores", score_makers)

    proxy = Proxy(teacher, pool_features, blocks["distillation"])
    inputs = SubsetInputs(
        scores, labeled, pool, prior, ranks, proxy, excluded, student=blocks["distillation"]
    )
    manifest = choose_subset(inputs, blocks["subset_materialization"])
    random_manifest = choose_random_subset(inputs, manifest, blocks["subset_materialization"])
    manifests = {"student": manifest, "random_student": random_manifest}
    class_names = teacher.card.classes
    weighting: ClassWeightingParams = blocks["class_weighting"]
    weights = {}
    vectors = {}
    for name, each in manifests.items():
        weights[name], vectors[name] = compute_class_weights(
            each, labeled_features, pool_features, class_names, weighting
        )
    students = {}
    histories = {}
    for name, each in manifests.items():
        students[name], histories[name] = distill(
            each,
            labeled,
            pool,
            teacher,
            vectors[name],
            blocks["distillation"],
            name=name,
            yardstick=yardstick,
        )
    models = {"teacher": teacher, **students}
    metrics, _ = compare_models(models, stores["test"], blocks["evaluation"])
    measure_students(metrics, models, yardstick, blocks["evaluation"])
    # Reporting needs a gain, whatever it is: these students are trained for a few updates only.
    metrics["selection"] = {**describe_selection(manifest, scores, pool, prior), "gain": 0.0}
    return Experiment(
        blocks=blocks,
        stores=stores,
        teacher=teacher,
        labeled_features=labeled_features,
        pool_features=pool_features,
        prior=prior,
        classifier=classifier,
        scores=scores,
        ranks=ranks,
        excluded=excluded,
        manifest=manifest,
        weights=weights["student"],
        vectors=vectors["student"],
        metrics=metrics,
        pu_history=pu_history,
        student_history=histories["student"],
    )


def _teacher(blocks: dict[str, Any], images: ImageStore, folder: Path) -> Model:
    if blocks["teacher"].weights is None:
        teacher, _ = train_classifier(blocks["teacher"], images, blocks["teacher_training"])
    else:
        teacher = new_teacher(blocks["teacher"])
    # Read back, so that a card which leaves something out shows in the next stage.
    save_model(teacher, folder / "teacher")
    return load_model(folder / "teacher")
