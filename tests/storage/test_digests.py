"""Digests of values, and the files of a folder that count."""

from __future__ import annotations

from pu_kd_pipeline.storage.digests import files_below, json_digest


def test_hidden_files_and_folders_are_left_out(tmp_path):
    visible = tmp_path / "a.txt"
    below = tmp_path / "c" / "d.txt"
    # Hidden files are half-written ones.
    half_written = tmp_path / ".b.tmp"
    below_hidden = tmp_path / ".e" / "f.txt"
    for file in (visible, half_written, below, below_hidden):
        file.parent.mkdir(exist_ok=True)
        file.touch()

    found = list(files_below(tmp_path))
    assert found == [visible, below]


def test_a_file_is_its_only_file_and_a_missing_folder_has_none(tmp_path):
    file = tmp_path / "a.txt"
    file.touch()
    of_file = list(files_below(file))
    assert of_file == [file]

    missing = tmp_path / "nowhere"
    of_missing = list(files_below(missing))
    assert of_missing == []


def test_a_digest_does_not_depend_on_the_order_of_keys():
    digest = json_digest({"a": 1, "b": [2]})
    in_other_order = json_digest({"b": [2], "a": 1})
    assert in_other_order == digest


def test_different_values_have_different_digests():
    one = json_digest({"a": 1})
    two = json_digest({"a": 2})
    assert one != two


def test_the_digest_of_a_value_is_always_the_same():
    # Node records hold such digests: another result would run every node again.
    digest = json_digest([])
    assert digest == "7ebb3c7c2a87b1a2f8a7ed729ecb040d"


def test_names_that_are_not_utf8_have_a_digest():
    # How Python reads a file name in Latin-1: a lone surrogate, which UTF-8 cannot encode.
    latin_1 = json_digest("caf\udce9")
    utf_8 = json_digest("café")
    assert latin_1 != utf_8
