"""What MLflow has of a model, and what whoever loads it gets, without this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.tracking.model_description import MODEL_URI, model_description
from tests.pipelines.finished_run import IMAGES, REPORTING
from tests.tracking.stored_runs import rows

# Whatever imports the project fails.
WITHOUT_PROJECT = "import sys; sys.modules['pu_kd_pipeline'] = None"


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path, monkeypatch):
    # Some versions of MLflow make a database in the working directory when a model is loaded.
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def network():
    import torch

    # Batch normalization, because it behaves differently while a network is trained.
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(36, 3)).train()


def run_code(code: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", f"{WITHOUT_PROJECT}\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def expected_logits(model, images: np.ndarray) -> np.ndarray:
    import torch

    from pu_kd_pipeline.images.batches import normalization

    with torch.no_grad():
        inputs = normalization(model, torch.device("cpu"))(torch.from_numpy(images))
        return model.network.eval()(inputs).numpy()


def test_a_logged_model_takes_pixels_and_returns_classes(new_tracker, new_model, folder, network):
    import mlflow
    import torch

    model = new_model(network, 5, 3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 1, 5, 5), dtype=np.uint8)
    tracker = new_tracker()
    tracker.log_model("student_model", model, images[:2])
    tracker.log_model("random_student_model", model, images[:2])
    tracker.log_metrics({"student": {"accuracy": 0.976}, "random_student": {"accuracy": 0.5}})
    tracker.end("FINISHED")
    # A copy was exported.
    assert network.training

    [(name, version, description)] = rows(
        folder, "SELECT name, version, description FROM model_versions"
    )
    assert (name, version) == ("student", 1)
    tags = dict(rows(folder, "SELECT key, value FROM model_version_tags"))
    [(run_id,)] = rows(folder, "SELECT run_uuid FROM runs")
    assert tags == {
        "architecture": "toy",
        "n_classes": "3",
        "input": "float32 (N, 1, 5, 5) in [0, 1]",
        "teacher": "0123",
        "fingerprint": model.fingerprint(),
        "run": run_id,
        "data": "data/a",
        "accuracy": "0.9760",
    }
    query = """SELECT m.name, t.tag_value FROM logged_models m JOIN logged_model_tags t
        ON m.model_id = t.model_id WHERE t.tag_key = 'accuracy'"""
    assert sorted(rows(folder, query)) == [
        ("random_student_model", "0.5000"),
        ("student_model", "0.9760"),
    ]
    [(registered,)] = rows(folder, "SELECT description FROM registered_models")
    assert "They take pixels" in registered

    [model_id] = [
        model_id
        for model_id, name in rows(folder, "SELECT model_id, name FROM logged_models")
        if name == "student_model"
    ]
    assert f'mlflow.pyfunc.load_model("models:/{model_id}")' in description
    [model_folder] = (folder / "mlflow").rglob(f"{model_id}/artifacts")
    names = {path.name for path in model_folder.rglob("*")}
    assert names >= {"MLmodel", "model.pt2", "requirements.txt"}
    for name in names:
        # Who loads a pickle runs whatever code is in it.
        assert not name.endswith((".pkl", ".pth"))
    for path in model_folder.rglob("*"):
        if path.suffix in ("", ".txt", ".yaml", ".json") and path.is_file():
            assert "/home/me" not in path.read_text()
            assert str(folder) not in path.read_text().replace(f"{folder.as_uri()}/mlflow", "")
    packages = [
        line.partition("==")[0]
        for line in (model_folder / "requirements.txt").read_text().splitlines()
    ]
    assert packages == ["torch", "numpy", "pandas", "mlflow"]

    loaded = mlflow.pyfunc.load_model(str(model_folder))
    assert loaded.metadata.metadata["classes"] == ["class 0", "class 1", "class 2"]
    assert loaded.metadata.metadata["normalization"]["mean"] == [0.3]
    pixels = images.astype(np.float32) / 255
    np.testing.assert_allclose(loaded.input_example, pixels[:2], atol=1e-6)
    expected = expected_logits(model, images)
    logits = loaded.predict(pixels, params={"output": "logits"})
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    probabilities = loaded.predict(pixels)
    assert list(probabilities.columns) == ["class 0", "class 1", "class 2"]
    np.testing.assert_allclose(
        probabilities, torch.softmax(torch.from_numpy(expected), dim=1), atol=1e-6
    )
    named = loaded.predict(pixels[:1], params={"output": "classes"})
    assert named["class"].tolist() == [f"class {expected[0].argmax()}"]

    graph = mlflow.pytorch.load_model(str(model_folder))
    with torch.no_grad():
        np.testing.assert_allclose(graph(torch.from_numpy(pixels)), expected, atol=1e-5)


@pytest.fixture(scope="module")
def color_folder(tmp_path_factory):
    """An exported model of color images whose network reads BGR in [-1, 1]."""
    import torch

    from pu_kd_pipeline.models.cards import ModelCard
    from pu_kd_pipeline.models.model import Model
    from pu_kd_pipeline.params.teacher import InputSpec
    from pu_kd_pipeline.tracking.model_export import export_model

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    spec = {"size_px": 4, "channels": 3, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    spec |= {"channel_order": "bgr", "value_range": [-1, 1], "resize": "crop"}
    classes = tuple(f"class {index}" for index in range(16))
    card = ModelCard(architecture="toy", classes=classes, input=InputSpec.model_validate(spec))
    model = Model(network, card)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(model, None, folder)
    return model, folder


def test_the_graph_normalizes_as_the_run_does(color_folder):
    import mlflow

    model, folder = color_folder
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    # By hand, to see that the exported order and range are those of the card.
    scaled = images[:, ::-1].astype(np.float32) / 255 * 2 - 1
    mean = np.array([0.1, 0.2, 0.3], dtype=np.float32)[:, None, None]
    std = np.array([0.5, 0.6, 0.7], dtype=np.float32)[:, None, None]
    import torch

    with torch.no_grad():
        expected = model.network(torch.from_numpy((scaled - mean) / std)).numpy()
    loaded = mlflow.pyfunc.load_model(str(folder))
    logits = loaded.predict(images.astype(np.float32) / 255, params={"output": "logits"})
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_other_inputs_are_refused_by_both_flavors(color_folder):
    import mlflow
    import torch

    _, folder = color_folder
    loaded = mlflow.pyfunc.load_model(str(folder))
    graph = mlflow.pytorch.load_model(str(folder))
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 3, 4, 4), dtype=np.float32)
    normalized = (pixels - 0.5) / 0.25
    with_nan = pixels.copy()
    with_nan[0, 0, 0, 0] = np.nan
    for wrong in (pixels * 255, normalized, with_nan):
        for predict in (loaded.predict, lambda images: graph(torch.from_numpy(images))):
            with pytest.raises(RuntimeError, match=r"pixels have to be float32 in \[0, 1\]"):
                predict(wrong)

    other_types = [(pixels * 255).astype(np.uint8), pixels.astype(np.float64)]
    # Dark enough for the check of the range.
    other_types.append(np.ones((2, 3, 4, 4), dtype=np.uint8))
    for wrong in [*other_types, np.moveaxis(pixels, 1, -1), pixels[0]]:
        with pytest.raises(mlflow.MlflowException, match="does not match expected"):
            loaded.predict(wrong)
        with pytest.raises((RuntimeError, AssertionError)):
            graph(torch.from_numpy(np.ascontiguousarray(wrong)))
    with pytest.raises(ValueError, match="output is 'names', expected one of probabilities"):
        loaded.predict(pixels, params={"output": "names"})


def test_a_request_in_json_gets_probabilities_by_class(color_folder):
    from mlflow.pyfunc import load_model
    from mlflow.pyfunc.scoring_server import invocations

    _, folder = color_folder
    model = load_model(str(folder))
    request = json.loads((folder / "serving_input_example.json").read_text())

    def answer_to(request: dict) -> list[dict]:
        schema = model.metadata.get_input_schema()
        answer = invocations(json.dumps(request), "application/json", model, schema)
        assert answer.status == 200
        return json.loads(answer.response)["predictions"]

    [first, _] = answer_to(request)
    assert set(first) == {f"class {index}" for index in range(16)}
    assert sum(first.values()) == pytest.approx(1, abs=1e-5)
    named = answer_to({**request, "params": {"output": "classes"}})
    assert named[0]["class"] == max(first, key=first.get)


@pytest.mark.xdist_group("finished_run")
def test_the_registered_student_has_its_test_accuracy_without_the_project(finished_run, tmp_path):
    from pu_kd_pipeline.images.store import ImageStore

    metrics = json.loads((finished_run / REPORTING / "metrics.json").read_text())
    store = ImageStore.open(finished_run / IMAGES / "test_images")
    labels = store.index["label"].to_numpy()
    np.savez(tmp_path / "test.npz", images=store.read(np.arange(len(store))), labels=labels)
    database = finished_run / "mlflow" / "mlflow.db"
    code = f"""
