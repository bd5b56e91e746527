"""The whole pipeline through the command line: in full, stage by stage, and with wrong input."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="module")
def metrics(finished_run: Path) -> dict:
    return json.loads((finished_run / "08_reporting" / "metrics.json").read_text())


def test_metrics_describe_teacher_students_and_selection(metrics):
    for model in ("teacher", "student", "random_student"):
        facts = metrics[model]
        assert 0 <= facts["accuracy"] <= 1
        assert len(facts["per_class_accuracy"]) == 10
        for key in ("parameters", "flops", "size_bytes", "latency_ms"):
            assert facts[key] > 0

    assert metrics["teacher"]["agreement"] == 1
    assert metrics["student"]["parameters"] < metrics["teacher"]["parameters"] / 10
    # One of the teacher's convolutions: 2 x 64 pixels x 9 positions x 32 x 64 channels.
    assert metrics["teacher"]["flops"] > 2 * 64 * 9 * 32 * 64

    selection = metrics["selection"]
    expected = metrics["student"]["accuracy"] - metrics["random_student"]["accuracy"]

    assert selection["gain"] == pytest.approx(expected)
    assert selection["true_class_prior"] == pytest.approx(0.2)
    assert selection["class_prior_lower"] <= selection["class_prior"]
    assert selection["class_prior"] <= selection["class_prior_upper"]
    assert selection["auc"] > 0.6
    assert 0.2 < selection["precision"] <= 1
    assert 0 < selection["recall"] <= 1


def test_the_manifest_has_the_selected_images_and_the_rule(finished_run, metrics):
    manifest = read_table(finished_run / "05_model_input" / "manifest.parquet")
    columns = "id origin shard row pu_score teacher_class teacher_confidence"

    assert list(manifest.columns) == columns.split()

    n_per_origin = manifest["origin"].value_counts().to_dict()

    assert n_per_origin == {"labeled": 100, "pool": metrics["selection"]["n_selected"]}
    assert manifest["id"].is_unique
    assert set(manifest.attrs["fingerprints"]) == {"labeled_images", "pool_images", "pool_scores"}


def test_the_rule_disagreement_draws_half_at_random_and_half_likely_positives(
    finished_run, metrics
):
    manifest = read_table(finished_run / "05_model_input" / "manifest.parquet")
    pool = manifest[manifest["origin"] == "pool"]

    assert manifest.attrs["rule"] == "disagreement"
    assert manifest.attrs["threshold"] is None

    table = ShardedTable.open(finished_run / "07_model_output" / "pool_scores")
    scores = table.to_pandas()["pu_score"]
    n_likely = round(metrics["selection"]["class_prior"] * len(scores))

    assert len(pool) == n_likely

    half = round(n_likely / 2)
    random_half = pool["pu_score"].iloc[:half]
    likely_half = pool["pu_score"].iloc[half:]

    assert (likely_half >= scores.nlargest(n_likely).min()).all()
    assert random_half.min() < scores.median()


def test_the_facts_of_the_manifest_can_be_read_without_this_package(finished_run, metrics):
    schema = pq.read_schema(finished_run / "05_model_input" / "manifest.parquet")
    facts = json.loads(schema.metadata[b"pu_kd_pipeline"])
    assert facts["class_prior"] == metrics["selection"]["class_prior"]


def test_shard_and_row_of_the_manifest_locate_its_images(finished_run):
    manifest = read_table(finished_run / "05_model_input" / "manifest.parquet")
    store = ImageStore.open(finished_run / "02_intermediate" / "pool_images")
    starts = {shard.name: shard.start for shard in store.shards}
    pool = manifest[manifest["origin"] == "pool"]
    rows = pool["shard"].map(starts) + pool["row"]

    assert store.index["id"].iloc[rows].tolist() == pool["id"].tolist()


def test_the_random_manifest_has_the_same_size_and_other_images(finished_run):
    folder = finished_run / "05_model_input"
    manifest = read_table(folder / "manifest.parquet")
    random_manifest = read_table(folder / "random_manifest.parquet")

    assert len(manifest) == len(random_manifest)
    assert set(manifest["id"]) != set(random_manifest["id"])
    assert random_manifest.attrs["rule"] == "random"


def test_features_have_the_stated_types_and_are_the_teachers(finished_run):
    table = ShardedTable.open(finished_run / "04_feature" / "pool_features")
    teacher = load_model(finished_run / "06_models" / "teacher_model")
    schema = next(table.shards()).schema
    size = teacher.extractor().descriptor_size

    assert schema.field("descriptor").type == pa.list_(pa.float16(), size)
    assert schema.field("logits").type == pa.list_(pa.float32(), 10)

    store = ImageStore.open(finished_run / "02_intermediate" / "pool_images")

    assert table.arrays("id").tolist() == store.index["id"].tolist()

    scores = ShardedTable.open(finished_run / "07_model_output" / "pool_scores").to_pandas()

    assert (scores["teacher_class"] == table.arrays("logits").argmax(axis=1)).all()


def test_weights_and_weight_vectors_are_consistent(finished_run):
    folder = finished_run / "05_model_input"
    weights = read_table(folder / "class_weights.parquet")["weight"].to_numpy()
    vectors = read_table(folder / "weight_vectors.parquet").to_numpy()

    assert weights.sum() == pytest.approx(10, rel=1e-5)
    assert vectors.shape == (9, 10)
    np.testing.assert_allclose(vectors.sum(axis=1), 10, rtol=1e-5)
    assert np.abs(vectors - weights).max() <= 0.1 + 1e-5


def test_models_are_folders_of_safetensors_and_a_card(finished_run):
    for name in ("teacher_model", "student_model", "random_student_model", "pu_classifier"):
        files = sorted(path.name for path in (finished_run / "06_models" / name).iterdir())
        assert files == ["card.json", "weights.safetensors"]
    classifier = load_pu_classifier(finished_run / "06_models" / "pu_classifier")

    assert classifier.card.backbone == "frozen"


def test_the_run_prints_its_table_and_is_tracked(finished_run, metrics):
    output = (finished_run / "output.txt").read_text()

    assert "selection gain" in output.replace("selection.gain", "selection gain")
    assert "report.html" in output

    with sqlite3.connect(finished_run / "mlflow" / "mlflow.db") as store:
        [(status,)] = store.execute("select status from runs").fetchall()
        logged = dict(store.execute("select key, value from latest_metrics").fetchall())
        parameters = dict(store.execute("select key, value from params").fetchall())

    assert status == "FINISHED"
    assert logged["student/accuracy"] == pytest.approx(metrics["student"]["accuracy"])
    assert {"pu_training/risk", "distillation/loss", "teacher/loss"} <= set(logged)
    assert parameters["distillation.n_updates"] == "60"


def test_the_report_is_one_self_contained_page(finished_run):
    page = (finished_run / "08_reporting" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(list((finished_run / "08_reporting").glob("*.png"))) == 6


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
REPRODUCIBLE_LAYERS = ("04_feature", "05_model_input", "06_models", "07_model_output")


def _weights(folder: Path, model: str) -> dict[str, np.ndarray]:
    return load_file(folder / "06_models" / model / "weights.safetensors")


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
        shutil.rmtree(copied_run / "04_feature")
    result = run_kedro(f"--pipeline={stage}", "--force", data=copied_run)

    assert result.returncode == 0, result.stdout + result.stderr
    assert _contents(copied_run) == _contents(finished_run)


def test_another_seed_gives_another_run(finished_run, copied_run, tmp_path):
    shutil.copytree(copied_run, tmp_path / "run")
    result = run_kedro("--pipeline=distillation", data=tmp_path / "run", params=("seed=1",))

    assert result.returncode == 0, result.stderr

    changed = _weights(tmp_path / "run", "student_model")
    original = _weights(finished_run, "student_model")

    assert any(not np.array_equal(changed[name], original[name]) for name in changed)


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        (
            "pu_training",
            (
                "pu_training.backbone=full",
                "pu_training.features=descriptor",
                "pu_training.epochs=1",
                "pu_training.class_prior=0.2",
            ),
        ),
        ("pu_training", ("pu_training.features=descriptor", "pu_training.estimator=upu")),
        (
            "pu_training",
            (
                "pu_training.features=last_layer",
                "pu_training.attention_reduction=null",
                "pu_training.estimator=cvir",
                "pu_training.prior_estimation.method=km2",
            ),
        ),
        ("subset_materialization", ("subset_materialization.rule=nnpu",)),
        ("class_weighting", ("class_weighting.mode=released", "class_weighting.n_vectors=1")),
        (
            "distillation",
            ("distillation.objective=kd", "distillation.keep=best", "distillation.temperature=4"),
        ),
    ],
)
def test_variants_of_a_stage_run(stage, params, copied_run, tmp_path):
    shutil.copytree(copied_run, tmp_path / "run")
    result = run_kedro(f"--pipeline={stage}", data=tmp_path / "run", params=params)

    assert result.returncode == 0, result.stdout + result.stderr

    if stage == "subset_materialization":
        manifest = read_table(tmp_path / "run" / "05_model_input" / "manifest.parquet")
        pool = manifest[manifest["origin"] == "pool"]
        assert (pool["pu_score"] >= manifest.attrs["threshold"]).all()
        assert pool["pu_score"].is_monotonic_decreasing
    if "pu_training.backbone=full" in params:
        result = run_kedro("--pipeline=pool_scoring", data=tmp_path / "run", params=params)
        assert result.returncode == 0, result.stdout + result.stderr
        scores = ShardedTable.open(tmp_path / "run" / "07_model_output" / "pool_scores").to_pandas()
        assert scores["pu_score"].std() > 0


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
    data = copied_run if pipeline in ("teacher", "distillation") else tmp_path
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
    (conf / "mine").mkdir()
    (conf / "mine" / "parameters_teacher.yml").write_text("teacher: {taps: [block1, blok2]}")
    options = ("--pipeline=full", f"--conf-source={conf}", "--env=mine")
    result = run_kedro(*options, data=tmp_path / "data")

    assert result.returncode == 1

    expected = "Error: teacher.taps: not a layer of the network: 'blok2' (did you mean"

    assert expected in " ".join(result.stderr.split())
    assert not (tmp_path / "data" / "02_intermediate").exists()


def test_a_stage_without_its_inputs_names_the_stage_to_run_first(tmp_path):
    result = run_kedro("--pipeline=pool_scoring", data=tmp_path)
    assert result.returncode == 1
    assert "kedro run --pipeline=pu_training" in result.stderr
