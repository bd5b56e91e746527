"""The pipeline of the stage `student_search`."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from pu_kd_pipeline.pipelines.student_search.nodes import judge_students, search_students
from pu_kd_pipeline.pipelines.trials import trial_pipeline


def create_pipeline(**_: Any) -> Pipeline:
    """Return the search with what it needs: images, teacher, and the test of the teacher."""
    results = ["student_search", "student_parameters", "student_search_page"]
    return trial_pipeline("student_search", search_students, judge_students, results)
