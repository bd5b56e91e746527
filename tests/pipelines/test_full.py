"""What a whole run of the pipeline through the command line writes."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import load_model, load_pu_classifier
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from pu_kd_pipeline.verdicts import difference_of
from tests.pipelines.finished_run import (
    FEATURES,
    IMAGES,
    MODEL_INPUT,
    MODEL_OUTPUT,
    MODELS,
    REPORTING,
    pool_scores,
    selected_from_pool,
)

pytestmark = pytest.mark.xdist_group("finished_run")


@pytest.fixture(scope="module")
def metrics(finished_run: Path) -> dict:
    file = finished_run / REPORTING / "metrics.json"
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def manifest(finished_run: Path) -> pd.DataFrame:
    return read_table(finished_run / MODEL_INPUT / "manifest.parquet")


@pytest.fixture(scope="module")
def pool_images(finished_run: Path) -> ImageStore:
    return ImageStore.open(finished_run / IMAGES / "pool_images")


@pytest.fixture(scope="module")
def scores(finished_run: Path) -> pd.DataFrame:
    return pool_scores(finished_run)


@pytest.mark.parametrize("model", ["teacher", "student", "random_student"])
def test_metrics_describe_every_model(metrics, model):
    facts = metrics[model]

    assert 0 <= facts["accuracy"] <= 1
    assert len(facts["per_class_accuracy"]) == 10
    for key in ("parameters", "flops", "size_bytes", "latency_ms"):
        assert facts[key] > 0
    assert facts["latency_spread_ms"] >= 0


def test_the_student_is_ten_times_smaller_than_the_teacher(metrics):
    teacher = metrics["teacher"]
    student = metrics["student"]

    assert teacher["agreement"] == 1
    assert student["parameters"] < teacher["parameters"] / 10
    # One of the teacher's convolutions: 2 x 64 pixels x 9 positions x 32 x 64 channels.
    one_convolution_flops = 2 * 64 * 9 * 32 * 64
    assert teacher["flops"] > one_convolution_flops


def test_metrics_describe_the_selection(metrics):
    selection = metrics["selection"]
    student_accuracy = metrics["student"]["accuracy"]
    random_accuracy = metrics["random_student"]["accuracy"]
    assert selection["gain"] == pytest.approx(student_accuracy - random_accuracy)

    # Few of the demo's pool are digits.
    assert selection["true_class_prior"] == pytest.approx(250 / 3050)
    lower = selection["class_prior_lower"]
    upper = selection["class_prior_upper"]
    assert lower <= selection["class_prior"]
    assert selection["class_prior"] <= upper
    # Labeled images and pool of the demo come from the same source.
    assert selection["class_prior_flag"] is None
    assert selection["class_prior_readings"]["outputs"] == pytest.approx(250 / 3050, abs=0.15)

    # Better than chance: an AUC of 0.5, and as many digits as in the pool.
    assert selection["auc"] > 0.6
    assert selection["precision"] > 250 / 3050
    assert selection["precision"] <= 1
    assert selection["recall"] > 0
    assert selection["recall"] <= 1


def test_the_gain_is_tested_on_the_kept_predictions(finished_run, metrics):
    predictions = read_table(finished_run / MODEL_OUTPUT / "test_predictions.parquet")
    models = ["teacher", "student", "random_student"]
    # Ids and classes alone: nothing that shows an image.
    assert list(predictions.columns) == ["id", "label", *models]
    assert len(predictions) == metrics["n_test"]
    for name in models:
        accuracy = (predictions[name] == predictions["label"]).mean()
        assert metrics[name]["accuracy"] == pytest.approx(accuracy)

    found = difference_of(predictions, "student", "random_student")
    selection = metrics["selection"]
    assert selection["gain_reason"] is None
    assert selection["is_control_verified"]
    values = [selection[f"gain{key}"] for key in ("", "_lower", "_upper", "_p_value")]
    assert values == pytest.approx(list(found))


def test_the_sentences_of_the_metrics_are_those_of_log_and_page(finished_run, metrics):
    page = (finished_run / REPORTING / "report.html").read_text()
    page = page.replace("\u00a0", " ").replace("&lt;", "<")
    output = " ".join((finished_run / "output.txt").read_text().split())
    sentences = metrics["findings"] + metrics["doubts"]
    assert len(metrics["findings"]) == 3
    for sentence in sentences:
        assert sentence in page
        # In the log, and in the summary at the end.
        assert output.count(sentence) >= 1


def test_the_manifest_has_the_selected_images_and_the_rule(manifest, metrics):
    columns = "id origin shard row pu_score teacher_class teacher_confidence"
    drawing = ["sampling_probability", "reason", "related_probability"]
    assert list(manifest.columns) == [*columns.split(), *drawing]

    n_selected = metrics["selection"]["n_selected"]
    n_per_origin = manifest["origin"].value_counts()
    assert n_per_origin["labeled"] == 100
    assert n_per_origin["pool"] == n_selected
    assert set(n_per_origin.index) == {"labeled", "pool"}
    assert manifest["id"].is_unique

    fingerprints = manifest.attrs["fingerprints"]
    assert set(fingerprints) == {"labeled_images", "pool_images", "pool_scores"}


def test_the_rule_mixture_keeps_the_pool_and_draws_likely_positives_more_often(
    finished_run, manifest, scores, metrics
):
    yardstick = pd.read_parquet(finished_run / MODEL_INPUT / "yardstick.parquet")
    scores = scores[~scores["id"].isin(yardstick["id"])]
    assert manifest.attrs["rule"] == "mixture"
    assert manifest.attrs["threshold"] is None
    selected = selected_from_pool(manifest)
    assert set(selected["id"]) == set(scores["id"])
    assert metrics["selection"]["size_source"] == "whole pool"

    # Half of the class prior, the largest one of its readings.
    readings = metrics["selection"]["class_prior_readings"]
    largest = max(readings[name] for name in ("trained", "outputs", "outputs_bbe"))
    assert manifest.attrs["mixture"]["temperature"] == pytest.approx(largest / 2)

    is_related = selected["reason"] == "related"
    related, others = selected[is_related], selected[~is_related]
    assert set(others["reason"]) == {"random"}
    assert related["pu_score"].median() > others["pu_score"].median()
    even = 1 / len(selected)
    assert (related["related_probability"] > even).all()
    assert (others["related_probability"] <= even).all()

    assert metrics["selection"]["reasons"] == {
        "labeled": 100,
        "related": len(related),
        "random": len(others),
    }


def test_the_facts_of_the_manifest_can_be_read_without_this_package(finished_run, metrics):
    schema = pq.read_schema(finished_run / MODEL_INPUT / "manifest.parquet")
    facts = json.loads(schema.metadata[b"pu_kd_pipeline"])

    assert facts["class_prior"] == metrics["selection"]["class_prior"]


def test_shard_and_row_of_the_manifest_locate_its_images(manifest, pool_images):
    starts = {shard.name: shard.start for shard in pool_images.shards}
    selected = selected_from_pool(manifest)

    # `row` counts within the shard, the index of the store over all shards.
    rows = selected["shard"].map(starts) + selected["row"]
    located_ids = pool_images.index["id"].iloc[rows]
    assert located_ids.tolist() == selected["id"].tolist()


def test_the_random_manifest_is_the_same_pool_drawn_evenly(finished_run, manifest):
    random_manifest = read_table(finished_run / MODEL_INPUT / "random_manifest.parquet")
    assert random_manifest.attrs["rule"] == "random"
    assert set(manifest["id"]) == set(random_manifest["id"])
    of_pool = random_manifest["sampling_probability"].dropna()
    assert len(of_pool) == len(manifest) - 100
    assert of_pool.nunique() == 1


def test_features_have_the_stated_types_and_are_the_teachers(finished_run, pool_images, scores):
    features = ShardedTable.open(finished_run / FEATURES / "pool_features")
    teacher = load_model(finished_run / MODELS / "teacher_model")

    # float16 halves the largest table of a run; logits stay exact for distillation.
    first_shard = next(features.shards())
    descriptor = first_shard.schema.field("descriptor")
    logits = first_shard.schema.field("logits")
    extractor = teacher.extractor()
    assert descriptor.type == pa.list_(pa.float16(), extractor.descriptor_size)
    assert logits.type == pa.list_(pa.float32(), 10)

    ids = features.arrays("id")
    assert ids.tolist() == pool_images.index["id"].tolist()

    predicted_class = features.arrays("logits").argmax(axis=1)
    assert (scores["teacher_class"] == predicted_class).all()


def test_weights_and_weight_vectors_are_consistent(finished_run):
    folder = finished_run / MODEL_INPUT
    class_weights = read_table(folder / "class_weights.parquet")
    weights = class_weights["weight"].to_numpy()
    vectors = read_table(folder / "weight_vectors.parquet").to_numpy()

    # The mode of the default recipe is `shrunk`: an image has the weight 1 in the mean.
    assert class_weights.attrs["mean_sample_weight"] == pytest.approx(1, rel=1e-5)
    assert vectors.shape == (9, 10)
    np.testing.assert_allclose(vectors[0], weights, rtol=1e-5)
    # class_weighting.relative_epsilon of conf/base, and the rounding error of float32.
    largest_perturbation = np.abs(vectors / weights - 1).max()
    assert 0 < largest_perturbation <= 0.5 + 1e-5


@pytest.mark.parametrize(
    "name", ["teacher_model", "student_model", "random_student_model", "pu_classifier"]
)
def test_models_are_folders_of_safetensors_and_a_card(finished_run, name):
    folder = finished_run / MODELS / name
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["card.json", "weights.safetensors"]


def test_the_pu_classifier_has_a_frozen_backbone(finished_run):
    classifier = load_pu_classifier(finished_run / MODELS / "pu_classifier")
    assert classifier.card.backbone == "frozen"


def test_the_run_prints_its_table(finished_run):
    output = (finished_run / "output.txt").read_text()
    # The table and the log name the same number in two ways.
    output = output.replace("selection.gain", "selection gain")

    assert "selection gain" in output
    assert "report.html" in output


def test_the_run_is_tracked(finished_run, metrics):
    database = finished_run / "mlflow" / "mlflow.db"
    with sqlite3.connect(database) as store:
        runs = store.execute("select status from runs").fetchall()
        metric_rows = store.execute("select key, value from latest_metrics").fetchall()
        parameter_rows = store.execute("select key, value from params").fetchall()
    logged = dict(metric_rows)
    parameters = dict(parameter_rows)

    # One run: the stages of a full run share it.
    assert runs == [("FINISHED",)]
    assert logged["student/accuracy"] == pytest.approx(metrics["student"]["accuracy"])
    assert {"pu_training/risk", "distillation/loss", "teacher_training/loss"} <= set(logged)
    assert parameters["distillation.n_updates"] == "60"


def test_the_report_is_one_self_contained_page(finished_run):
    folder = finished_run / REPORTING
    page = (folder / "report.html").read_text()
    figures = list(folder.glob("*.png"))
    # Namespaces of SVG and MathML look like addresses, but nothing is loaded from them.
    page_without_namespaces = page.replace("http://www.w3.org", "")

    # Each image is embedded once.
    pictures = re.findall(r'src="data:image/png;base64,[^"]+" data-picture="([0-9]+)"', page)
    assert len(pictures) == len(set(pictures)) == page.count("data:image/") > 100
    assert len(page) < 5_000_000
    assert "http://" not in page_without_namespaces
    assert len(figures) == 6


def test_the_report_of_one_run_holds_nothing_of_another(finished_run):
    page = (finished_run / REPORTING / "report.html").read_text()
    assert '<p class="doubts">' not in page
    provenance = json.loads((finished_run / REPORTING / "certificate.json").read_text())[
        "provenance"
    ]
    # Whether it is known depends on where the tests run.
    assert ("git checkout" in page) == (provenance["commit"] is not None)
