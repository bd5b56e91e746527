"""What hooks read from catalog entries."""

from __future__ import annotations

import pytest
from kedro.io import DataCatalog

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.catalog import TRACKING_KINDS, tracked_as


def catalog_with(metadata: dict[str, object] | None) -> DataCatalog:
    # The entry of a dataset factory, as most of conf/base/catalog are.
    entry = {"type": "json.JSONDataset", "filepath": "{name}.json", "metadata": metadata}
    return DataCatalog.from_config({"{name}_result": entry})


@pytest.mark.parametrize("kind", TRACKING_KINDS)
def test_the_metadata_decide_how_an_entry_is_tracked(kind: str) -> None:
    catalog = catalog_with({"mlflow": kind, "kedro-viz": {"layer": "reporting"}})
    assert tracked_as(catalog, "first_result") == kind


@pytest.mark.parametrize("metadata", [None, {}, {"kedro-viz": {"layer": "reporting"}}])
def test_an_entry_that_does_not_ask_for_it_is_not_tracked(
    metadata: dict[str, object] | None,
) -> None:
    catalog = catalog_with(metadata)
    assert tracked_as(catalog, "first_result") is None
    # Parameters and data in memory have no entry.
    assert tracked_as(catalog, "params:teacher") is None


def test_a_misspelled_kind_is_refused_by_the_name_of_the_entry() -> None:
    catalog = catalog_with({"mlflow": "datset"})
    message = "catalog entry `first_result`: metadata.mlflow is 'datset', expected one of dataset,"
    with pytest.raises(InputError, match=message):
        tracked_as(catalog, "first_result")
