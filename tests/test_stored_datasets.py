"""Tables, figures and models on object storage, with versions, and with faults on the way."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError
from matplotlib.figure import Figure
from PIL import Image

from pu_kd_pipeline.cli.errors import user_message
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model, build_from_card
from pu_kd_pipeline.params.teacher import InputSpec
from tests.s3_server import BUCKET, s3_credentials

TYPES = "pu_kd_pipeline.datasets"
TABLE = pd.DataFrame({"id": ["a", "b"], "score": [0.5, 1.0]})
TABLE.attrs = {"rule": "nnpu"}


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, dict[str, Any]]]:
    """A bucket of an S3-compatible server, and the credentials for it."""
    with s3_credentials() as credentials:
        yield f"s3://{BUCKET}", credentials


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A prefix on each kind of file system, and the credentials for it."""
    if request.param == "disk":
        return str(tmp_path), {}
    prefix = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://store/{prefix}", {}
    address, credentials = request.getfixturevalue("s3")
    return f"{address}/{prefix}", credentials


def catalog_of(store: tuple[str, dict[str, Any]], *, versioned: bool = False) -> DataCatalog:
    prefix, credentials = store
    places = {
        "table": ("TableDataset", "table.parquet"),
        "figure": ("FigureDataset", "figure.png"),
        "model": ("ModelDataset", "model"),
    }
    entries = {}
    for name, (kind, file) in places.items():
        entries[name] = {"type": f"{TYPES}.{kind}", "filepath": f"{prefix}/{file}"}
        # As the catalogs of other projects have it, for Kedro's own datasets.
        entries[name]["fs_args"] = {"open_args_save": {"mode": "wb"}}
        if credentials:
            entries[name]["credentials"] = "store"
        if versioned:
            entries[name]["versioned"] = True
    return DataCatalog.from_config(entries, {"store": credentials})


def a_model(n_classes: int = 2) -> Model:
    names = tuple(f"class {number}" for number in range(n_classes))
    spec = InputSpec(size_px=8, channels=1, mean=(0.0,), std=(1.0,))
    card = ModelCard(
        architecture="digits_cnn", architecture_options={"width": 1}, classes=names, input=spec
    )
    return Model(build_from_card(card).eval(), card)


def a_figure() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=30)
    figure.subplots().plot([0, 1])
    return figure


@pytest.mark.parametrize("versioned", [False, True])
def test_what_is_saved_is_loaded_from_any_store_with_and_without_versions(store, versioned):
    model = a_model()
    catalog = catalog_of(store, versioned=versioned)
    for name, data in (("table", TABLE), ("figure", a_figure()), ("model", model)):
        assert not catalog.exists(name)

        catalog.save(name, data)

        assert catalog.exists(name)

    # By another process, which has no list of files in memory.
    catalog = catalog_of(store, versioned=versioned)
    table = catalog.load("table")

    pd.testing.assert_frame_equal(table, TABLE)
    assert table.attrs == TABLE.attrs
    assert catalog.load("model").fingerprint() == model.fingerprint()
    assert catalog.get("figure").preview()


def test_a_later_value_replaces_the_first_one_and_a_version_does_not(store):
    other = TABLE.assign(score=0.0)
    catalog = catalog_of(store)
    for table in (TABLE, other):
        catalog.save("table", table)

    assert catalog.load("table")["score"].tolist() == [0.0, 0.0]

    versions = []
    for table in (TABLE, other):
        catalog = catalog_of((f"{store[0]}/versions", store[1]), versioned=True)
        catalog.save("table", table)
        versions.append(catalog.get("table").resolve_save_version())

    assert catalog.load("table")["score"].tolist() == [0.0, 0.0]
    assert catalog.load("table", version=versions[0])["score"].tolist() == [0.5, 1.0]


def test_files_on_this_machine_have_a_path_and_others_a_checksum_where_the_store_has_one(store):
    catalog = catalog_of(store)
    dataset = catalog.get("table")

    assert dataset.remote_state() is None

    catalog.save("table", TABLE)
    first = dataset.remote_state()
    catalog.save("table", TABLE)
    again = dataset.remote_state()
    catalog.save("table", TABLE.assign(score=0.0))
    changed = dataset.remote_state()

    if store[0].startswith("s3"):
        assert first == again != changed
    else:
        # memory:// states only times, which are no content.
        assert first is again is changed is None
    is_here = "://" not in store[0]
    assert (dataset.filepath is not None) == is_here


