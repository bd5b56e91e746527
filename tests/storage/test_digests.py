from __future__ import annotations

from pu_kd_pipeline.storage.digests import files_below, json_digest


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in ("a.txt", ".b.tmp", "c/d.txt", ".e/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert found == ["a.txt", "c/d.txt"]
    assert list(files_below(tmp_path / "a.txt")) == [tmp_path / "a.txt"]
    assert list(files_below(tmp_path / "nowhere")) == []


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
    # node records hold such digests: another result would run every node again
    assert json_digest([]) == "7ebb3c7c2a87b1a2f8a7ed729ecb040d"


def test_names_that_are_not_utf8_have_a_digest():
    assert json_digest("caf\udce9") != json_digest("café")
