"""Labels in the parameters of sources, as YAML delivers them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES, ImageSource


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


COMMON_KEYS = frozenset(
    [
        *("type", "name", "labels", "label_map", "sorted_names", "exclude_labels"),
        *("label_ranks", "other_labels", "per_class", "limit", "share"),
    ]
)
# A value of each key that only some types have
EXAMPLES = {
    "path": "x",
    "dataset": "MNIST",
    "options": {"train": True},
    "download": True,
    "part": "pool",
    "follow_links": True,
    "class_pattern": "(?P<label>a)",
    "root": "x",
    "separator": ";",
    "encoding": "cp1252",
    "path_column": "x",
    "image_column": "x",
    "label_column": "x",
    "label_name_column": "x",
    "id_column": "x",
}


def test_every_key_is_of_all_types_or_of_some() -> None:
    # A new key belongs into `keys` of its types in SOURCE_TYPES, or here.
    of_some = {key for about in SOURCE_TYPES.values() for key in about.all_keys}
    assert of_some == set(EXAMPLES)
    assert of_some | COMMON_KEYS == set(ImageSource.model_fields)


@pytest.mark.parametrize("key", EXAMPLES)
@pytest.mark.parametrize("name", SOURCE_TYPES)
def test_a_key_of_another_type_is_refused(name: str, key: str) -> None:
    about = SOURCE_TYPES[name]
    block = {"type": name, about.required_key: EXAMPLES[about.required_key], key: EXAMPLES[key]}
    if key in about.all_keys:
        ImageSource.model_validate(block)
        return
    with pytest.raises(ValidationError, match=f"{key} is no key of a source of type '{name}', but"):
        ImageSource.model_validate(block)
    # The default is what it would be without the key.
    block[key] = ImageSource.model_fields[key].get_default(call_default_factory=True)
    ImageSource.model_validate(block)
