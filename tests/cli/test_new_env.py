"""`kedro new-env`: environments from the files that users have."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from pu_kd_pipeline.cli import cli
from pu_kd_pipeline.cli.new_environment import Request, _parameter_files, _split
from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model, save_model
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.teacher import InputSpec

PROJECT = Path(__file__).resolve().parents[2]
# The images are dark or light, and the network knows which: class 0 is dark.
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.last = nn.Linear(2, n_classes)

    def forward(self, images):
        return self.last(self.first(images).relu().mean(dim=(2, 3)))

def untrained(n_classes):
    return Net(n_classes)

def trained_in_bfloat16(n_classes):
    return trained(n_classes).bfloat16()

def trained(n_classes):
    network = Net(n_classes)
    weights = {
        "first.weight": torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1),
        "first.bias": torch.zeros(2),
        "last.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "last.bias": torch.zeros(2),
    }
    network.load_state_dict(weights)
    return network
"""
MODULE = "networks_of_new_env"
CLASSES = ("dark", "light")
INPUT = ("--size=8", "--mean=0.5", "--std=0.5")
STUDENT = ("--student=digits_cnn", "--student-option=width=2")
N_LABELED = 4
N_TEST = 3
N_POOL = 20


def picture(class_number: int, seed: int) -> Image.Image:
    low = 150 * class_number
    pixels = np.random.default_rng(seed).integers(low, low + 100, (8, 8), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_folders(folder: Path, n: int, first: int, names: tuple[str, str] = CLASSES) -> Path:
    """Write n images of each class into sub-folders."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row in range(n):
            picture(number, 100 * number + first + row).save(folder / name / f"{row}.png")
    return folder


def parquet_file(file: Path, n: int, **columns: Any) -> Path:
    """Write n images of each class, and an image of neither."""
    images = []
    names = []
    for row in range(2 * n):
        images.append(_png(picture(row % 2, 1000 + row)))
        names.append(CLASSES[row % 2])
    images.append(_png(picture(0, 5000)))
    names.append("gray")
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label_name": names, **columns}), file)
    return file


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tar_file(file: Path, n: int, mode: str, *, has_labels: bool) -> Path:
    """Write n images of each class as WebDataset does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:
        for row in range(2 * n):
            members = {"png": _png(picture(row % 2, 3000 + row))}
            if has_labels:
                members["cls"] = CLASSES[row % 2].encode()
            for extension, content in members.items():
                about = tarfile.TarInfo(f"{row:04d}.{extension}")
                about.size = len(content)
                archive.addfile(about, BytesIO(content))
    return file


def list_of(folder: Path, file: Path, separator: str) -> Path:
    """Write a list of the images in class folders, with their labels."""
    lines = [separator.join(("path", "label_name"))]
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(file.parent).as_posix()
        lines.append(separator.join((name, path.parent.name)))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with the parameters of conf/base, and a user's files in `my files`."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "conf" / "base", folder / "conf" / "base")
    shutil.copy(PROJECT / "pyproject.toml", folder)
    files = folder / "my files"
    image_folders(files / "labeled", N_LABELED, 0)
    image_folders(files / "test", N_TEST, 20)
    (files / "pool").mkdir()
    for row in range(N_POOL):
        picture(row % 2, 2000 + row).save(files / "pool" / f"{row}.png")
    (files / f"{MODULE}.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(files))
    monkeypatch.chdir(files)
    network = build_network(f"{MODULE}:trained", 2, 1)
    torch.save({"model": network.state_dict()}, files / "teacher.pt")
    return folder


def new_env(name: str, *options: str, **replaced: str | None) -> Result:
    """Run the command with the files of `project`; None leaves an option out."""
    given: dict[str, str | None] = {
        "teacher": "teacher.pt",
        "architecture": f"{MODULE}:untrained",
        "labeled": "labeled",
        "pool": "pool",
        "test": "test",
        **replaced,
    }
    texts = [f"--{key}={value}" for key, value in given.items() if value is not None]
    arguments = ["new-env", name, *texts, *options]
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "250"})


