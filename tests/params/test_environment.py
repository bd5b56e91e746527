"""Parameters that depend on the environment: null removes a key, and PU_KD_DATA names a folder."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.environment import image_file
from pu_kd_pipeline.params.teacher import TeacherParams
from tests.comparison.builders import block_of


def test_null_removes_an_option_of_the_base():
    teacher = TeacherParams(**block_of("teacher", architecture_options={"width": None, "depth": 3}))
    assert teacher.architecture_options == {"depth": 3}


def test_image_files_are_found_through_the_environment_variable(monkeypatch):
    monkeypatch.setenv("PU_KD_DATA", "/images")
    assert image_file("mnist_train.parquet") == "/images/mnist_train.parquet"
    monkeypatch.delenv("PU_KD_DATA")
    expected = "PU_KD_DATA is not set: name the folder that holds mnist_train.parquet"
    with pytest.raises(InputError, match=expected):
        image_file("mnist_train.parquet")
