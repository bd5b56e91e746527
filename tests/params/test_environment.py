"""Parameters that depend on the environment: null removes a key, and PU_KD_DATA names a folder."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.environment import image_file, package_file
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parent/../secret.txt", "leads out of the package 'parent': write package/file"),
        ("parent//etc/passwd", "leads out of the package 'parent': write package/file"),
        ("parent.child/a.txt", "there is no installed package 'parent.child'"),
        ("parent", "there is no installed package 'parent'"),
        ("/a.txt", "there is no installed package ''"),
    ],
)
def test_files_of_packages_are_in_them_and_no_package_is_imported(
    name, message, tmp_path, monkeypatch
):
    package = tmp_path / "parent"
    (package / "child").mkdir(parents=True)
    for folder in (package, package / "child"):
        (folder / "__init__.py").write_text("raise AssertionError('imported')")
        (folder / "a.txt").write_text("")
    (tmp_path / "secret.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_file("parent/child/a.txt") == str(package / "child" / "a.txt")
    with pytest.raises(InputError, match=message):
        package_file(name)
