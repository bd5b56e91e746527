"""Files that are written where something else has their name."""

from __future__ import annotations

import os
import stat

import pytest

from pu_kd_pipeline.cli.errors import user_message
from pu_kd_pipeline.storage.atomic import replacing_file, replacing_folder


def write(path):
    with replacing_file(path) as temporary:
        temporary.write_text("new")


def test_an_empty_folder_gives_way_to_the_file(tmp_path):
    path = tmp_path / "table.parquet"
    path.mkdir()
    write(path)

    assert path.read_text() == "new"


def test_a_folder_with_files_is_kept_and_reported_to_the_user(tmp_path):
    path = tmp_path / "table.parquet"
    path.mkdir()
    kept = path / "mine.txt"
    kept.touch()
    with pytest.raises(IsADirectoryError) as caught:
        write(path)

    assert kept.exists()
    assert list(tmp_path.iterdir()) == [path]
    message = user_message(caught.value)
    assert message is not None
    assert message.startswith(f"{path} is a folder, and a file of this name has to be written")


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_the_umask_alone_decides_who_may_read_models(tmp_path, umask, file_mode, folder_mode):
    import torch

    from pu_kd_pipeline.models.weights import save_weights

    previous = os.umask(umask)
    try:
        with replacing_folder(tmp_path / "model") as temporary:
            # safetensors writes a file that only its owner can read.
            save_weights({"weight": torch.zeros(2)}, temporary / "weights.safetensors")
            (temporary / "part").mkdir()
            (temporary / "part" / "card.json").write_text("{}")
        with replacing_file(tmp_path / "state.safetensors") as temporary:
            save_weights({"weight": torch.zeros(2)}, temporary)
    finally:
        os.umask(previous)

    modes = {}
    for path in tmp_path.rglob("*"):
        modes[path.name] = stat.S_IMODE(path.stat().st_mode)
    assert modes == {
        "model": folder_mode,
        "part": folder_mode,
        "weights.safetensors": file_mode,
        "card.json": file_mode,
        "state.safetensors": file_mode,
    }


def test_files_that_are_kept_and_those_behind_links_have_their_own_modes(tmp_path):
    outside = tmp_path / "secret.yml"
    outside.write_text("mine")
    outside.chmod(0o600)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "plain.yml").write_text("mine")
    (folder / "plain.yml").chmod(0o600)
    (folder / "link.yml").symlink_to(outside)
    with replacing_folder(folder, keeps_files=True) as temporary:
        (temporary / "new.yml").write_text("new")
        (temporary / "new_link.yml").symlink_to(outside)

    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "plain.yml").stat().st_mode) == 0o600
    assert (folder / "link.yml").readlink() == outside
    assert (folder / "new.yml").read_text() == "new"


def test_a_folder_with_the_setgid_bit_gives_it_to_no_file(tmp_path):
    with replacing_folder(tmp_path / "model") as temporary:
        temporary.chmod(0o2770)
        (temporary / "card.json").write_text("{}")

    assert stat.S_IMODE((tmp_path / "model" / "card.json").stat().st_mode) == 0o660


def test_a_link_to_a_folder_stays_one(tmp_path):
    target = tmp_path / "disk" / "model"
    target.mkdir(parents=True)
    link = tmp_path / "model"
    link.symlink_to(target)
    with replacing_folder(link) as temporary:
        (temporary / "card.json").write_text("{}")

    assert link.readlink() == target
    assert (target / "card.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model"]
    assert list(target.parent.iterdir()) == [target]
