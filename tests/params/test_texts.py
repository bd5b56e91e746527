"""Texts that YAML reads as numbers or booleans: class names, labels, architectures."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.base import Block
from pu_kd_pipeline.params.data_ingestion import ImageSource
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.params.validation import check_parameters

TEACHER: dict[str, Any] = {
    "architecture": "digits_cnn",
    "architecture_options": {},
    "weights": None,
    "classes": ["a", "b"],
    "input": {"size_px": 8, "channels": 1, "mean": [0], "std": [1]},
    "taps": None,
}
SOURCE: dict[str, Any] = {"type": "demo", "part": "pool", "labels": "truth"}
# As OmegaConf reads YAML: `1e3` is a float there, and `no` a boolean.
NUMBERS: list[Any] = [7, 1e3, False]


def check(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    blocks = check_parameters({"block": values}, {"block": model}, files={}, given={})
    return blocks["block"]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    ("model", "key"),
    [(TeacherParams, "architecture"), (TeacherParams, "weights"), (ImageSource, "name"),
     (ImageSource, "path")],
)  # fmt: skip
def test_a_text_that_yaml_reads_as_something_else_is_refused(model, key, value):
    values = {ImageSource: SOURCE, TeacherParams: TEACHER}[model]
    with pytest.raises(InputError, match=rf"`block\.{key}` is .* in quotes"):
        check(model, {**values, key: value})


@pytest.mark.parametrize("classes", [[False, True, 1e3], [1e3, 2e3], [1, 2]])
def test_class_names_without_quotes_are_refused(classes):
    with pytest.raises(InputError, match="in quotes"):
        check(TeacherParams, {**TEACHER, "classes": classes})


@pytest.mark.parametrize("label_map", [{1e3: 0}, {False: 0}])
def test_source_labels_without_quotes_are_refused(label_map):
    with pytest.raises(InputError, match="in quotes"):
        check(ImageSource, {**SOURCE, "label_map": label_map})


def test_a_label_is_a_whole_number_or_a_text_and_no_float():
    # YAML reads the class name 1e3 as a float; as the label 1000 it would exclude other images.
    with pytest.raises(InputError, match="in quotes"):
        check(ImageSource, {**SOURCE, "exclude_labels": [1e3]})
    source = check(ImageSource, {**SOURCE, "exclude_labels": [7, "7", "1e3"]})

    assert source.exclude_labels == (7, "7", "1e3")


def test_quoted_texts_are_taken_as_they_are():
    text = "classes: ['no', '1e3', '007']"
    teacher = check(TeacherParams, {**TEACHER, **yaml.safe_load(text)})

    assert teacher.classes == ("no", "1e3", "007")


def test_off_without_quotes_is_the_choice_off():
    class Cached(Block):
        cache: Literal["off", "views"] | None = None
        mode: Literal["on", "auto"] = "auto"

    assert Cached.model_validate({"cache": False}) == Cached(cache="off")
    for values in ({"cache": True}, {"mode": False}):
        with pytest.raises(InputError, match="input should not be true or false"):
            check(Cached, values)
