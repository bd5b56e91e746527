"""Checks before the first node: every fault is found, together, and good parameters pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pu_kd_pipeline.devices import prepare_device
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.hooks.preflight import DEVICES_ANYWHERE, check
from pu_kd_pipeline.learning.networks.limits import IN_CHANNELS, LIMITS, N_CLASSES
from pu_kd_pipeline.models.factory import is_known_to_build, new_teacher, teacher_card
from pu_kd_pipeline.models.model import save_model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.params.paths import set_project_folder
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def blocks():
    types = {
        "data_ingestion": DataIngestionParams,
        "teacher": TeacherParams,
        "pu_training": PUTrainingParams,
        "subset_materialization": SubsetParams,
        "distillation": DistillationParams,
    }
    parameters = read_parameters(PROJECT / "conf", "base")
    blocks = {}
    for name, model in types.items():
        blocks[name] = model.model_validate(parameters[name])
    return blocks


def changed(block, **changes):
    """Return a block with other values, validated again."""
    return type(block).model_validate({**block.model_dump(), **changes})


def test_the_demos_parameters_pass(blocks):
    check(blocks)


def test_missing_sources_are_named_with_their_keys(blocks, tmp_path):
    sources = [
        {"type": "folder", "path": str(tmp_path)},
        {"type": "parquet", "path": "no/such.parquet"},
    ]
    remote = [
        # Looking for remote files may take long, so the checks do not.
        {"type": "parquet", "path": "memory://pool/*.parquet"},
        {"type": "folder", "path": "no/folder"},
    ]
    remote = [{**source, "labels": "classes"} for source in remote]
    block = changed(blocks["data_ingestion"], pool=sources, test=remote)

    with pytest.raises(InputError) as error:
        check({"data_ingestion": block})

    hint = "(edit parameters_data_ingestion.yml)"

    assert str(error.value).splitlines() == [
        "2 faults:",
        f"- data_ingestion.pool[1].path: there is no no/such.parquet {hint}",
        f"- data_ingestion.test[1].path: there is no no/folder {hint}",
    ]


def test_a_student_that_does_not_fit_the_teachers_images_is_found(blocks):
    # LeNet-5 needs larger images than the demo's digits of 8 x 8 pixels.
    student = changed(blocks["distillation"], student_architecture="lenet5", student_options={})
    message = r"^distillation: the network fails on an image of shape \(1, 8, 8\)"
    with pytest.raises(InputError, match=message):
        check({**blocks, "distillation": student})


def test_checks_do_not_change_the_callers_random_numbers(blocks):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    # Building a network to try it draws its first weights.
    check(blocks)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("part", "labels"),
    [
        ("teacher_training", ["ignore"]),
        ("teacher_training", ["classes", "truth"]),
        ("test", ["truth"]),
        ("test", [None]),
        ("test", ["classes", "ignore"]),
    ],
)
def test_images_for_training_and_evaluation_need_classes(blocks, part, labels):
    sources = []
    for number, kind in enumerate(labels):
        labels_of = {} if kind is None else {"labels": kind}
        sources.append({"type": "demo", "part": "test", "name": f"s{number}", **labels_of})
    message = f"every image of {part} needs its class.* set `labels: classes`"
    with pytest.raises(ValidationError, match=message):
        changed(blocks["data_ingestion"], **{part: sources})


def test_test_images_may_all_be_without_labels(blocks):
    assert blocks["data_ingestion"].has_test_labels
    sources = [{"type": "demo", "part": "test", "labels": "ignore"}]
    assert not changed(blocks["data_ingestion"], test=sources).has_test_labels


def test_an_unknown_kind_of_url_is_found_before_any_work(blocks):
    sources = [{"type": "parquet", "path": "cloud://bucket/a.parquet"}]
    block = changed(blocks["data_ingestion"], pool=sources)
    message = r"^data_ingestion.pool\[0\].path: cloud://bucket/a.parquet cannot be read"

    with pytest.raises(InputError, match=message):
        check({"data_ingestion": block})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "subset_materialization": {"rule": "nnpu", "criterion": "precision"},
                "pu_training": {"held_out_folds": 0},
            },
            r"^subset_materialization.criterion: 'precision' is read off held-out positives, and ",
        ),
        (
            {
                "subset_materialization": {"rule": "oracle"},
                "data_ingestion": {"pool": [{"type": "demo", "part": "pool"}]},
            },
            r"^subset_materialization.rule: 'oracle' needs the truth of every pool image: set ",
        ),
        (
            {"critic_distillation": {"labeled_share": 0.25, "objective": "pu_critic"}},
            r"^critic_distillation.labeled_share is 0.25, and this stage learns from images ",
        ),
    ],
)
def test_blocks_that_contradict_each_other_are_found_before_any_work(blocks, changes, message):
    for name, values in changes.items():
        # The other stages that distill have a block of the same type.
        block = blocks.get(name, blocks["distillation"])
        blocks[name] = changed(block, **values)
    with pytest.raises(InputError, match=message):
        check(blocks)


# --- networks that the checks do not build -------------------------------------------------------

OWN_NETWORKS = [
    "base",
    "cifar10",
    "cifar100",
    "cifar10_tiny",
    "cifar10_small",
    "mnist",
    "mnist_planted",
]
WITHOUT_TORCH = """
import sys
from pathlib import Path
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.params.environment import read_parameters
from pu_kd_pipeline.hooks.preflight import check