def files_of(project: Path) -> set[str]:
    """Return every file of a project but those that it had."""
    found = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("conf/base/", "my files/"))}


def written(project: Path, name: str, block: str) -> dict[str, Any]:
    text = (project / "conf" / name / f"parameters_{block}.yml").read_text()
    content: dict[str, Any] = yaml.safe_load(text)[block]
    return content


def assert_refused(result: Result, message: str, project: Path) -> None:
    """Check an error, and that nothing was left behind."""
    output = " ".join(result.output.split())
    assert result.exit_code == ExitCode.USER_ERROR, output
    assert message in output
    assert "Traceback" not in output
    assert files_of(project) == {"pyproject.toml"}
    assert [path.name for path in (project / "conf").iterdir()] == ["base"]
    assert not (project / "data").exists()


def test_an_environment_is_written_and_what_was_found_is_printed(project: Path) -> None:
    result = new_env("mine", *INPUT, *STUDENT, "--classes=dark,light")

    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    # Clopper and Pearson: the lower bound is 0.025 ** (1 / 8).
    accuracy = "accuracy on labeled images 100.0 % of 8 (95 % interval: 63.1 to 100.0 %)"
    assert f"{accuracy} accuracy by chance 50.0 %" in output
    assert "2: dark, light" in result.output
    assert "8 x 8, gray, mean [0.5], std [0.5]" in result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["used", "8", "20", "6"] in rows
    assert ["dark", "4", "?", "3"] in rows
    assert ["width", "x", "height", "8x8", "8x8", "8x8"] in rows
    assert ["format", "PNG", "PNG", "PNG"] in rows
    assert "Next: kedro run --pipeline=full --env=mine" in result.output

    assert files_of(project) == {
        "pyproject.toml",
        "conf/mine/globals.yml",
        "conf/mine/parameters_data_ingestion.yml",
        "conf/mine/parameters_distillation.yml",
        "conf/mine/parameters_teacher.yml",
    }
    assert yaml.safe_load((project / "conf/mine/globals.yml").read_text()) == {"data": "data/mine"}
    teacher = written(project, "mine", "teacher")
    assert teacher["weights"] == "my files/teacher.pt"
    assert teacher["classes"] == ["dark", "light"]
    assert teacher["input"] == {"size_px": 8, "channels": 1, "mean": [0.5], "std": [0.5]}
    ingestion = written(project, "mine", "data_ingestion")
    folder = {"type": "folder", "path": "my files/pool", "name": "pool", "labels": "ignore"}
    assert ingestion["pool"] == [folder]
    assert ingestion["teacher_training"] == []
    read = read_parameters(project / "conf", "mine")
    assert read["distillation"]["student_options"] == {"width": 2}
    assert read["pu_training"] == read_parameters(project / "conf", "base")["pu_training"]


def test_classes_are_the_sorted_labels_unless_others_are_given(project: Path) -> None:
    result = new_env("mine", *INPUT, *STUDENT)
    assert "the classes are the labels of the labeled images in sorted order" in result.output
    assert written(project, "mine", "teacher")["classes"] == ["dark", "light"]
    assert "WARNING" not in result.output

    (project / "my files" / "classes.txt").write_text("dark\nlight\n\n")
    new_env("third", *INPUT, *STUDENT, "--classes=classes.txt")
    assert written(project, "third", "teacher")["classes"] == ["dark", "light"]


def test_a_teacher_at_chance_level_is_reported_with_its_cause(project: Path) -> None:
    image_folders(project / "my files" / "labeled", 12, 0)
    result = new_env("mine", *INPUT, *STUDENT, "--classes=light,dark")
    output = " ".join(result.output.split())
    assert result.exit_code == 0, output
    assert "WARNING: a run will stop. teacher: 0.0 % of 24 labeled images" in output
    assert "0.0 to 14.2 %; chance 50.0 %). That is no better than chance" in output
    assert "Likely cause: with the classes in another order, it would be 100.0 %" in output
    assert "Set teacher.classes: [dark, light] (parameters_teacher.yml)" in output
    assert "set teacher_check.mode: warn" in output
    assert "Next: correct the teacher in conf/mine (see WARNING), then kedro run" in output

    # The same as a run does, with what the environment had before.
    (project / "conf/mine/parameters_check.yml").write_text("teacher_check: {mode: warn}\n")
    result = new_env("mine", *INPUT, *STUDENT, "--classes=light,dark", "--overwrite")
    output = " ".join(result.output.split())
    assert "WARNING: teacher: 0.0 % of 24 labeled images" in output
    assert "Set teacher.classes: [dark, light]" in output
    assert "Next: kedro run" in output


