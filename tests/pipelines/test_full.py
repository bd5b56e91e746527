"""The whole pipeline through the command line: in full, stage by stage, and with wrong input."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import load_model, load_pu_classifier
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, run_kedro

pytestmark = pytest.mark.xdist_group("finished_run")

IMAGES = "02_intermediate"
FEATURES = "04_feature"
MODEL_INPUT = "05_model_input"
MODELS = "06_models"
MODEL_OUTPUT = "07_model_output"
REPORTING = "08_reporting"


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


def pool_scores(run: Path) -> pd.DataFrame:
    """Return the score of every pool image."""
    table = ShardedTable.open(run / MODEL_OUTPUT / "pool_scores")
    return table.to_pandas()


def selected_from_pool(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a manifest without those of the labeled images."""
    is_from_pool = manifest["origin"] == "pool"
    return manifest[is_from_pool]


@pytest.mark.parametrize("model", ["teacher", "student", "random_student"])
def test_metrics_describe_every_model(metrics, model):
    facts = metrics[model]

    assert 0 <= facts["accuracy"] <= 1
    assert len(facts["per_class_accuracy"]) == 10
    for key in ("parameters", "flops", "size_bytes", "latency_ms"):
        assert facts[key] > 0


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
    assert selection["true_class_prior"] == pytest.approx(0.2)
    assert selection["class_prior_lower"] <= selection["class_prior"]
    assert selection["class_prior"] <= selection["class_prior_upper"]
    assert selection["auc"] > 0.6
    assert 0.2 < selection["precision"] <= 1
    assert 0 < selection["recall"] <= 1


def test_the_manifest_has_the_selected_images_and_the_rule(manifest, metrics):
    columns = "id origin shard row pu_score teacher_class teacher_confidence"
    assert list(manifest.columns) == columns.split()

    n_selected = metrics["selection"]["n_selected"]
    n_per_origin = manifest["origin"].value_counts()
    assert n_per_origin.to_dict() == {"labeled": 100, "pool": n_selected}
    assert manifest["id"].is_unique

    fingerprints = manifest.attrs["fingerprints"]
    assert set(fingerprints) == {"labeled_images", "pool_images", "pool_scores"}


def test_the_rule_disagreement_draws_half_at_random_and_half_likely_positives(
    manifest, scores, metrics
):
    assert manifest.attrs["rule"] == "disagreement"
    # The rule takes a number of images, not all above a score.
    assert manifest.attrs["threshold"] is None

    class_prior = metrics["selection"]["class_prior"]
    n_likely = round(class_prior * len(scores))
    selected_scores = selected_from_pool(manifest)["pu_score"]
    assert len(selected_scores) == n_likely

    half = round(n_likely / 2)
    random_half = selected_scores.iloc[:half]
    likely_half = selected_scores.iloc[half:]
    all_scores = scores["pu_score"]
    lowest_likely_score = all_scores.nlargest(n_likely).min()
    assert (likely_half >= lowest_likely_score).all()
    assert random_half.min() < all_scores.median()


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


def test_the_random_manifest_has_the_same_size_and_other_images(finished_run, manifest):
    random_manifest = read_table(finished_run / MODEL_INPUT / "random_manifest.parquet")

    assert len(manifest) == len(random_manifest)
    assert set(manifest["id"]) != set(random_manifest["id"])
    assert random_manifest.attrs["rule"] == "random"


def test_features_have_the_stated_types_and_are_the_teachers(finished_run, pool_images, scores):
    features = ShardedTable.open(finished_run / FEATURES / "pool_features")
    teacher = load_model(finished_run / MODELS / "teacher_model")

    # float16 halves the largest table of a run; logits stay exact for distillation.
    first_shard = next(features.shards())
    descriptor_type = first_shard.schema.field("descriptor").type
    logits_type = first_shard.schema.field("logits").type
    descriptor_size = teacher.extractor().descriptor_size
    assert descriptor_type == pa.list_(pa.float16(), descriptor_size)
    assert logits_type == pa.list_(pa.float32(), 10)

    ids = features.arrays("id")
    assert ids.tolist() == pool_images.index["id"].tolist()

    predicted_class = features.arrays("logits").argmax(axis=1)
    assert (scores["teacher_class"] == predicted_class).all()


