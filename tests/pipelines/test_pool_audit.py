"""The stage `pool_audit` as a user runs it, and runs that use its class prior."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import ExitCode
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import run_kedro
from tests.pipelines.finished_run import IMAGES, MODEL_OUTPUT, REPORTING
from tests.pool_audit.conftest import answers_to
from tests.run_log import nodes_that_ran

pytestmark = pytest.mark.xdist_group("finished_run")
STAGE = "--pipeline=pool_audit"
ANSWERS = "01_raw/pool_audit_answers.json"
USES_AUDIT = ("pu_training.class_prior=audit",)
ONLY_PRIOR = "--to-nodes=pu_training.find_class_prior"


def truth_of(data: Path) -> Callable[[str], str]:
    """Return what a person who knows the truth answers for an image of the pool."""
    index = ImageStore.open(data / IMAGES / "pool_images").index
    relevant = dict(zip(index["id"], index["relevant"], strict=True))
    return lambda identifier: "yes" if relevant[identifier] else "no"


def save_answers(data: Path, answer: Callable[[str], str]) -> None:
    """Write what the page saves to where it is looked for."""
    draw = read_table(data / MODEL_OUTPUT / "audit_draw.parquet")
    (data / ANSWERS).parent.mkdir(exist_ok=True)
    (data / ANSWERS).write_text(json.dumps(answers_to(draw, answer)))


def result_of(data: Path) -> dict:
    return json.loads((data / MODEL_OUTPUT / "pool_audit.json").read_text())


@pytest.fixture(scope="module")
def asked(finished_run, tmp_path_factory) -> tuple[Path, str]:
    """A run whose pool was audited and not answered, and what was printed."""
    data = tmp_path_factory.mktemp("asked") / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    result = run_kedro(STAGE, data=data)
    assert result.returncode == 0, result.stdout + result.stderr
    return data, result.stdout


@pytest.fixture
def data(asked, tmp_path) -> Path:
    folder = tmp_path / "data"
    shutil.copytree(asked[0], folder, copy_function=shutil.copy2)
    return folder


@pytest.fixture(scope="module")
def answered(asked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answered") / "data"
    shutil.copytree(asked[0], folder, copy_function=shutil.copy2)
    save_answers(folder, truth_of(folder))
    result = run_kedro(STAGE, data=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_first_run_writes_the_page_and_says_what_to_do(asked):
    data, printed = asked
    assert str(data / REPORTING / "pool_audit.html") in printed
    assert str(data / ANSWERS) in printed
    assert (data / REPORTING / "pool_audit.html").is_file()
    assert result_of(data)["class_prior"] is None
    assert len(read_table(data / MODEL_OUTPUT / "audit_draw.parquet")) == 100


def test_an_unanswered_audit_gives_no_class_prior(asked):
    result = run_kedro("--pipeline=pu_training", data=asked[0], params=USES_AUDIT)
    assert result.returncode == ExitCode.USER_ERROR
    assert "the audit has no answers yet" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_pool_without_audit_is_refused_before_anything_runs(finished_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    result = run_kedro("--pipeline=full", data=data, params=USES_AUDIT)
    assert result.returncode == ExitCode.USER_ERROR
    assert "the pool was not audited" in result.stderr
    assert "feature_extraction,pool_audit" in result.stderr
    assert nodes_that_ran(result.stdout) == {}


def test_the_second_run_estimates_the_class_prior(answered):
    found = result_of(answered)
    index = ImageStore.open(answered / IMAGES / "pool_images").index
    true_prior = float(index["relevant"].mean())
    assert found["n_answered"] == 100
    assert found["class_prior"]["lower"] <= true_prior <= found["class_prior"]["upper"]
    assert found["class_prior"]["value"] == pytest.approx(true_prior, abs=0.08)

    selection = json.loads((answered / MODEL_OUTPUT / "audited_selection.json").read_text())
    metrics = json.loads((answered / REPORTING / "metrics.json").read_text())
    assert selection["n_selected"] == metrics["selection"]["n_preferred"]
    assert selection["lower"] <= metrics["selection"]["precision"] <= selection["upper"]
    page = (answered / REPORTING / "pool_audit_result.html").read_text()
    assert "Answers by rank" in page


def test_a_third_run_has_nothing_to_do(answered):
    result = run_kedro(STAGE, data=answered)
    assert result.returncode == 0, result.stderr
    assert "Nothing to do" in result.stdout


def test_the_class_prior_of_the_audit_is_used_and_follows_changed_answers(answered, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(answered, data, copy_function=shutil.copy2)
    used = run_kedro("--pipeline=pu_training", ONLY_PRIOR, data=data, params=USES_AUDIT)
    assert used.returncode == 0, used.stdout + used.stderr
    prior = json.loads((data / MODEL_OUTPUT / "class_prior.json").read_text())
    assert prior["method"] == "audit"
    assert prior["value"] == result_of(data)["class_prior"]["value"]
    again = run_kedro("--pipeline=pu_training", ONLY_PRIOR, data=data, params=USES_AUDIT)
    assert "Nothing to do" in again.stdout

    save_answers(data, lambda identifier: "yes")
    (data / ANSWERS).write_text((data / ANSWERS).read_text().replace('"yes"', '"no"', 60))
    assert run_kedro(STAGE, data=data).returncode == 0
    changed = run_kedro("--pipeline=pu_training", ONLY_PRIOR, data=data, params=USES_AUDIT)
    assert changed.returncode == 0, changed.stderr
    assert "input pool_audit changed" in changed.stdout
    new = json.loads((data / MODEL_OUTPUT / "class_prior.json").read_text())
    assert new["value"] == result_of(data)["class_prior"]["value"] != prior["value"]


def test_answers_to_another_draw_are_refused_and_the_new_page_is_there(answered, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(answered, data, copy_function=shutil.copy2)
    result = run_kedro(STAGE, data=data, params=("pool_audit.seed=1",))
    assert result.returncode == ExitCode.USER_ERROR
    assert "answers the images of another draw of images" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    draw = read_table(data / MODEL_OUTPUT / "audit_draw.parquet").attrs["draw"]
    assert draw in (data / REPORTING / "pool_audit.html").read_text()


def test_a_damaged_file_of_answers_is_one_sentence(data):
    (data / ANSWERS).parent.mkdir(exist_ok=True)
    (data / ANSWERS).write_text("{")
    result = run_kedro(STAGE, data=data)
    assert result.returncode == ExitCode.USER_ERROR
    assert "pool_audit_answers.json is no JSON" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_answers_elsewhere_are_named_by_a_parameter(data, tmp_path):
    save_answers(data, truth_of(data))
    elsewhere = tmp_path / "mine.json"
    (data / ANSWERS).rename(elsewhere)
    named = (f"pool_audit.answers={elsewhere}",)
    assert run_kedro(STAGE, data=data, params=named).returncode == 0
    first = result_of(data)
    assert first["n_answered"] == 100
    # Other answers in the same file are noticed.
    elsewhere.write_text(elsewhere.read_text().replace('"no"', '"yes"'))
    assert run_kedro(STAGE, data=data, params=named).returncode == 0
    assert result_of(data)["class_prior"]["value"] == 1.0 != first["class_prior"]["value"]


def test_images_answered_with_yes_join_the_labeled_images(answered, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(answered, data, copy_function=shutil.copy2)
    written = run_kedro(STAGE, data=data, params=("pool_audit.write_labeled=true",))
    assert written.returncode == 0, written.stderr
    folder = data / "01_raw" / "audited_labeled"
    n_positive = len(result_of(data)["positives"])
    assert len(list(folder.glob("*/*.png"))) == n_positive

    sources = (
        "data_ingestion.labeled=[{type: demo, part: labeled, labels: classes}, "
        f"{{type: folder, path: {folder}, labels: classes}}]"
    )
    ingested = run_kedro("--pipeline=data_ingestion", data=data, params=(sources,))
    assert ingested.returncode == 0, ingested.stdout + ingested.stderr
    labeled = ImageStore.open(data / IMAGES / "labeled_images")
    assert len(labeled) == 100 + n_positive
    duplicates = read_table(data / IMAGES / "duplicates.parquet")
    is_copy = (duplicates["store"] == "pool") & (duplicates["other_store"] == "labeled")
    exact = duplicates[is_copy & (duplicates["kind"] == "exact")]
    assert set(exact["id"]) == {each["id"] for each in result_of(data)["positives"]}
