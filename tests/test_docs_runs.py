"""Every command in the documentation is run by a test, or listed here with the reason why not."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.documentation import DOCS, PROJECT, README, commands, name_of

COPY_TEST = "tests/test_docs_runs.py::test_a_student_that_is_copied_again_replaces_the_first"
# Start of a command -> the test that runs it, or what it starts; `kedro run` is below.
RUN_BY = {
    "make help": "tests/test_docs_runs.py::test_make_help_lists_the_documented_targets",
    "tar czf conf.tar.gz conf": "tests/test_docs_runs.py::test_the_configuration_is_packed",
    "mkdir -p ../student": COPY_TEST,
    "cp -r data/06_models/exported_student/. ../student/": COPY_TEST,
    "../elsewhere/bin/python ../student/predict.py": "tests/export/test_predict_script.py",
    "kedro new-env": "tests/cli/test_new_env.py",
    "kedro explain": "tests/cli/test_explain.py",
    "make explain": "tests/cli/test_explain.py",
    "make pilot": "tests/pipelines/test_pilot.py",
    "kedro viz build": "tests/test_viz.py",
    "kedro containers argo": "tests/deployment/test_argo.py",
    "make manifests": "tests/deployment/test_compose.py",
    "make docs": "tests/test_site.py",
    "make reference": "tests/test_site.py",
    "export MLFLOW_RUN_ID=": "tests/tracking/test_shared_run.py",
    "python -m experiments.audit_coverage": "tests/experiments/test_audit_coverage.py",
    "make gpu-experiment": "tests/experiments/test_gpu_experiment.py",
    "python -m experiments.gpu_experiment": "tests/experiments/test_gpu_experiment.py",
    "make bench": "tests/test_benchmarks.py",
}
# Those that `.ci/run`, and so also the public workflow, starts as they stand.
RUN_BY_CI = ("make test", "make lint", "make types", "make contracts", "make pytest")
RUN_BY_CI += ("make versions", "make containers", "make cluster")
# Start of a command -> why no test runs it.
NOT_RUN = {
    "docker ": "needs Docker, which a test cannot start; .ci/containers runs the containers",
    "cd docker": "changes the folder of a shell, before commands of Docker",
    "ray start": "starts processes that outlive a test; tests/engines starts clusters that do not",
    "kubectl apply": "needs a cluster; tests/deployment renders the folder with kustomize",
    "argo submit": "needs a cluster; tests/deployment checks the workflow against Argo's types",
    "kedro airflow": "needs a package that excludes versions of this project",
    "make mlflow": "serves until it is stopped; tests/tracking reads its store",
    "make viz": "serves until it is stopped; tests/test_viz.py builds the same pages",
    "kedro viz run": "serves until it is stopped; tests/test_viz.py builds the same pages",
    "pip install": "downloads packages; `make run` installs those of the extras",
    "../elsewhere/bin/pip install": "downloads packages",
    "python3 -m venv": "makes an environment, which is empty without a download",
    "pre-commit install": "changes the hooks of the repository that the tests are in",
    "make format": "changes files; `make lint` runs the same tool in its mode of checking",
    "make diagrams": "needs Node.js and a download; tests/test_site.py compares what it wrote",
    "make constraints": "writes the versions of the environment that the tests are in",
    "make PYTHON=": "needs another Python; tests/test_project.py selects one for `make`",
    "export ": "sets a variable of a shell, which the commands after it are tested with",
    "kedro package": "builds Kedro's archive of conf/; its reading is in tests/hooks",
    "python docs/examples/make_stand_ins.py": "trains a network for 20 s; tests/test_docs.py "
    "compares its values with the guide",
    "python -m experiments.pilot_validation": "trains many students, to measure forecasts",
    "python -m experiments.with_lightly_train": "needs a package that is no dependency",
    "python -m benchmarks.": "needs image files; tests/test_benchmarks.py runs small parts",
}
# Pipelines that documented commands name -> the test that runs `kedro run` with them.
PIPELINES_RUN_BY = {
    "certify": "tests/pipelines/test_certificate.py",
    "class_weighting": "tests/pipelines/test_full_stages.py",
    "comparison": "tests/pipelines/test_comparison.py",
    "critic_distillation": "tests/pipelines/test_systems.py",
    "data_ingestion": "tests/pipelines/test_full_stages.py",
    "distillation": "tests/pipelines/test_full_stages.py",
    "evaluation": "tests/pipelines/test_certificate.py",
    "export": "tests/pipelines/test_export.py",
    "feature_extraction": "tests/pipelines/test_teacher_check.py",
    "full": "tests/pipelines/test_full.py",
    "full_unlabeled": "tests/pipelines/test_systems.py",
    "pilot": "tests/pipelines/test_pilot.py",
    "pool_audit": "tests/pipelines/test_pool_audit.py",
    "pool_scoring": "tests/pipelines/test_full_stages.py",
    "predict": "tests/pipelines/test_export.py",
    "pu_training": "tests/pipelines/test_full_stages.py",
    "random_baseline": "tests/pipelines/test_full_stages.py",
    "relatedness": "tests/pipelines/test_relatedness_stage.py",
    "reporting": "tests/reporting/test_sections.py",
    "student_search": "tests/pipelines/test_pilot.py",
    "subset_materialization": "tests/pipelines/test_full_stages.py",
    "teacher": "tests/pipelines/test_teacher_check.py",
    "unlabeled_distillation": "tests/pipelines/test_systems.py",
}


def shown_commands() -> dict[str, str]:
    """Return every command of the pages -> a page that shows it, without the path of `.venv`."""
    found = {}
    for path in DOCS:
        # What a decision or an entry of the changelog names is explained elsewhere.
        if path.name == "CHANGELOG.md" or path.parent.name == "decisions":
            continue
        for words in commands(path):
            words[0] = words[0].removeprefix(".venv/bin/")
            found[" ".join(words)] = name_of(path)
    return found


def is_kedro_run(command: str) -> bool:
    return bool(re.match(r"(KEDRO_LOGGING_CONFIG=\S+ )?kedro run|make run", command))


def matching_entries(command: str) -> list[str]:
    """Return the entries above that a command falls under."""
    starts = [*RUN_BY, *RUN_BY_CI, *NOT_RUN]
    matching = [start for start in starts if command.startswith(start)]
    if not matching:
        return []
    # The most exact entry decides: one variable is set by a command that is run.
    longest = max(len(start) for start in matching)
    return [start for start in matching if len(start) == longest]


def test_every_command_is_run_or_listed_with_a_reason() -> None:
    shown = shown_commands()
    used = set()

    assert len(shown) > 100

    for command, page in shown.items():
        if is_kedro_run(command):
            continue
        entries = matching_entries(command)
        assert len(entries) == 1, f"{page}: no test runs `{command}`, and no reason is given"
        used.update(entries)
    # An entry that no command has would hide a missing one.
    assert used == {*RUN_BY, *RUN_BY_CI, *NOT_RUN}


def test_every_pipeline_that_a_command_runs_is_run_by_a_test() -> None:
    named = set()
    for command in shown_commands():
        if not is_kedro_run(command):
            continue
        given = re.findall(r"(?:--pipelines?=|PIPELINE=)([\w,]+)", command) or ["full"]
        named.update(",".join(given).split(","))

    assert len(named) > 15
    assert named <= set(PIPELINES_RUN_BY)


@pytest.mark.parametrize("test", sorted({*RUN_BY.values(), *PIPELINES_RUN_BY.values()}))
def test_listed_tests_exist(test: str) -> None:
    file, _, name = test.partition("::")
    text = (PROJECT / file).read_text(encoding="utf-8")

    # A file alone stands for its tests.
    assert re.search(rf"^def {name or 'test_'}", text, flags=re.MULTILINE)
    for pipeline, runner in PIPELINES_RUN_BY.items():
        if runner == test:
            assert re.search(rf"\b{pipeline}\b", text), f"{file} does not name {pipeline}"


def test_what_ci_runs_is_in_its_script() -> None:
    script = (PROJECT / ".ci" / "run").read_text()
    makefile = (PROJECT / "Makefile").read_text()

    assert "\nmake test\n" in script
    assert "\nmake run\n" in script
    assert "\ntest: lint types contracts pytest" in makefile
    # `make versions` and `make containers` are what these scripts call or do.
    for name in ("oldest", "newest"):
        assert f"\n.ci/versions {name}\n" in script
        assert f"\t.ci/versions {name}\n" in makefile
    assert "\n.ci/containers\n" in script
    containers = (PROJECT / ".ci" / "containers").read_text()
    assert "\nmake containers " in containers
    assert "\nmake cluster\n" in containers


def test_make_help_lists_the_documented_targets() -> None:
    result = subprocess.run(
        ["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for words in commands(README):
        targets = [word for word in words[1:] if "=" not in word]
        if words[0] == "make":
            assert f"  make {targets[0]} " in result.stdout


def test_the_configuration_is_packed(tmp_path: Path) -> None:
    archive = tmp_path / "conf.tar.gz"
    subprocess.run(["tar", "czf", str(archive), "conf"], cwd=PROJECT, check=True)

    with tarfile.open(archive) as packed:
        assert "conf/base/globals.yml" in packed.getnames()


def test_a_student_that_is_copied_again_replaces_the_first(tmp_path: Path) -> None:
    exported = tmp_path / "project" / "data" / "06_models" / "exported_student"
    exported.mkdir(parents=True)
    shown = [words for words in commands(README) if words[0] in ("mkdir", "cp")]

    assert len(shown) == 2

    for student in ("first", "second"):
        (exported / "predict.py").write_text(student)
        for words in shown:
            subprocess.run(words, cwd=tmp_path / "project", check=True)
        copied = {path.name: path.read_text() for path in (tmp_path / "student").iterdir()}
        assert copied == {"predict.py": student}


def test_the_readme_is_short_and_leads_to_report_both_servers_and_a_student_elsewhere() -> None:
    text = README.read_text(encoding="utf-8")
    shown = [" ".join(words) for words in commands(README)]
    pictures = re.findall(r"!\[.+\]\(docs/images/([\w-]+)\.png\)", text)

    assert len(text.splitlines()) <= 150
    assert pictures == ["report", "mlflow-runs", "kedro-viz", "predict"]
    steps = ("make run", "make mlflow", "make viz", ".venv/bin/kedro run --pipeline=export")
    places = [shown.index(step) for step in steps]
    assert places == sorted(places)
    assert shown[places[-1] + 5].endswith("predict.py docs/examples/digit.png")


def test_the_file_that_the_readme_classifies_can_be_read() -> None:
    from PIL import Image

    with Image.open(PROJECT / "docs" / "examples" / "digit.png") as image:
        assert image.size == (8, 8)