def files_in_memory(prefix: str) -> tuple[Any, str]:
    return fsspec.filesystem("memory"), prefix.removeprefix("memory://store")


@pytest.fixture
def memory() -> tuple[str, dict[str, Any]]:
    return f"memory://store/{uuid.uuid4().hex}", {}


def test_a_kill_between_the_files_of_a_model_leaves_no_mixture(memory, monkeypatch):
    catalog = catalog_of(memory)
    catalog.save("model", a_model())
    dataset = catalog.get("model")
    files, _ = files_in_memory(memory[0])
    put_file = files.put_file

    def put_until_killed(source: str, target: str) -> None:
        put_file(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "put_file", put_until_killed)
    with pytest.raises(KeyboardInterrupt):
        dataset.save(a_model(n_classes=3))
    monkeypatch.undo()

    # The new weights are there, and the old card is not.
    assert not catalog.exists("model")
    with pytest.raises(DatasetError, match="there is no memory://"):
        catalog.load("model")

    catalog.save("model", a_model(n_classes=3))

    assert catalog.load("model").n_classes == 3


def test_a_figure_that_cannot_be_drawn_leaves_the_last_one_in_the_store(memory):
    catalog = catalog_of(memory)
    catalog.save("figure", a_figure())
    before = catalog.get("figure").preview()
    figure = a_figure()
    figure.axes[0].set_title("$unfinished_{$")

    with pytest.raises(DatasetError, match="unfinished"):
        catalog.save("figure", figure)
    assert catalog.get("figure").preview() == before


def test_a_damaged_file_is_named_by_its_address(memory):
    catalog = catalog_of(memory)
    catalog.save("table", TABLE)
    catalog.save("model", a_model())
    files, folder = files_in_memory(memory[0])
    files.pipe_file(f"{folder}/table.parquet", b"junk")
    files.pipe_file(f"{folder}/model/weights.safetensors", b"junk")

    for name, file in (("table", "table.parquet"), ("model", "model/weights.safetensors")):
        with pytest.raises(DatasetError) as fault:
            catalog.load(name)
        message = user_message(fault.value)

        assert message is not None
        assert message.startswith(f"memory://{folder}/{file} is not a readable")
        assert "/tmp" not in message


def test_a_store_that_cannot_be_reached_is_one_message(s3):
    address, credentials = s3
    wrong = {**credentials, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    catalog = catalog_of((address, wrong))

    with pytest.raises(DatasetError) as fault:
        catalog.exists("table")
    message = user_message(fault.value)

    assert message is not None
    assert message.startswith("s3://bucket/table.parquet cannot be looked up (EndpointConnection")
    assert "check the address, the credentials of the catalog entry" in message


def test_a_bucket_that_does_not_exist_is_one_message(s3):
    catalog = catalog_of(("s3://no-such-bucket", s3[1]))

    with pytest.raises(DatasetError) as fault:
        catalog.save("table", TABLE)

    assert "s3://no-such-bucket/table.parquet" in str(user_message(fault.value))


def test_a_file_system_whose_package_is_missing_is_one_message():
    entry = {"type": f"{TYPES}.TableDataset", "filepath": "gcs://bucket/table.parquet"}
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        with pytest.raises(DatasetError, match="cannot be used yet: .*gcs.*, with pip"):
            DataCatalog.from_config({"table": entry}).get("table")
    else:
        pytest.skip("gcsfs is installed, so nothing is missing")


@pytest.mark.parametrize("kind", ["FilesDataset", "FolderDataset", "CheckpointsDataset"])
def test_what_has_to_be_on_this_machine_is_refused_elsewhere(kind):
    entry = {"type": f"{TYPES}.{kind}", "filepath": "s3://bucket/x"}
    if kind == "CheckpointsDataset":
        entry["every_s"] = 30
    with pytest.raises(DatasetError, match="s3://bucket/x is not on this machine"):
        DataCatalog.from_config({"x": entry}).get("x")


def test_a_file_url_is_a_file_of_this_machine(tmp_path):
    entry = {"type": f"{TYPES}.FigureDataset", "filepath": f"file://{tmp_path}/figure.png"}
    catalog = DataCatalog.from_config({"figure": entry})
    catalog.save("figure", a_figure())

    assert Image.open(tmp_path / "figure.png").format == "PNG"
    assert catalog.get("figure").filepath == tmp_path / "figure.png"
