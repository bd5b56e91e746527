"""Files that are written where something else has their name."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.cli.errors import user_message
from pu_kd_pipeline.storage.atomic import replacing_file


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