def test_weights_and_weight_vectors_are_consistent(finished_run):
    folder = finished_run / MODEL_INPUT
    class_weights = read_table(folder / "class_weights.parquet")
    weights = class_weights["weight"].to_numpy()
    vectors = read_table(folder / "weight_vectors.parquet").to_numpy()

    assert weights.sum() == pytest.approx(10, rel=1e-5)
    assert vectors.shape == (9, 10)
    np.testing.assert_allclose(vectors.sum(axis=1), 10, rtol=1e-5)
    # class_weighting.epsilon of conf/base, and the rounding error of float32.
    largest_perturbation = np.abs(vectors - weights).max()
    assert largest_perturbation <= 0.1 + 1e-5


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
    assert {"pu_training/risk", "distillation/loss", "teacher/loss"} <= set(logged)
    assert parameters["distillation.n_updates"] == "60"


def test_the_report_is_one_self_contained_page(finished_run):
    folder = finished_run / REPORTING
    page = (folder / "report.html").read_text()
    figures = list(folder.glob("*.png"))
    # Namespaces of SVG and MathML look like addresses, but nothing is loaded from them.
    page_without_namespaces = page.replace("http://www.w3.org", "")

    assert page.count("data:image/png;base64,") == 6
    assert "http://" not in page_without_namespaces
    assert len(figures) == 6


STAGES = (
    "data_ingestion",
    "teacher",
    "feature_extraction",
    "pu_training",
    "pool_scoring",
    "subset_materialization",
    "class_weighting",
    "distillation",
    "random_baseline",
    "evaluation",
    "reporting",
)
# Latencies are measured again by every run, so the metrics are not among these.
REPRODUCIBLE_LAYERS = (FEATURES, MODEL_INPUT, MODELS, MODEL_OUTPUT)


def _weights(folder: Path, model: str) -> dict[str, np.ndarray]:
    return load_file(folder / MODELS / model / "weights.safetensors")


def _contents(folder: Path) -> dict[str, bytes]:
    """Return file -> content of everything that a second run must reproduce."""
    contents = {}
    for layer in REPRODUCIBLE_LAYERS:
        for path in sorted((folder / layer).rglob("*")):
            if path.is_file():
                contents[str(path.relative_to(folder))] = path.read_bytes()
    return contents


@pytest.fixture(scope="module")
def copied_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, to run stages in."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_alone_from_saved_inputs_and_repeats_its_outputs(
    stage, finished_run, copied_run
):
    # Finished shards would be skipped.
    if stage == "feature_extraction":
        shutil.rmtree(copied_run / FEATURES)
    result = run_kedro(f"--pipeline={stage}", "--force", data=copied_run)

    assert result.returncode == 0, result.stdout + result.stderr
    assert _contents(copied_run) == _contents(finished_run)


