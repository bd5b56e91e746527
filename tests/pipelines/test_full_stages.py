"""Parts of the pipeline through the command line: stage by stage, variants, and wrong input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import PROJECT, run_kedro
from tests.pipelines.finished_run import (
    FEATURES,
    IMAGES,
    MODEL_INPUT,
    MODEL_OUTPUT,
    MODELS,
    pool_scores,
    selected_from_pool,
)

pytestmark = pytest.mark.xdist_group("finished_run")

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
RELEASED_WEIGHTS = (
    "class_weighting.mode=paper",
    "class_weighting.paper.perturbation=released",
    "class_weighting.n_vectors=1",
)
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
            (f"teacher.weights: there is no file {PROJECT}/no/such/weights.pt ",),
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

    assert result.returncode == ExitCode.USER_ERROR
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

    assert result.returncode == ExitCode.USER_ERROR
    message = " ".join(result.stderr.split())
    expected = "Error: teacher.taps: not a layer of the network: 'blok2' (did you mean"
    assert expected in message
    # Not even the first stage has begun.
    assert not (data / IMAGES).exists()


def test_a_stage_without_its_inputs_names_the_stage_to_run_first(tmp_path):
    result = run_kedro("--pipeline=pool_scoring", data=tmp_path)
    assert result.returncode == ExitCode.USER_ERROR
    assert "kedro run --pipeline=pu_training" in result.stderr
