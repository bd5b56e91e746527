"""The public workflow runs what .ci/run runs, with pinned actions and rights to read alone."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.documentation import PROJECT

WORKFLOW = PROJECT / ".github" / "workflows" / "ci.yml"


def workflow() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text())


def steps() -> list[dict[str, Any]]:
    """Return the steps of all jobs, those of a matrix once for each of its entries."""
    found = []
    for job in workflow()["jobs"].values():
        entries = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
        for entry in entries:
            for step in job["steps"]:
                text = str(step.get("run", ""))
                for key, value in entry.items():
                    text = text.replace("${{ matrix." + key + " }}", value)
                found.append({**step, "run": text})
    return found


def test_every_command_of_ci_run_is_a_step() -> None:
    script = (PROJECT / ".ci" / "run").read_text()
    wanted = re.findall(r"^(make \w+|\.ci/.+)$", script, flags=re.MULTILINE)
    run = [step["run"] for step in steps()]

    assert wanted == [
        "make test",
        "make run",
        ".ci/versions oldest",
        ".ci/versions newest",
        ".ci/containers",
    ]
    for command in wanted:
        assert command in run
    # The script's last check.
    assert "git status --porcelain" in script
    assert any("git status --porcelain" in text for text in run)
    # The containers are compared with a run outside of them.
    containers = [step.get("run") for step in workflow()["jobs"]["containers"]["steps"]]
    assert containers.index("make run") < containers.index(".ci/containers")


def test_actions_are_pinned_by_their_major_version_or_by_a_commit() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]

    assert used

    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", action), action


def test_the_site_is_kept_with_its_hidden_folders() -> None:
    kept = {}
    for step in steps():
        if "upload-artifact" in step.get("uses", ""):
            kept[step["with"]["path"]] = step["with"]

    assert set(kept) == {"site", "data/08_reporting"}
    # Such as `.ci`, which pages lead to; the action leaves them out by default.
    assert kept["site"]["include-hidden-files"] is True


def test_only_the_runs_of_pull_requests_are_canceled_by_newer_ones() -> None:
    canceled = workflow()["concurrency"]["cancel-in-progress"]

    assert canceled == "${{ github.event_name == 'pull_request' }}"


def test_the_workflow_may_only_read_and_ends() -> None:
    parsed = workflow()

    assert parsed["permissions"] == {"contents": "read"}
    # YAML reads the key `on` as true.
    assert "pull_request" in parsed[True]
    for job in parsed["jobs"].values():
        assert job["timeout-minutes"] <= 120


def test_files_that_decide_the_cache_exist() -> None:
    for step in steps():
        paths = str(step.get("with", {}).get("cache-dependency-path", ""))
        for path in paths.split():
            if "matrix" in paths:
                continue
            assert (PROJECT / path).is_file(), path
    ends = workflow()["jobs"]["versions"]["strategy"]["matrix"]["include"]
    for entry in ends:
        assert (PROJECT / ".ci" / f"constraints-{entry['end']}.txt").is_file()


def test_the_citation_has_the_version_and_the_license_of_the_package() -> None:
    import pu_kd_pipeline

    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())

    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pu_kd_pipeline.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["year"] == 2019
    for key in ("message", "title", "authors", "type"):
        assert citation[key]
