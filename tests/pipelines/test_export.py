"""The stages `export` and `predict`, on a finished run and through the command line."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.export.student import FILES, export_student
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model, load_model
from pu_kd_pipeline.params.export import ExportParams
from pu_kd_pipeline.params.predict import PredictParams
from pu_kd_pipeline.prediction import predict_files
from pu_kd_pipeline.reporting.export_page import export_sentences
from pu_kd_pipeline.storage.table import read_table
from tests.conftest import run_kedro
from tests.features.made_files import COMPUTE
from tests.pipelines.finished_run import IMAGES, MODEL_INPUT, MODEL_OUTPUT, MODELS, REPORTING

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

pytestmark = pytest.mark.xdist_group("finished_run")
QUICK = ("export.latency_repeats=3", "export.calibration_images=64")
N_PHOTOS = 5


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a run whose student was exported in every format."""
    data = tmp_path_factory.mktemp("exported") / "data"
    shutil.copytree(finished_run, data, copy_function=shutil.copy2)
    result = run_kedro("--pipeline=export", data=data, params=QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "give the student's class for every one of 500 test images" in result.stdout
    return data


@pytest.fixture(scope="module")
def photos(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five test images as files, and two files that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    images = ImageStore.open(exported / IMAGES / "test_images").read(np.arange(N_PHOTOS))
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    return folder


def folder_of(data: Path) -> Path:
    return data / MODELS / "exported_student"


def test_every_file_answers_as_the_student_and_names_it(exported):
    report = json.loads((exported / REPORTING / "export.json").read_text())
    student = load_model(exported / MODELS / "student_model")
    for name in ("onnx", "torch_export"):
        found = report["parity"]["files"][name]
        assert found["n_agreed"] == found["n"] == 500
        assert found["max_difference"] <= report["parity"]["allowed"]
    assert report["parity"]["files"]["safetensors"]["is_equal"]
    assert report["int8"]["agreement"] > 0.9
    assert report["int8"]["calibration"]["n"] == 64
    n_labeled = round(64 * student.card.origin["sampling"]["labeled_share"])
    assert 0 < n_labeled < 64
    assert report["int8"]["calibration"]["images"] == (
        f"manifest: {n_labeled} labeled images, and {64 - n_labeled} of the pool that its rule "
        "preferred"
    )
    assert set(report["models"]) == {"student", "onnx", "torch_export", "int8"}
    assert report["models"]["int8"]["latency_ms"] > 0

    folder = folder_of(exported)
    names = {path.name for path in folder.iterdir()}
    expected = {*FILES.values(), "preprocessing.json", "certificate.json", "predict.py"}
    assert names == expected == set(report["files"])
    certificate = json.loads((exported / REPORTING / "certificate.json").read_text())
    assert json.loads((folder / "certificate.json").read_text()) == certificate
    facts = json.loads((folder / "preprocessing.json").read_text())
    assert facts["classes"] == list(student.card.classes)
    assert facts["provenance"]["student"] == student.fingerprint()
    assert facts["provenance"]["manifest"] == certificate["provenance"]["manifest"]

    import onnx

    for name in ("onnx", "int8"):
        model = onnx.load(folder / FILES[name])
        texts = {each.key: each.value for each in model.metadata_props}
        assert texts["student_fingerprint"] == student.fingerprint()
        assert json.loads(texts["classes"]) == list(student.card.classes)
        assert json.loads(texts["certified_agreement"]) == certificate["agreement"]
    page = (exported / REPORTING / "export.html").read_text()
    assert student.fingerprint() in page
    n_agreed = report["int8"]["n_agreed"]
    assert f"{n_agreed} of 500" in page
    for name in ("onnx", "int8", "torch_export", "safetensors"):
        assert report["files"][FILES[name]]["sha256"] in page


def test_a_second_run_exports_nothing_and_another_format_does(exported):
    again = run_kedro("--pipeline=export", data=exported, params=QUICK)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do: the node is up to date." in again.stdout + again.stderr


def test_predict_classifies_a_folder_and_lists_what_it_cannot_read(exported, photos):
    student = load_model(exported / MODELS / "student_model")
    params = (f"predict.images={photos}", "predict.top_k=3")
    result = run_kedro("--pipeline=predict", data=exported, params=params)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 of 7 files classified" in result.stdout + result.stderr
    table = read_table(exported / MODEL_OUTPUT / "predictions.parquet")
    assert table.attrs["student"] == student.fingerprint()
    assert table.attrs["n_without_class"] == 2
    found = {row["file"]: row for row in table.to_dict("records")}
    assert found["broken.png"]["fault"] == "truncated"
    assert found["empty.png"]["fault"] == "empty"
    saved = read_table(exported / MODEL_OUTPUT / "test_predictions.parquet")["student"]
    for number in range(N_PHOTOS):
        row = found[f"{number}.png"]
        assert row["class"] == student.card.classes[saved[number]] == row["classes"][0]
        assert len(row["classes"]) == len(row["probabilities"]) == 3
        assert list(row["probabilities"]) == sorted(row["probabilities"], reverse=True)
        assert row["probability"] == pytest.approx(row["probabilities"][0])

    by_onnx = predict_files(student, folder_of(exported), asked_for(photos, model="onnx"))
    for row in by_onnx.to_dict("records"):
        own = found[row["file"]]
        assert pd.isna(row["fault"]) != pd.isna(row["class"])
        if pd.isna(row["fault"]):
            assert row["class"] == own["class"]
            assert row["probability"] == pytest.approx(own["probability"], abs=1e-4)

    script = folder_of(exported) / "predict.py"
    files = [str(photos / "1.png"), str(photos / "broken.png")]
    printed = subprocess.run(
        [sys.executable, str(script), *files], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    name, class_name, probability = printed[0].split("\t")
    assert name == files[0]
    assert class_name == found["1.png"]["class"]
    assert float(probability) == pytest.approx(found["1.png"]["probability"], abs=1e-3)
    assert printed[1].startswith(f"{files[1]}\tcannot be read")


def asked_for(images: Path | str | None, **changes: object) -> PredictParams:
    values = {
        "images": None if images is None else str(images),
        "model": "student",
        "top_k": 3,
        "max_image_pixels": 10_000,
        "n_workers": 1,
        "compute": COMPUTE,
    }
    return PredictParams.model_validate({**values, **changes})


def test_images_that_are_not_there_are_a_clean_error(exported):
    params = ("predict.images=/nowhere/at/all",)
    result = run_kedro("--pipeline=predict", data=exported, params=params)
    assert result.returncode == ExitCode.USER_ERROR
    assert "predict.images: there is no /nowhere/at/all" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_predictions_need_images_and_the_files_of_the_present_student(exported, photos, tmp_path):
    student = load_model(exported / MODELS / "student_model")
    other = load_model(exported / MODELS / "random_student_model")
    with pytest.raises(InputError, match=r"predict\.images: name the images to classify"):
        predict_files(student, None, asked_for(None))
    with pytest.raises(InputError, match=r"there is no student_int8\.onnx: run"):
        predict_files(student, None, asked_for(photos, model="int8"))
    with pytest.raises(InputError, match="holds another student than student_model"):
        predict_files(other, folder_of(exported), asked_for(photos, model="onnx"))
    # The facts are those of the student, and the model is not.
    import onnx

    mixed = tmp_path / "mixed"
    shutil.copytree(folder_of(exported), mixed)
    model = onnx.load(mixed / FILES["onnx"])
    onnx.helper.set_model_props(model, {"student_fingerprint": other.fingerprint()})
    onnx.save(model, mixed / FILES["onnx"])
    with pytest.raises(InputError, match=r"student\.onnx holds another student"):
        predict_files(student, mixed, asked_for(photos, model="onnx"))
    # No file can be read: a table all the same.
    (tmp_path / "empty.png").write_bytes(b"")
    table = predict_files(student, None, asked_for(tmp_path / "empty.png"))
    assert table["fault"].tolist() == ["empty"]
    assert table["class"].isna().all()


def test_an_image_without_probabilities_has_a_fault_and_no_class(exported, photos):
    student = load_model(exported / MODELS / "student_model")

    def without_numbers(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        is_first = torch.arange(len(logits))[:, None] == 0
        return logits.masked_fill(is_first, torch.nan)

    student.network.register_forward_hook(without_numbers)
    table = predict_files(student, None, asked_for(photos))
    rows = table.set_index("file")
    assert rows["fault"]["0.png"] == "the student computes no probabilities"
    assert pd.isna(rows["class"]["0.png"])
    assert rows["fault"]["broken.png"] == "truncated"
    whole = predict_files(load_model(exported / MODELS / "student_model"), None, asked_for(photos))
    pd.testing.assert_frame_equal(
        rows.loc[["1.png", "4.png"]], whole.set_index("file").loc[["1.png", "4.png"]]
    )


def params_of(*formats: str, **changes: object) -> ExportParams:
    values = {
        "formats": formats,
        "opset": 18,
        "tolerance": 1e-4,
        "calibration_images": 8,
        "fine_tuning": {
            "above_points": 0.5,
            "n_updates": 0,
            "learning_rate": 0.001,
            "n_images": 400,
            "n_checked": 100,
        },
        "seed": 0,
        "latency_repeats": 1,
        "compute": COMPUTE,
    }
    return ExportParams.model_validate({**values, **changes})


def test_another_student_a_tight_tolerance_and_lost_images_are_refused(finished_run):
    models = finished_run / MODELS
    stores = {
        name: ImageStore.open(finished_run / IMAGES / f"{name}_images")
        for name in ("test", "labeled", "pool", "teacher_training")
    }
    certificate = json.loads((finished_run / REPORTING / "certificate.json").read_text())
    teacher = load_model(models / "teacher_model")
    student = load_model(models / "student_model")
    of_manifest = {"labeled": stores["labeled"], "pool": stores["pool"]}
    manifest = read_table(finished_run / MODEL_INPUT / "manifest.parquet")

    def export(params: ExportParams, model=student, manifests=None):
        return export_student(
            teacher,
            model,
            stores["test"],
            certificate,
            manifests or {"manifest": manifest},
            of_manifest,
            stores["teacher_training"],
            params,
        )

    other = load_model(models / "random_student_model")
    with pytest.raises(InputError, match="export: certificate.json is not about the present"):
        export(params_of("safetensors"), other)
    files, report = export(params_of("safetensors"))
    assert set(files) == {"student.safetensors", "preprocessing.json", "certificate.json"}
    assert report["int8"] is None
    assert export_sentences(report)[0].startswith("student.safetensors holds the student's weights")
    for _ in range(3):
        assert export(params_of("safetensors"))[0] == files
    files, report = export(params_of("int8"))
    assert {"student_int8.onnx", "predict.py"} <= set(files)
    assert "student.onnx" not in files
    assert set(report["models"]) == {"student", "int8"}
    [sentence] = export_sentences(report)
    assert sentence.startswith("The int8 file gives the student's class for")
    with pytest.raises(InputError, match=r"student\.pt2 does not compute what student_model does"):
        export(params_of("torch_export", tolerance=1e-12))

    from pu_kd_pipeline.export.quantization import choose_calibration_images

    def choose(card, manifests):
        return choose_calibration_images(
            card, manifests, of_manifest, stores["teacher_training"], 8, 0
        )

    changed = manifest.iloc[1:]
    with pytest.raises(InputError, match="calibrated on images that the student learned from"):
        choose(student.card, {"manifest": changed, "preferential_manifest": None})
    chosen = choose(student.card, {"preferential_manifest": changed, "manifest": manifest})
    assert len(chosen) == 8
    assert sum(len(batch) for batch in chosen.batches()) == 8
    # As the card of a student of `critic_distillation`: the teacher's training images.
    training = {**student.card.origin["training"]}
    training["labeled_images"] = stores["teacher_training"].fingerprint
    origin = {**student.card.origin, "training": training}
    card = student.card.model_copy(update={"origin": origin})
    assert choose(card, {"manifest": changed}).source == "teacher_training_images"


def test_a_student_that_loses_in_int8_is_fine_tuned_and_kept_only_if_that_helps(
    finished_run, monkeypatch
):
    from pu_kd_pipeline.export import fine_tuning
    from pu_kd_pipeline.export.fine_tuning import split_images
    from pu_kd_pipeline.export.quantization import choose_calibration_images
    from pu_kd_pipeline.export.student import _Task

    models = finished_run / MODELS
    stores = {
        name: ImageStore.open(finished_run / IMAGES / f"{name}_images")
        for name in ("test", "labeled", "pool", "teacher_training")
    }
    teacher = load_model(models / "teacher_model")
    student = load_model(models / "student_model")
    certificate = json.loads((finished_run / REPORTING / "certificate.json").read_text())
    manifest = read_table(finished_run / MODEL_INPUT / "manifest.parquet")
    balanced = Model(copy.deepcopy(student.network), student.card)
    _unbalance(student.network, 100.0)

    def choose(n: int):
        of_manifest = {"labeled": stores["labeled"], "pool": stores["pool"]}
        return choose_calibration_images(
            student.card, {"manifest": manifest}, of_manifest, stores["teacher_training"], n, 0
        )

    images = choose(64)
    tuning = split_images(choose(1000), images, 150, 0)
    assert len(tuning.checked) == 150

    def rows(chosen):
        return {(store.fingerprint, row) for store, rows in chosen.parts for row in rows}

    assert not rows(images) & (rows(tuning.checked) | rows(tuning.learned))
    assert not rows(tuning.checked) & rows(tuning.learned)

    def exported_with(**changes):
        block = params_of("int8").fine_tuning.model_copy(update=changes)
        params = params_of("int8", fine_tuning=block.model_dump())
        task = _Task(student, stores["test"], certificate, params)
        task.add_graphs()
        return task._int8_content(teacher, images, tuning)

    kept, found = exported_with(n_updates=0)
    assert found["n_agreed_after"] is None
    content, tuned = exported_with(n_updates=2)
    assert tuned["failure"] is None
    assert tuned["is_used"] == (content != kept)
    assert found["n_agreed"] < found["n_agreed_float32"]
    # Fine-tuning that undoes what rounding suffers from, and one that changes nothing.
    monkeypatch.setattr(fine_tuning, "fine_tune", lambda *_: balanced)
    content, tuned = exported_with(n_updates=1)
    assert tuned["n_agreed_after"] > tuned["n_agreed"] == found["n_agreed"]
    assert tuned["is_used"]
    assert content != kept
    monkeypatch.setattr(fine_tuning, "fine_tune", lambda *_: student)
    content, useless = exported_with(n_updates=1)
    assert useless["n_agreed_after"] == useless["n_agreed"]
    assert not useless["is_used"]
    assert content == kept

    # A user's network may be impossible to train in this way.
    def fail(*_):
        raise RuntimeError("no gradient")

    monkeypatch.setattr(fine_tuning, "fine_tune", fail)
    content, failed = exported_with(n_updates=1)
    assert failed["failure"] == "no gradient"
    assert content == kept
    # It does not cost that much.
    content, cheap = exported_with(n_updates=1, above_points=100.0)
    assert cheap == found


def _unbalance(network: torch.nn.Module, factor: float) -> None:
    """Scale channels and unscale them in the next layer: the same function, hard to round."""
    layers = [
        layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    scaled = norms or layers
    with torch.no_grad():
        for layer, following in zip(scaled, layers[1:], strict=False):
            if following.weight.shape[1] != len(layer.weight):
                continue
            factors = torch.logspace(0, np.log10(factor), len(layer.weight))
            layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.mul_(factors)
            following.weight.div_(factors.view(1, -1, *[1] * (following.weight.ndim - 2)))


@pytest.mark.network
@pytest.mark.slow
def test_the_script_needs_nothing_but_its_three_packages(exported, photos, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = ("onnxruntime", "numpy", "pillow")
    options = ("--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt")
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", *options, *packages],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        pytest.skip(f"the packages cannot be downloaded here: {installed.stderr.strip()[-300:]}")
    copy = tmp_path / "deployed"
    shutil.copytree(folder_of(exported), copy)
    for option in ([], ["--int8"]):
        printed = subprocess.run(
            [str(python), str(copy / "predict.py"), *option, str(photos / "1.png")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={},
        ).stdout
        own = subprocess.run(
            [sys.executable, str(copy / "predict.py"), *option, str(photos / "1.png")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.split("\t")[:2] == own.split("\t")[:2]
    listed = subprocess.run(
        [str(python), "-c", "import importlib.util as u; print(u.find_spec('torch'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.strip() == "None"