def run_stage(stage: str, data: Path, params: tuple[str, ...]) -> None:
    """Run one stage in a data folder; it must succeed."""
    result = run_kedro(f"--pipeline={stage}", data=data, params=params)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def data(copied_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for one test, which may change it."""
    folder = tmp_path / "run"
    shutil.copytree(copied_run, folder)
    return folder


def test_another_seed_gives_another_run(finished_run, data):
    run_stage("distillation", data, ("seed=1",))

    original = _weights(finished_run, "student_model")
    changed = _weights(data, "student_model")
    are_equal = [np.array_equal(changed[name], original[name]) for name in changed]
    assert not all(are_equal)


UPU = ("pu_training.features=descriptor", "pu_training.estimator=upu")
CVIR = (
    "pu_training.features=last_layer",
    "pu_training.attention_reduction=null",
    "pu_training.estimator=cvir",
    "pu_training.prior_estimation.method=km2",
)
RELEASED_WEIGHTS = ("class_weighting.mode=released", "class_weighting.n_vectors=1")
PLAIN_KD = (
    "distillation.objective=kd",
    "distillation.keep=best",
    "distillation.temperature=4",
)


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        ("pu_training", UPU),
        ("pu_training", CVIR),
        ("class_weighting", RELEASED_WEIGHTS),
        ("distillation", PLAIN_KD),
    ],
)
def test_variants_of_a_stage_run(stage, params, data):
    run_stage(stage, data, params)


def test_the_rule_nnpu_selects_the_images_above_its_threshold(data):
    run_stage("subset_materialization", data, ("subset_materialization.rule=nnpu",))

    manifest = read_table(data / MODEL_INPUT / "manifest.parquet")
    selected_scores = selected_from_pool(manifest)["pu_score"]
    assert (selected_scores >= manifest.attrs["threshold"]).all()
    assert selected_scores.is_monotonic_decreasing


def test_a_pu_classifier_with_its_own_backbone_scores_the_pool(data):
    params = (
        "pu_training.backbone=full",
        "pu_training.features=descriptor",
        "pu_training.epochs=1",
        "pu_training.class_prior=0.2",
    )
    run_stage("pu_training", data, params)
    run_stage("pool_scoring", data, params)

    # A backbone that collapsed would give every image the same score.
    assert pool_scores(data)["pu_score"].std() > 0


@pytest.mark.parametrize(
    ("pipeline", "params", "expected"),
    [
        (
            "full",
            ("teacher.architecture=digits_cn", "compute.device=cuda:7"),
            (
                "Error: 2 faults:",
                "teacher: there is no architecture 'digits_cn'; did you mean 'digits_cnn'?",
                "compute: device 'cuda:7' is not on this machine",
            ),
        ),
        (
            "full",
            ("teacher.weights=no/such/weights.pt",),
            ("teacher.weights: there is no file no/such/weights.pt",),
        ),
        ("data_ingestion", ("teacher.classes=5",), ("the teacher has 5 classes",)),
        (
            "full",
            ("pu_training.class_prior=1.2", "distillation.temprature=2"),
            ("pu_training.class_prior", "1.2", "distillation.temprature", "temperature"),
        ),
        (
            "distillation",
            ("distillation.student_architecture=my_nets:small",),
            ("my_nets", "cannot be imported"),
        ),
    ],
)
def test_wrong_input_ends_at_once_with_one_message(
    pipeline, params, expected, copied_run, tmp_path
):
    data = tmp_path
    # Without the inputs of its stage, the run would end with another message.
    if pipeline == "distillation":
        data = copied_run
    before = _contents(data)
    result = run_kedro(f"--pipeline={pipeline}", data=data, params=params)

    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr

    message = " ".join(result.stderr.split())
    for sentence in expected:
        assert sentence in message, result.stderr

    assert _contents(data) == before


def test_unknown_taps_in_an_environment_end_a_run_at_once(tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf", conf)
    environment = conf / "mine"
    environment.mkdir()
    (environment / "parameters_teacher.yml").write_text("teacher: {taps: [block1, blok2]}")
    data = tmp_path / "data"
    result = run_kedro(f"--conf-source={conf}", "--env=mine", "--pipeline=full", data=data)

    assert result.returncode == 1
    message = " ".join(result.stderr.split())
    expected = "Error: teacher.taps: not a layer of the network: 'blok2' (did you mean"
    assert expected in message
    # Not even the first stage has begun.
    assert not (data / IMAGES).exists()


def test_a_stage_without_its_inputs_names_the_stage_to_run_first(tmp_path):
    result = run_kedro("--pipeline=pool_scoring", data=tmp_path)
    assert result.returncode == 1
    assert "kedro run --pipeline=pu_training" in result.stderr
