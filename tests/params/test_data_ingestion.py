"""Labels in the parameters of sources, as YAML delivers them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pu_kd_pipeline.params.data_ingestion import ImageSource


def source_of(text: str) -> ImageSource:
    block: dict[str, Any] = yaml.safe_load(text)
    return ImageSource.model_validate({"type": "folder", "path": "x", **block})


def test_numbers_may_be_keys_without_quotes() -> None:
    source = source_of('label_map: {3: 0, "04": 1, cat: 2}')
    assert source.label_map == {"3": 0, "04": 1, "cat": 2}
    assert source_of("exclude_labels: [3, cat]").exclude_labels == (3, "cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label_map: {no: 0, yes: 1}", "YAML reads one of the keys as False: write the label in"),
        ("label_map: {1.0: 0}", "YAML reads one of the keys as 1.0: write the label in quotes"),
        ('label_map: {3: 0, "3": 1}', "the key 3 is there twice, as a number and in quotes"),
        ("exclude_labels: [1.5e+3]", "YAML reads 1500.0: write the label in quotes"),
        ("exclude_labels: [no]", "should not be true or false"),
        ("{label_map: {a: 0}, sorted_names: true}", "label_map and sorted_names exclude each"),
    ],
)
def test_what_yaml_makes_of_labels_without_quotes_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source_of(text)