def test_a_wrong_normalization_is_reported_with_the_right_one(project: Path) -> None:
    image_folders(project / "my files" / "labeled", 12, 0)
    # Every image seems to be dark.
    result = new_env("mine", *STUDENT, "--size=8", "--mean=0.97", "--std=0.5")
    output = " ".join(result.output.split())
    assert "a run will stop. teacher: 50.0 % of 24 labeled images" in output
    assert "Likely cause: with mean" in output
    assert "Set teacher.input: {mean: [0.49804], std: [0.50196]}" in output


def test_images_are_decoded_as_a_run_does(project: Path) -> None:
    files = project / "my files"
    shutil.rmtree(files / "labeled")
    for number, name in enumerate(CLASSES):
        folder = files / "labeled" / name
        folder.mkdir(parents=True)
        for row in range(12):
            # Only the center is of the class.
            wide = Image.new("L", (60, 8), 255 * (1 - number))
            wide.paste(picture(number, row), (26, 0))
            wide.save(folder / f"{row}.png")
    Image.new("L", (2, 300)).save(files / "pool" / "line.png")
    parameters = project / "conf" / "base" / "parameters_data_ingestion.yml"
    text = parameters.read_text().replace("max_image_pixels: 100000000", "max_image_pixels: 1000")
    parameters.write_text(text)

    result = new_env("mine", *INPUT, *STUDENT, "--input=resize=crop", "--input=crop_ratio=1.0")
    assert "100.0 % of 24" in result.output
    assert "pool: 1 images cannot be used: too elongated for a center crop" in result.output
    squashed = new_env("other", *INPUT, *STUDENT)
    output = " ".join(squashed.output.split())
    assert "a run will stop. teacher: 0.0 % of 24 labeled images" in output
    assert "cannot be used" not in output


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([1, 0, 1], ["b", "z", "b"], ["z", "b"]),
        # Numbers of more classes than there are images of.
        ([7, 0, 7], ["b", "z", "b"], ["b", "z"]),
        ([0, 0, 1], ["b", "z", "b"], ["b", "z"]),
        (None, ["b", "z", " "], ["b", "z"]),
        ([2, 0, None], None, 3),
        (None, None, None),
    ],
)
def test_classes_have_the_order_of_their_numbers_if_they_are_counted(
    tmp_path: Path, labels: Any, names: Any, classes: Any
) -> None:
    from pu_kd_pipeline.cli.environment_facts import labels_of

    columns: dict[str, Any] = {"image": [b"x"] * 3}
    if labels:
        columns["label"] = labels
    if names:
        columns["label_name"] = names
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = labels_of([{"type": "parquet", "path": str(tmp_path / "a.parquet")}])
    assert (found.classes if found else None) == classes


@pytest.mark.parametrize("name", ["base", "local", "Base", "a/b", "../a", "", ".a", "a b", "-a"])
def test_names_that_are_no_environments_are_refused(project: Path, name: str) -> None:
    # Behind two dashes, a name is no option.
    result = CliRunner().invoke(
        cli,
        ["new-env", "--teacher=a", "--labeled=b", "--pool=c", "--test=d", "--", name],
    )
    assert_refused(result, f"an environment cannot be called {name!r}", project)


