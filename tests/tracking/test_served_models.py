"""The registered student behind `mlflow models serve`: image files in, classes out."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pu_kd_pipeline.images.decoding import Decoder
from pu_kd_pipeline.tracking.model_description import MODEL_URI, SERVING_COMMANDS
from tests.conftest import PROJECT
from tests.tracking.stored_runs import rows

# Whatever imports the project fails.
WITHOUT_PROJECT = "import sys; sys.modules['pu_kd_pipeline'] = None"
SECONDS_TO_START = 240


@pytest.fixture
def photo() -> bytes:
    """A JPEG of odd size that lies on its side, as a camera writes it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((130, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.fixture
def served(new_tracker, new_model, folder, config, monkeypatch, tmp_path):
    """The model, and the folder of its logged form that takes files."""
    import torch

    # Some versions of MLflow make a database in the working directory when a model is loaded.
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(400, 3)]
    spec = {"resize": "crop", "interpolation": "bicubic"}
    model = new_model(torch.nn.Sequential(*layers), 12, 3, **spec)
    tracker = new_tracker()
    tracker.config = config.model_copy(update={"served_model": "student_files"})
    tracker.log_model("student_model", model, None)
    tracker.log_metrics({"student": {"accuracy": 0.5}})
    tracker.end("FINISHED")
    query = "SELECT model_id FROM logged_models WHERE name = 'student_model_files'"
    [(model_id,)] = rows(folder, query)
    [model_folder] = (folder / "mlflow").rglob(f"{model_id}/artifacts")
    return model, model_folder


def expected_probabilities(model, photo: bytes) -> np.ndarray:
    import torch

    from pu_kd_pipeline.images.batches import normalization

    spec = model.card.input
    decoder = Decoder(1, spec.size_px, 10**6, spec.shorter_side_px, spec.interpolation)
    pixels = decoder.decode(photo)
    assert isinstance(pixels, np.ndarray)
    with torch.no_grad():
        inputs = normalization(model, torch.device("cpu"))(torch.from_numpy(pixels[None].copy()))
        return torch.softmax(model.network.eval()(inputs), dim=1).numpy()[0]


def request_of(*files: bytes) -> bytes:
    records = [{"image": base64.b64encode(file).decode()} for file in files]
    return json.dumps({"dataframe_records": records}).encode()


def test_a_jpeg_in_a_request_is_decoded_as_the_run_decodes_it(served, photo, folder):
    from mlflow.pyfunc import load_model
    from mlflow.pyfunc.scoring_server import invocations

    model, model_folder = served
    loaded = load_model(str(model_folder))

    def answer_to(text: str):
        schema = loaded.metadata.get_input_schema()
        return invocations(text, "application/json", loaded, schema)

    expected = expected_probabilities(model, photo)
    png = io.BytesIO()
    Image.new("L", (12, 12), 128).save(png, "PNG")
    answer = answer_to(request_of(photo, png.getvalue()).decode())
    assert answer.status == 200
    [first, _] = json.loads(answer.response)["predictions"]
    np.testing.assert_allclose(list(first.values()), expected, atol=1e-6)
    named = json.loads(request_of(photo)) | {"params": {"output": "classes"}}
    [named_class] = json.loads(answer_to(json.dumps(named)).response)["predictions"]
    assert named_class["class"] == f"class {expected.argmax()}"

    # A file that is none is refused in words.
    from mlflow import MlflowException

    with pytest.raises(MlflowException, match="image 1: unreadable; the bytes of an image file"):
        loaded.predict(pd.DataFrame({"image": [photo, b"no image"]}))

    # Both forms are versions in the registry, with the tags of the same student.
    versions = rows(folder, "SELECT name, version FROM model_versions ORDER BY name")
    assert versions == [("student", 1), ("student_files", 1)]
    tags = rows(folder, "SELECT DISTINCT value FROM model_version_tags WHERE key = 'accuracy'")
    assert tags == [("0.5000",)]
    requirements = (model_folder / "requirements.txt").read_text()
    assert "pillow==" in requirements.lower()
    assert not (model_folder / "input_example.json").exists()


def test_the_guide_has_the_commands_that_are_tested():
    guide = (PROJECT / "docs" / "tracking.md").read_text()
    commands = SERVING_COMMANDS.replace(MODEL_URI, "models:/pu_kd_student_files@local")
    for command in commands.split("\n\n"):
        assert command in guide


@pytest.mark.slow
def test_the_server_answers_a_jpeg_sent_with_curl_and_has_no_need_of_the_project(
    served, photo, tmp_path
):
    model, model_folder = served
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "photo.jpg").write_bytes(photo)
    # Of Python's own start-up, also in the processes that the server starts.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_PROJECT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    # As in an environment that was activated.
    programs = os.path.dirname(sys.executable)
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    serve, curl = SERVING_COMMANDS.split("\n\n")
    arguments = serve.replace(MODEL_URI, str(model_folder)).replace("5001", str(port))
    server = subprocess.Popen(
        [sys.executable, "-m", *arguments.split()],
        cwd=tmp_path,
        env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "errors.txt").open("w"),
        start_new_session=True,
    )
    try:
        is_ready = wait_until_ready(server, f"http://127.0.0.1:{port}/ping")
        assert is_ready, (tmp_path / "errors.txt").read_text()
        done = subprocess.run(
            ["sh", "-c", curl.replace("5001", str(port))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    [answer] = json.loads(done.stdout)["predictions"]
    expected = expected_probabilities(model, photo)
    np.testing.assert_allclose(list(answer.values()), expected, atol=1e-6)


def wait_until_ready(server: subprocess.Popen, address: str) -> bool:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False