for environment in sys.argv[1:]:
    found = read_parameters(Path("conf"), environment)
    teacher = TeacherParams.model_validate(found["teacher"])
    distillation = DistillationParams.model_validate(found["distillation"])
    check({"teacher": teacher, "distillation": distillation})
    assert not {"torch", "torchvision"} & set(sys.modules), environment
"""


def teacher_of(name, n_classes, in_channels, size_px, options):
    spec = {
        "size_px": size_px,
        "channels": in_channels,
        "mean": [0.5] * in_channels,
        "std": [0.5] * in_channels,
    }
    return TeacherParams(
        architecture=name,
        architecture_options=options,
        weights=None,
        classes=n_classes,
        input=spec,
        taps=None,
    )


def corners():
    """Yield the smallest and the largest values of an architecture, and both with one swapped."""
    for name, limits in LIMITS.items():
        axes = [N_CLASSES, IN_CHANNELS, limits.size_px, *limits.options.values()]
        for here, there in ((0, -1), (-1, 0)):
            for swapped in range(len(axes) + 1):
                ends = [axis[here] for axis in axes]
                if swapped < len(axes):
                    ends[swapped] = axes[swapped][there]
                n_classes, in_channels, size_px, *values = ends
                options = dict(zip(limits.options, values, strict=True))
                yield name, n_classes, in_channels, size_px, options
        # And once without options.
        if limits.options:
            yield name, N_CLASSES[0], IN_CHANNELS[0], limits.size_px[0], {}


@pytest.mark.parametrize("corner", list(corners()), ids=str)
def test_networks_that_are_not_built_would_build_at_the_limits(corner):
    # As a teacher, because that tries everything that a student needs, and the taps.
    teacher = teacher_of(*corner)
    assert is_known_to_build(teacher_card(teacher))
    new_teacher(teacher)


@pytest.mark.parametrize("name", sorted(LIMITS))
@settings(max_examples=6, derandomize=True)
@given(data=st.data())
def test_networks_that_are_not_built_would_build_between_the_limits(name, data):
    limits = LIMITS[name]
    options = {}
    for option, values in limits.options.items():
        options[option] = data.draw(st.sampled_from(values))
    channels = data.draw(st.sampled_from(IN_CHANNELS))
    size_px = data.draw(st.sampled_from(limits.size_px))
    new_teacher(teacher_of(name, 10, channels, size_px, options))


@pytest.mark.parametrize("device", sorted(DEVICES_ANYWHERE))
def test_devices_that_are_not_tried_exist_on_every_machine(device, blocks):
    compute = changed(blocks["distillation"].compute, device=device)
    # Raises for a device that cannot be used.
    prepare_device(compute)


def test_our_networks_and_devices_are_checked_without_torch():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *OWN_NETWORKS],
        cwd=PROJECT,
        env={**os.environ, "PU_KD_DATA": "/images"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("block", "changes", "message"),
    [
        (
            "teacher",
            {"taps": ["blok1"]},
            r"^teacher\.taps: not a layer of the network: 'blok1' \(did you mean",
        ),
        (
            "teacher",
            {"architecture": "digit_cnn"},
            r"^teacher: there is no architecture 'digit_cnn'; did you mean",
        ),
        (
            "teacher",
            {"architecture_options": {"widht": 4}},
            r"^teacher: architecture 'digits_cnn' refuses its options",
        ),
        (
            "teacher",
            {"architecture": "lenet5"},
            r"^teacher: the network fails on an image of shape \(1, 8, 8\)",
        ),
        (
            "distillation",
            {"student_options": {"width": -1}},
            r"^distillation: architecture 'digits_cnn' with options",
        ),
        (
            "distillation",
            {"student_options": {"width": "4"}},
            r"^distillation: architecture 'digits_cnn' refuses",
        ),
        (
            "distillation",
            {"student_architecture": "resnet18"},
            r"^distillation: 'resnet18' is a torchvision model and reads",
        ),
    ],
)
def test_networks_that_cannot_be_used_are_reported(blocks, block, changes, message):
    blocks[block] = changed(blocks[block], **changes)
    with pytest.raises(InputError, match=message):
        check(blocks)


def test_a_device_that_this_machine_lacks_is_found(blocks):
    compute = blocks["distillation"].compute.model_copy(update={"device": "cuda:99"})
    student = blocks["distillation"].model_copy(update={"compute": compute})
    with pytest.raises(InputError, match=r"^compute: device 'cuda:99' is not on this machine"):
        check({**blocks, "distillation": student})


def test_weights_are_read_even_if_the_network_is_sure_to_build(blocks, tmp_path):
    narrow = blocks["teacher"].model_copy(update={"architecture_options": {"width": 4}})
    weights = tmp_path / "narrow"
    save_model(new_teacher(narrow), weights)
    # Both widths are within the limits, so only the weights show that they do not fit.
    wide = blocks["teacher"].model_copy(
        update={"weights": str(weights), "architecture_options": {"width": 8}}
    )

    with pytest.raises(InputError, match=r"^teacher: .* the weights do not fit the architecture"):
        check({**blocks, "teacher": wide})


def pool_fault(blocks, kind: str, path: object) -> str:
    """Return the fault of a pool with one source; empty if there is none."""
    block = changed(blocks["data_ingestion"], pool=[{"type": kind, "path": str(path)}])
    try:
        check({"data_ingestion": block})
    except InputError as error:
        return str(error)
    return ""


def test_sources_of_the_wrong_kind_are_found(blocks, tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    assert "is a file, and a source of type 'folder' reads a folder" in (
        pool_fault(blocks, "folder", file)
    )
    assert "is neither a file nor a folder" in pool_fault(blocks, "parquet", tmp_path / "pipe")
    assert "no file matches" in pool_fault(blocks, "parquet", tmp_path / "**" / "b*.parquet")
    assert pool_fault(blocks, "parquet", tmp_path / "**" / "a*.parquet") == ""
    assert pool_fault(blocks, "parquet", file) == ""
    (tmp_path / "empty").mkdir()
    assert "there is no Parquet file" in pool_fault(blocks, "parquet", tmp_path / "empty")
    assert "is a folder, and a source of type 'list' reads" in pool_fault(blocks, "list", tmp_path)
    assert "is neither a file nor" in pool_fault(blocks, "list", tmp_path / "pipe")
    assert "has no column 'path'" in pool_fault(blocks, "list", file)


def test_a_file_in_the_place_of_torchvisions_folder_is_found(blocks, tmp_path):
    file = tmp_path / "mnist"
    file.touch()
    source = {"type": "torchvision", "dataset": "MNIST", "path": str(file)}
    with pytest.raises(InputError, match="a source of type 'torchvision' reads a folder"):
        check({"data_ingestion": changed(blocks["data_ingestion"], pool=[source])})
    # It makes a folder that is missing itself.
    source["path"] = str(tmp_path / "missing")
    check({"data_ingestion": changed(blocks["data_ingestion"], pool=[source])})


def test_paths_are_resolved_as_they_are_read(blocks, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images[1]").mkdir()
    (tmp_path / "images[1]" / "a.parquet").touch()
    set_project_folder(tmp_path)
    for path in ("~/images[1]", "images[1]", f"file://{tmp_path}/images[1]"):
        assert pool_fault(blocks, "folder", path) == ""
        assert pool_fault(blocks, "parquet", path) == ""
    assert "'~nobody-at-all' is not a path" in pool_fault(blocks, "folder", "~nobody-at-all")
    for path in ("a" * 5_000, "a\0b"):
        assert pool_fault(blocks, "folder", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_sources_that_may_not_be_read_are_found(blocks, tmp_path):
    tmp_path.chmod(0)
    assert "cannot be read (Permission denied)" in pool_fault(blocks, "folder", tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("kind", "path", "fault"),
    [
        ("folder", "data/mine", "contains the folder"),
        ("folder", "data", "contains the folder"),
        ("folder", ".", "contains the folder"),
        ("folder", "link", "contains the folder"),
        ("parquet", "data/**/*.parquet", "contains the folder"),
        ("folder", "data/mine/08_reporting", "is in 08_reporting of the folder"),
        ("parquet", "data/mine/02_intermediate/*.parquet", "is in 02_intermediate of the folder"),
        ("folder", "data/mine/01_raw", ""),
        ("folder", "data/mine/01_raw/photos", ""),
        ("folder", "data/01_raw", ""),
        ("folder", "data/mine/photos", ""),
        ("folder", "data/mine2", ""),
        ("parquet", "data/*.parquet", ""),
    ],
)
def test_sources_among_the_outputs_are_refused(blocks, tmp_path, kind, path, fault):
    set_project_folder(tmp_path)
    outputs = tmp_path / "data" / "mine"
    folders = ("01_raw/photos", "photos", "02_intermediate", "08_reporting")
    for folder in (*(outputs / name for name in folders), tmp_path / "data" / "mine2"):
        folder.mkdir(parents=True)
        (folder / "a.parquet").touch()
    (tmp_path / "data" / "01_raw").mkdir()
    (tmp_path / "data" / "a.parquet").touch()
    (tmp_path / "link").symlink_to(outputs)
    block = changed(blocks["data_ingestion"], pool=[{"type": kind, "path": path}])
    if not fault:
        check({"data_ingestion": block}, outputs)
        return
    with pytest.raises(InputError, match=f"data_ingestion.pool.* {fault}"):
        check({"data_ingestion": block}, outputs)


def test_a_stage_without_labeled_images_has_no_phase_to_end_on(blocks):
    block = changed(blocks["distillation"], objective="kd", final_phase={"share": 0.1})
    check({"distillation": block})
    with pytest.raises(
        InputError, match=r"final_phase.share is 0.1, and this stage has no labeled"
    ):
        check({"unlabeled_distillation": block})