def test_an_existing_environment_is_only_replaced_with_overwrite(project: Path) -> None:
    folder = project / "conf" / "mine"
    folder.mkdir()
    (folder / "parameters_teacher.yml").write_text("teacher: {}\n")
    (folder / "catalog.yml").write_text("# my own\n")

    refused = new_env("mine", *INPUT, *STUDENT)
    assert refused.exit_code == ExitCode.USER_ERROR
    assert "there is an environment mine already" in refused.output
    assert (folder / "parameters_teacher.yml").read_text() == "teacher: {}\n"

    # A second file with the same block would make the environment unreadable.
    own = folder / "parameters" / "own.json"
    own.parent.mkdir()
    own.write_text('{"teacher": {"taps": null}}')
    repeated = new_env("mine", *INPUT, *STUDENT, "--overwrite")
    assert repeated.exit_code == ExitCode.USER_ERROR
    assert "parameters/own.json of the existing environment sets teacher, too" in repeated.output
    assert (folder / "parameters_teacher.yml").read_text() == "teacher: {}\n"
    assert {path.name for path in (project / "conf").iterdir()} == {"base", "mine"}
    own.unlink()

    # Files that links lead to are somebody else's.
    outside = []
    for name in ("credentials.yml", "parameters_distillation.yml"):
        target = project.parent / name
        target.write_text("{}")
        target.chmod(0o600)
        (folder / name).symlink_to(target)
        outside.append(target)
    (folder / "catalog.yml").chmod(0o600)
    replaced = new_env("mine", *INPUT, *STUDENT, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert written(project, "mine", "teacher")["weights"] == "my files/teacher.pt"
    assert (folder / "catalog.yml").read_text() == "# my own\n"
    for file in (*outside, folder / "catalog.yml"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [file.read_text() for file in outside] == ["{}", "{}"]


def test_parameters_are_found_wherever_kedro_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / ".mine[1].tmp"
    names = ["parameters.yml", "parameters/a/b.json", "parameters_own.yaml", "x/parameters.yml"]
    others = ["parameters.txt", ".old/parameters.yml", "x/.parameters.yml", "catalog.yml"]
    for name in (*names, *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert _parameter_files(folder) == sorted(folder / name for name in names)


def test_an_environment_that_is_a_link_is_not_replaced(project: Path) -> None:
    target = project.parent / "elsewhere"
    target.mkdir()
    (project / "conf" / "mine").symlink_to(target)
    result = new_env("mine", *INPUT, *STUDENT, "--overwrite")

    assert result.exit_code == ExitCode.USER_ERROR
    assert "the environment mine is a link" in result.output
    assert (project / "conf" / "mine").readlink() == target
    assert list(target.iterdir()) == []


def test_the_folder_of_outputs_is_not_that_of_the_images(project: Path) -> None:
    image_folders(project / "data" / "mine", N_LABELED, 0)
    result = new_env("mine", *INPUT, *STUDENT, labeled="../data/mine")

    assert result.exit_code == ExitCode.USER_ERROR
    message = "data_ingestion.labeled[0].path: data/mine contains the folder"
    assert message in result.output
    assert not (project / "conf" / "mine").exists()


def test_a_very_long_name_is_refused(project: Path) -> None:
    assert_refused(new_env("a" * 300, *INPUT), "has 300 characters, and may have 100", project)


def test_a_file_of_classes_in_another_encoding_is_refused(project: Path) -> None:
    (project / "my files" / "classes.txt").write_bytes("hell\nf\xfcr".encode("latin-1"))
    result = new_env("mine", *INPUT, *STUDENT, classes="classes.txt")
    assert_refused(result, "classes.txt is no text in UTF-8 (byte 6): save it as UTF-8", project)


def test_everything_that_cannot_be_found_is_named_at_once(project: Path) -> None:
    result = new_env("mine", architecture=None)
    assert_refused(result, "--architecture (a classifier of torchvision", project)
    for option in ("--size", "--mean", "--std"):
        assert f"{option} (of the images that it was trained on)" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "nothing.pt"}, "--teacher: there is no file or folder nothing.pt"),
        ({"teacher": "labeled"}, "has no weights.safetensors: give the weights file itself"),
        ({"labeled": "nothing"}, "--labeled: there is no file or folder nothing"),
        ({"pool": "labeled/dark/0.png"}, "is a single image: give the folder that holds it"),
        ({"architecture": "resnet18"}, "'resnet18' is a torchvision model and reads three"),
        ({"architecture": "digits_cnn"}, "the file has first.weight, first.bias"),
        ({"classes": "light,bright"}, "the teacher has 2 classes (light, bright)"),
        ({"classes": "a,b,c"}, "last.weight (2, 2) instead of (3, 2)"),
        ({"mean": "half"}, "--mean: 'half' is not one number"),
        ({"std": "0"}, "std must be positive"),
        ({"input": "sizes=3"}, "the key `teacher.input.sizes` is not known"),
        ({"input": "channels"}, "--input: 'channels' is not KEY=VALUE"),
        ({"student": "digits_cmn"}, "did you mean 'digits_cnn'"),
        ({"pool": "labeled"}, "give --labeled-per-class to split it, or other files"),
        ({"labeled-per-class": "2"}, "split one source that is given for several parts"),
        ({"pool": "~nobody-at-all/a"}, "'~nobody-at-all/a' is not a path"),
        ({"teacher": "a" * 300}, "--teacher: there is no file or folder aaa"),
        ({"classes": ",".join(f"class{n}" for n in range(90))}, "instead of (90, 2)"),
        ({"input": "mean=[half]"}, "--input mean: ['half'] is not one number, or a list"),
        ({"input": "mean=half"}, "--input mean: 'half' is not one number"),
        ({"input": "channels=2"}, "--input channels: 2 is neither 1 (gray) nor 3 (color)"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(
    project: Path, options: dict[str, str], message: str
) -> None:
    given = {"size": "8", "mean": "0.5", "std": "0.5", "student": "digits_cnn", **options}
    assert_refused(new_env("mine", **given), message, project)


def test_a_factory_may_bring_its_weights(project: Path) -> None:
    refused = new_env("mine", *INPUT, *STUDENT, teacher=f"{MODULE}:untrained", architecture=None)
    assert_refused(refused, "returns a network with random weights (such as first.weight)", project)

    # A single number as a key of the input, too.
    given = ("--size=8", "--input=mean=0.5", "--input=std=0.5")
    result = new_env("mine", *given, *STUDENT, teacher=f"{MODULE}:trained", architecture=None)
    assert result.exit_code == 0, result.output
    assert "100.0 % of 8" in result.output
    assert written(project, "mine", "teacher")["input"]["mean"] == [0.5]
    weights = written(project, "mine", "teacher")["weights"]
    assert weights.startswith("data/01_raw/mine/teacher-")
    assert (project / weights).is_file()

    # An environment that fails leaves no weights, but does not take those of another one.
    failed = new_env("mine", *INPUT, "--overwrite", teacher=f"{MODULE}:trained", architecture=None)
    assert "none of the usual students costs half of this teacher" in failed.output
    assert (project / weights).is_file()
    other = new_env("other", *INPUT, teacher=f"{MODULE}:trained", architecture=None)
    assert other.exit_code == ExitCode.USER_ERROR
    assert not (project / "data/01_raw/other").exists()


def test_weights_that_cannot_be_stored_leave_no_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pu_kd_pipeline.models.weights.save_weights", full)
    result = new_env("mine", *INPUT, *STUDENT, teacher=f"{MODULE}:trained", architecture=None)
    assert result.exit_code == ExitCode.FAILURE
    assert "There is no space left on the disk" in result.output
    assert list((project / "data" / "01_raw").iterdir()) == []


def test_a_factory_of_bfloat16_weights_is_one_message(project: Path) -> None:
    factory = f"{MODULE}:trained_in_bfloat16"
    result = new_env("mine", *INPUT, *STUDENT, teacher=factory, architecture=None)
    assert result.exit_code == ExitCode.USER_ERROR
    assert "Error: teacher: the network fails on an image of shape (1, 8, 8)" in result.output
    assert list((project / "data" / "01_raw").iterdir()) == []


def test_a_model_folder_says_everything_and_a_student_is_chosen(project: Path) -> None:
    spec = InputSpec(size_px=8, channels=1, mean=(0.3,), std=(0.4,))
    card = ModelCard(architecture="digits_cnn", classes=CLASSES, input=spec)
    save_model(Model(build_network("digits_cnn", 2, 1), card), project / "my files" / "model")
    result = new_env("mine", teacher="model", architecture=None)

    assert result.exit_code == 0, result.output
    teacher = written(project, "mine", "teacher")
    assert teacher["weights"] == "my files/model"
    assert teacher["input"] is teacher["classes"] is teacher["architecture"] is None
    # The largest with half of the teacher's parameters and FLOPs.
    student = written(project, "mine", "distillation")
    assert student["student_architecture"] == "cifar_resnet"
    assert "the student is cifar_resnet, chosen by its size" in result.output

    # What is given replaces that of the card.
    result = new_env("other", "--mean=0.25", teacher="model", architecture=None)
    assert result.exit_code == 0, result.output
    expected = {"size_px": 8, "channels": 1, "mean": [0.25], "std": [0.4]}
    assert written(project, "other", "teacher")["input"] == expected


def test_one_file_is_split_and_its_labels_are_the_truth(project: Path) -> None:
    file = str(parquet_file(project / "my files" / "all.parquet", 10))
    split = {"labeled": file, "pool": file, "test": file}
    without = new_env("mine", *INPUT, *STUDENT, "--classes=dark,light", **split)
    assert_refused(without, "give --labeled-per-class and --test-per-class to split it", project)

    result = new_env(
        "mine",
        *(*INPUT, *STUDENT, "--classes=dark,light", "--leave-out-other-labels"),
        *("--labeled-per-class=3", "--test-per-class=2"),
        **split,
    )
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["used", "6", "11", "4"] in rows
    assert ["light", "3", "5", "2"] in rows
    assert ["no", "class,", "or", "unknown", "0", "1", "0"] in rows
    [pool] = written(project, "mine", "data_ingestion")["pool"]
    assert pool["labels"] == "truth"
    assert pool["label_ranks"] == [5, None]


def split_of(n_labeled: int | None, n_test: int | None, **paths: str) -> dict[str, Any]:
    """Return part -> range of its sources, by the letters of their paths; None: all images."""
    found = {}
    for part in ("labeled", "pool", "test"):
        found[part] = [{"path": path} for path in paths[part]]
    request = Request("t", [], [], [], labeled_per_class=n_labeled, test_per_class=n_test)
    _split(found, request)
    return {part: [each.get("label_ranks") for each in found[part]] for part in found}


def test_a_source_is_split_among_the_parts_that_share_it() -> None:
    all_three = split_of(10, 20, labeled="a", pool="a", test="a")
    assert all_three == {"labeled": [[0, 10]], "pool": [[30, None]], "test": [[10, 30]]}
    # No image is lost to a part that has another source.
    pool = split_of(10, None, labeled="a", pool="a", test="b")
    assert pool == {"labeled": [[0, 10]], "pool": [[10, None]], "test": [None]}
    pairs = split_of(10, 20, labeled="a", pool="ab", test="b")
    assert pairs == {"labeled": [[0, 10]], "pool": [[10, None], [20, None]], "test": [[0, 20]]}
    labeled = split_of(10, None, labeled="a", pool="b", test="a")
    assert labeled == {"labeled": [[0, 10]], "pool": [None], "test": [[10, None]]}


def test_an_option_for_a_part_that_shares_no_source_is_refused() -> None:
    with pytest.raises(InputError, match="--test-per-class .* no source of --test is"):
        split_of(10, 20, labeled="a", pool="a", test="b")
    with pytest.raises(InputError, match="--labeled-per-class .* no source of --labeled is"):
        split_of(10, 20, labeled="b", pool="a", test="a")
    with pytest.raises(InputError, match="give --test-per-class to split it"):
        split_of(None, None, labeled="b", pool="a", test="a")


def test_paths_and_names_that_yaml_or_omegaconf_would_change_are_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = project.parent / "out ${side} #1"
    names = ("1e3", "no ${x}")
    image_folders(outside / "labeled", 3, 0, names)
    image_folders(outside / "test", 3, 10, names)
    monkeypatch.chdir(outside)
    result = new_env(
        "mine",
        *(*INPUT, *STUDENT, "--classes=1e3,no ${x}"),
        # Below the project, which is where paths of the guide start.
        teacher="my files/teacher.pt",
        pool="my files/pool",
        labeled="labeled",
    )
    # Kedro's commands are those of the project that the working folder is in.
    assert result.exit_code != 0
    monkeypatch.chdir(project / "my files" / "pool")
    result = new_env(
        "mine",
        *(*INPUT, *STUDENT, "--classes=1e3,no ${x}"),
        teacher="../teacher.pt",
        pool=".",
        labeled=f"../../../{outside.name}/labeled",
        test=str(outside / "test"),
    )
    assert result.exit_code == 0, result.output
    read = read_parameters(project / "conf", "mine")
    assert read["teacher"]["weights"] == "my files/teacher.pt"
    assert read["teacher"]["classes"] == ["1e3", "no ${x}"]
    assert read["data_ingestion"]["labeled"][0]["path"] == str(outside / "labeled")
    assert read["data_ingestion"]["pool"][0]["path"] == "my files/pool"


def test_types_of_sources_are_found_by_looking(project: Path) -> None:
    from pu_kd_pipeline.cli.found_sources import GivenPaths, find_source
    from pu_kd_pipeline.errors import InputError

    files = project / "my files"
    paths = GivenPaths(project, files)
    parquet_file(files / "flat" / "a.parquet", 1)
    parquet_file(files / "deep" / "x" / "a.parquet", 1)
    (files / "nameless").write_bytes((files / "flat" / "a.parquet").read_bytes())
    (files / "photos.zip").write_bytes(b"PK")
    image_folders(files / "mixed", 1, 0)
    parquet_file(files / "mixed" / "a.parquet", 1)
    for name in ("a.tar", "b.tar"):
        tar_file(files / "shards" / "x" / name, 1, "w", has_labels=False)
    (files / "upper").mkdir()
    (files / "upper" / "a.PARQUET").write_bytes((files / "flat" / "a.parquet").read_bytes())
    for name in ("lists/a.TSV", "lists/b.csv", "lists/c.csv"):
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_text("path\n")
    (files / "texts").mkdir()
    (files / "texts" / "a.txt").write_text("a")

    def found(given: str) -> tuple[str, str]:
        source = find_source(given, "--pool", paths)
        return source["type"], source["path"]

    assert found("pool") == ("folder", "my files/pool")
    assert found("flat") == ("parquet", "my files/flat")
    assert found("deep") == ("parquet", "my files/deep/**/*.parquet")
    assert found("flat/*.parquet") == ("parquet", "my files/flat/*.parquet")
    assert found("nameless") == ("parquet", "my files/nameless")
    assert found("s3://bucket/a/*.parquet") == ("parquet", "s3://bucket/a/*.parquet")
    assert found("shards") == ("webdataset", "my files/shards/**/*.tar")
    assert found("upper") == ("parquet", "my files/upper/*.PARQUET")
    assert found("shards/x/{a,b}.tar") == ("webdataset", "my files/shards/x/{a,b}.tar")
    assert found("lists/a.*") == ("list", "my files/lists/a.TSV")
    # An address in a chain decides, not the archive that it is in.
    types = {
        "https://host/a.TAR.GZ?x=.csv": "webdataset",
        "simplecache::s3://bucket/a-{000..127}.tar": "webdataset",
        "tar://::s3://bucket/a.tar": "folder",
        "zip://inner/a.csv::a.zip": "list",
        "s3://bucket/photos": "folder",
    }
    for url, source_type in types.items():
        assert found(url) == (source_type, url)
    refused = {
        "mixed": "holds files of several kinds (2 of type folder, 1 of type parquet)",
        "texts": "holds no images: .*found: .txt (1)",
        "lists": "holds no images: .*Give a list of images (.csv, .tsv) by its own name",
        "lists/*.csv": "matches 2 files of type list: give the option once for each file",
        "photos.zip": "unpack other archives first",
        "https://user:secret@host/a.parquet": "has credentials",
    }
    for given, message in refused.items():
        with pytest.raises(InputError) as error:
            find_source(given, "--pool", paths)
        assert all(part in str(error.value) for part in message.split(".*"))
        assert "secret" not in str(error.value)


def test_lists_and_archives_are_sources_like_others(project: Path) -> None:
    files = project / "my files"
    list_of(files / "labeled", files / "labeled.csv", ",")
    list_of(files / "test", files / "tests.tsv", "\t")
    tar_file(files / "shards" / "pool-000.tar.gz", 3, "w:gz", has_labels=True)
    tar_file(files / "shards" / "pool-001.tar.gz", 2, "w:gz", has_labels=False)
    given = {"labeled": "labeled.csv", "test": "tests.tsv", "pool": "shards"}
    result = new_env("mine", *INPUT, *STUDENT, **given)

    assert result.exit_code == 0, result.output
    assert "100.0 % of 8" in result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["used", "8", "10", "6"] in rows
    ingestion = written(project, "mine", "data_ingestion")
    found = {}
    for part in ("labeled", "pool", "test"):
        [source] = ingestion[part]
        found[part] = (source["type"], source["path"])
    assert found == {
        "labeled": ("list", "my files/labeled.csv"),
        "pool": ("webdataset", "my files/shards"),
        "test": ("list", "my files/tests.tsv"),
    }


def test_an_archive_is_split_like_a_file(project: Path) -> None:
    tar_file(project / "my files" / "all-00.tar", 6, "w", has_labels=True)
    tar_file(project / "my files" / "all-01.tar", 4, "w", has_labels=True)
    archives = "all-{00..01}.tar"
    result = new_env(
        "mine",
        *(*INPUT, *STUDENT, "--labeled-per-class=3", "--test-per-class=2"),
        labeled=archives,
        pool=archives,
        test=archives,
    )
    assert result.exit_code == 0, result.output
    assert "100.0 % of 6" in result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["light", "3", "5", "2"] in rows


def test_a_list_without_paths_is_refused(project: Path) -> None:
    (project / "my files" / "names.csv").write_text("file,label_name\na.png,dark\n")
    result = new_env("mine", *INPUT, *STUDENT, labeled="names.csv")
    assert_refused(result, "names.csv has no column 'path'; found: 'file'", project)


def test_images_that_cannot_be_used_and_missing_classes_are_listed(project: Path) -> None:
    files = project / "my files"
    (files / "pool" / "broken.png").write_bytes(b"no image")
    (files / "pool" / "notes.txt").write_text("text")
    shutil.rmtree(files / "test" / "light")
    result = new_env("mine", *INPUT, *STUDENT)
    assert result.exit_code == 0, result.output
    assert "missing: no test image of 1 classes: light" in result.output
    assert "few: less than 5 labeled images of dark, light" in result.output
    assert "pool: 1 images cannot be used: unreadable" in result.output
    assert "pool: files that are no images: extension .txt (1)" in result.output


@pytest.mark.slow
def test_an_environment_runs(project: Path) -> None:
    files = project / "my files"
    # Kedro adds it to the path; the package itself is installed.
    (project / "src").mkdir()
    shutil.copy(PROJECT / "conf" / "logging.yml", project / "conf")
    made = new_env("mine", *INPUT, *STUDENT)
    assert made.exit_code == 0, made.output
    python_path = os.pathsep.join([str(files), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [
            *(sys.executable, "-m", "kedro", "run", "--env=mine", "--params=tracking=false"),
            "--pipelines=data_ingestion,teacher",
        ],
        cwd=files,
        # Wide, so that no line of the log is broken.
        env={**os.environ, "COLUMNS": "250", "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # The files that were found, tested with the teacher, and its weights.
    assert "100.0 % of 8 labeled images" in " ".join(result.stdout.split())
    [pool] = (project / "data" / "mine").rglob("pool_images")
    assert len(ImageStore.open(pool)) == N_POOL
    [card] = (project / "data" / "mine").rglob("card.json")
    assert json.loads(card.read_text())["classes"] == ["dark", "light"]
