"""kedro-viz gets previews and sizes of what a run has written."""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from PIL import Image

from pu_kd_pipeline.hooks.viz import EVENTS, KNOWN, STATISTICS, VizHooks
from pu_kd_pipeline.incremental.runner import EXPLAINING_RUNNER
from pu_kd_pipeline.params.paths import set_project_folder

pytestmark = pytest.mark.xdist_group("finished_run")
ENTRIES = {
    "pool_images": ("ImageStoreDataset", "02_intermediate/pool_images", "ImagePreview"),
    "pool_features": ("ShardedTableDataset", "04_feature/pool_features", "TablePreview"),
    "manifest": ("TableDataset", "05_model_input/manifest.parquet", "TablePreview"),
    "teacher_model": ("ModelDataset", "06_models/teacher_model", "JSONPreview"),
    "pu_classifier": ("PUClassifierDataset", "06_models/pu_classifier", "JSONPreview"),
    "report": ("PageDataset", "08_reporting/report.html", "HTMLPreview"),
}
ABSENT = {
    "audited_manifest": ("OptionalTableDataset", "no.parquet", "TablePreview"),
    "pool_audit": ("OptionalJSONDataset", "no.json", "JSONPreview"),
}


@pytest.fixture
def catalog(finished_run: Path) -> DataCatalog:
    entries = {}
    for name, (kind, path, _) in {**ENTRIES, **ABSENT}.items():
        kind = f"pu_kd_pipeline.datasets.{kind}"
        entries[name] = {"type": kind, "filepath": str(finished_run / path)}
    return DataCatalog.from_config(entries)


def test_data_sets_have_previews(catalog):
    previews = {}
    for name, (_, _, kind) in {**ENTRIES, **ABSENT}.items():
        dataset = catalog.get(name)
        # kedro-viz recognizes a preview by this name.
        assert inspect.signature(dataset.preview).return_annotation == kind
        previews[name] = dataset.preview()
    json.dumps(previews, allow_nan=False)

    with Image.open(io.BytesIO(base64.b64decode(previews["pool_images"]))) as picture:
        # 40 images of 8 x 8, each in 66 x 66 pixels
        assert picture.size == (8 * 66, 5 * 66)
    assert len(previews["pool_features"]["data"]) == 5
    assert "values]" in str(previews["pool_features"]["data"][0])
    assert json.loads(previews["teacher_model"])["architecture"]
    assert "<h1" in previews["report"]
    assert "<style" not in previews["report"]
    assert previews["audited_manifest"]["data"] == []
    assert json.loads(previews["pool_audit"]) is None


def test_sizes_are_written_after_a_run(catalog, tmp_path):
    pytest.importorskip("kedro_viz", reason="kedro-viz comes with the extra `viz`")
    set_project_folder(tmp_path)
    pipeline = Pipeline([Node(lambda *data: None, [*ENTRIES, *ABSENT], None, name="reads")])
    hooks = VizHooks()
    hooks.before_pipeline_run()
    hooks.after_pipeline_run({"runner": "a runner"}, pipeline, catalog)
    text = (tmp_path / STATISTICS).read_text()
    # After a plan, kedro-viz writes that there is nothing.
    hooks.before_pipeline_run()
    (tmp_path / STATISTICS).write_text("{}")
    hooks.after_pipeline_run({"runner": EXPLAINING_RUNNER}, pipeline, catalog)
    assert (tmp_path / STATISTICS).read_text() == text
    found = json.loads(text)
    assert set(found) == set(ENTRIES)
    assert found["pool_images"]["rows"] == found["pool_features"]["rows"] == 3050
    assert found["pool_features"]["columns"] == 3
    report = Path(catalog.get("report")._filepath)
    assert found["report"] == {"file_size": report.stat().st_size}


class Counted(MemoryDataset):
    """A data set of a user: a file whose rows are counted, or that cannot be counted."""

    def __init__(self, filepath: Path, rows: object) -> None:
        super().__init__()
        self._filepath = filepath
        self.rows = rows
        self.n_counts = 0

    def counts(self) -> dict[str, object]:
        self.n_counts += 1
        if self.rows is None:
            raise KeyError("rows")
        return {"rows": self.rows}


def test_sizes_of_unchanged_files_and_of_other_pipelines_are_kept(tmp_path):
    pytest.importorskip("kedro_viz", reason="kedro-viz comes with the extra `viz`")
    set_project_folder(tmp_path)
    data = {"a": Counted(tmp_path / "a", 3), "b": Counted(tmp_path / "b", None)}
    for name in data:
        (tmp_path / name).write_text("1234")
    catalog = DataCatalog(dict(data))

    def sizes_after_run_of(*names: str) -> dict[str, dict[str, int]]:
        hooks = VizHooks()
        hooks.before_pipeline_run()
        pipeline = Pipeline([Node(lambda *data: None, list(names), None, name="reads")])
        hooks.after_pipeline_run({"runner": "a runner"}, pipeline, catalog)
        return json.loads((tmp_path / STATISTICS).read_text())

    expected = {"a": {"rows": 3, "file_size": 4}, "b": {"file_size": 4}}
    assert sizes_after_run_of("a", "b") == expected
    assert sizes_after_run_of("b") == expected
    assert sizes_after_run_of("a") == expected
    assert data["a"].n_counts == 1

    # Another content, and another data folder.
    (tmp_path / "a").write_text("123456")
    os.utime(tmp_path / "a", (1, 1))
    data["b"]._filepath = tmp_path / "c"
    expected = {"a": {"rows": 3, "file_size": 6}}
    assert sizes_after_run_of("a") == expected
    # A file that something else wrote.
    (tmp_path / KNOWN).write_text('{"a": [], "x": 1}')
    assert sizes_after_run_of("a") == expected


@pytest.mark.parametrize("has_run", [False, True])
def test_a_run_with_nothing_to_do_leaves_the_view_of_the_last_run(tmp_path, has_run):
    pytest.importorskip("kedro_viz", reason="kedro-viz comes with the extra `viz`")
    set_project_folder(tmp_path)
    earlier = [{"event": "after_node_run", "node": "earlier"}]
    file = tmp_path / EVENTS
    file.parent.mkdir()
    file.write_text(json.dumps(earlier))
    hooks = VizHooks()
    hooks.before_pipeline_run()
    # As kedro-viz writes them: loading parameters for tracking is no node.
    events = [{"event": "before_pipeline_run"}, {"event": "after_dataset_loaded", "node_id": "1"}]
    if has_run:
        events.append({"event": "after_node_run", "node": "later"})
    file.write_text(json.dumps(events))
    hooks.after_pipeline_run({"runner": "a runner"}, Pipeline([]), DataCatalog())
    assert json.loads(file.read_text()) == (events if has_run else earlier)