import json, mlflow, numpy as np, torch
test = np.load({str(tmp_path / "test.npz")!r})
pixels = test["images"].astype(np.float32) / 255
address = "models:/pu_kd_student/1"
classes = mlflow.pyfunc.load_model(address).predict(pixels, params={{"output": "classes"}})
logits = mlflow.pytorch.load_model(address)(torch.from_numpy(pixels))
print(json.dumps([
    (classes["class"].astype(int).to_numpy() == test["labels"]).mean(),
    (logits.argmax(dim=1).numpy() == test["labels"]).mean(),
]))
"""
    out = run_code(code, MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    accuracies = json.loads(out.splitlines()[-1])
    assert accuracies == pytest.approx([metrics["student"]["accuracy"]] * 2)
    tags = dict(rows(finished_run, "SELECT key, value FROM model_version_tags"))
    assert float(tags["accuracy"]) == pytest.approx(metrics["student"]["accuracy"], abs=1e-4)

    # Two real images of the pool, which the run shows anyway, and no labeled ones.
    [example] = (finished_run / "mlflow").rglob("input_example.json")
    pool = ImageStore.open(finished_run / IMAGES / "pool_images")
    first = pool.read(np.arange(2)) / 255
    np.testing.assert_allclose(json.loads(example.read_text()), first, atol=1e-6)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_code_of_the_description_reads_a_file_as_the_run_does(tmp_path, new_model, resize):
    import torch
    from PIL import Image

    from pu_kd_pipeline.images.resizing import to_square

    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 57), dtype=np.uint8))
    photo.save(tmp_path / "image.png")
    model = new_model(torch.nn.Flatten(), 14, 196, resize=resize, interpolation="bicubic")
    spec = model.card.input
    code = model_description("toy", model.card).partition("```python\n")[2].partition("```")[0]
    assert MODEL_URI in code
    code, _, _ = code.partition("model = ")
    variables: dict = {}
    exec(code, variables)

    square = to_square(photo, 14, spec.shorter_side_px, "bicubic")
    expected = np.asarray(square, dtype=np.float32) / 255
    np.testing.assert_array_equal(variables["batch"], expected[None, None])


def test_models_of_other_sizes_get_a_pattern_as_their_example(monkeypatch):
    from kedro.io import DataCatalog, MemoryDataset

    from pu_kd_pipeline.hooks import tracking

    warnings = []

    def warn(text, *args):
        warnings.append(text % args)

    monkeypatch.setattr(tracking.logger, "warning", warn)
    example_images = tracking.example_images

    class Store:
        image_shape = (1, 5, 5)

        def __len__(self) -> int:
            return 3

        def read(self, rows):
            return np.ones((len(rows), 1, 5, 5), dtype=np.uint8)

    class Broken(MemoryDataset):
        def load(self):
            raise InputError("damaged\nin detail")

    catalog = DataCatalog({"pool_images": MemoryDataset(Store()), "broken": Broken()})
    assert example_images(catalog, "pool_images", (1, 5, 5)).shape == (2, 1, 5, 5)
    assert example_images(catalog, "pool_images", (1, 6, 6)) is None
    assert example_images(catalog, None, (1, 5, 5)) is None
    assert warnings == []
    assert example_images(catalog, "broken", (1, 5, 5)) is None
    [warning] = warnings
    assert "names broken, and no image can be read from it" in warning


def test_exported_files_have_the_modes_of_the_umask(color_folder):
    _, folder = color_folder
    umask = os.umask(0)
    os.umask(umask)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask
