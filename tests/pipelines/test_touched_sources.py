"""Images that were touched, but not changed, cost decoding them once and nothing after that."""

from __future__ import annotations

import os

from tests.pipelines.user_project import StageRun, UserProject
from tests.run_log import nodes_that_ran


def test_touched_images_are_decoded_and_nothing_else_runs(tmp_path):
    project = UserProject(tmp_path)
    assert project.start(StageRun(project.data)) == 0
    for file in (project.images / "pool").iterdir():
        os.utime(file)
    assert project.start(StageRun(project.data)) == 0

    ran = nodes_that_ran(project.log())
    assert "data_ingestion.ingest_pool_images" in ran
    assert {name.partition(".")[0] for name in ran} == {"data_ingestion"}


def test_one_changed_image_runs_what_depends_on_the_pool(tmp_path):
    project = UserProject(tmp_path)
    assert project.start(StageRun(project.data)) == 0
    project.replace_image(1, seed=1)
    assert project.start(StageRun(project.data)) == 0

    ran = nodes_that_ran(project.log())
    assert "feature_extraction.extract_pool_features" in ran
    assert "pool_scoring.score_pool" in ran
    assert "feature_extraction.extract_labeled_features" not in ran
