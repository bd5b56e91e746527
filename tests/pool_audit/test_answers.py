"""Answers are read as they were saved, and those that fit no page are refused in one sentence."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.pool_audit.answers import checked_answers, find_answers
from tests.pool_audit.conftest import answers_to, is_related, params_of

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def audit(pool):
    return pool.audit()


def changed(audit, place: int, **values: Any) -> dict[str, Any]:
    content = answers_to(audit)
    content["answers"][place].update(values)
    return content


def test_answers_are_returned_in_the_order_of_the_audit(audit):
    content = answers_to(audit)
    content["answers"].reverse()
    answered = checked_answers(content, audit, CLASSES)
    assert answered["id"].tolist() == audit["id"].tolist()
    assert (answered["answer"] == "yes").tolist() == [is_related(each) for each in audit["id"]]
    assert answered["class"].tolist() == audit["teacher_class"].tolist()
    assert answered.attrs == audit.attrs


def test_without_answers_the_page_and_the_place_of_its_file_are_named(audit, caplog):
    with caplog.at_level(logging.WARNING):
        assert find_answers(None, audit, CLASSES, params_of()) is None
    assert "pool_audit.html" in caplog.text
    assert "01_raw/pool_audit_answers.json" in caplog.text


def test_the_parameter_names_another_file(audit, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(answers_to(audit)))
    params = params_of(answers=str(file))
    # It counts in the place of what lies in the usual place.
    answered = find_answers({"kind": "something else"}, audit, CLASSES, params)
    assert len(answered) == len(audit)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), ("{", "is no JSON"), ("[" * 100_000, "is no JSON")],
)
def test_a_file_that_is_missing_or_no_json_is_named(audit, tmp_path, content, message):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=f"pool_audit.answers: .*{message}|{message}"):
        find_answers(None, audit, CLASSES, params_of(answers=str(file)))


def test_a_folder_or_other_encoding_is_named(audit, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        find_answers(None, audit, CLASSES, params_of(answers=str(tmp_path)))
    file = tmp_path / "mine.json"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        find_answers(None, audit, CLASSES, params_of(answers=str(file)))


@pytest.mark.parametrize("content", [[], 3, "text", {}, {"kind": "other"}])
def test_another_file_is_no_answer(audit, content):
    with pytest.raises(InputError, match="holds no answers of an audit: save it again"):
        checked_answers(content, audit, CLASSES)


def test_another_version_is_refused(audit):
    with pytest.raises(InputError, match="version 2 is not known, only 1"):
        checked_answers({**answers_to(audit), "version": 2}, audit, CLASSES)


@pytest.mark.parametrize(
    ("key", "name"), [("pool", "pool"), ("teacher", "teacher"), ("draw", "draw of images")]
)
def test_answers_to_another_page_are_refused(audit, key, name):
    content = answers_to(audit)
    content["fingerprints"][key] = "another"
    with pytest.raises(InputError, match=f"answers the images of another {name}: answer those of"):
        checked_answers(content, audit, CLASSES)
    with pytest.raises(InputError, match="answers the images of another pool"):
        checked_answers({**content, "fingerprints": None}, audit, CLASSES)


def test_answers_to_another_draw_of_the_pool_are_refused(pool, audit):
    with pytest.raises(InputError, match="another draw of images"):
        checked_answers(answers_to(pool.audit(seed=1)), audit, CLASSES)


def test_an_unfinished_file_is_refused_with_what_is_missing(audit):
    content = answers_to(audit)
    content["answers"] = content["answers"][:37]
    with pytest.raises(InputError, match="answers 37 of 40 images.*the other 3 follow"):
        checked_answers(content, audit, CLASSES)


def test_an_id_that_was_not_asked_for_or_comes_twice_is_refused(audit):
    with pytest.raises(InputError, match="the id 'x' was not asked for"):
        checked_answers(changed(audit, 0, id="x"), audit, CLASSES)
    twice = audit["id"].iloc[1]
    with pytest.raises(InputError, match=f"the id '{twice}' was not asked for, or is there twice"):
        checked_answers(changed(audit, 0, id=twice), audit, CLASSES)
    with pytest.raises(InputError, match="the id None was not asked for"):
        checked_answers(changed(audit, 0, id=None), audit, CLASSES)
    with pytest.raises(InputError, match=r"the id \[\] was not asked for"):
        checked_answers(changed(audit, 0, id=[]), audit, CLASSES)


@pytest.mark.parametrize("answer", ["maybe", None, [], 1])
def test_an_unknown_answer_is_refused(audit, answer):
    with pytest.raises(InputError, match="the answer .* is none of yes, no, cannot tell"):
        checked_answers(changed(audit, 3, answer=answer), audit, CLASSES)


@pytest.mark.parametrize("number", [3, -1, True, "1", None, 1.0])
def test_an_unknown_class_is_refused(audit, number):
    with pytest.raises(InputError, match=r"the class .* is outside 0\.\.2"):
        checked_answers(changed(audit, 3, **{"class": number}), audit, CLASSES)


@pytest.mark.parametrize("answers", [None, {}, ["yes"], [[]]])
def test_answers_that_are_no_list_of_answers_are_refused(audit, answers):
    with pytest.raises(InputError, match="`answers` is no list of answers"):
        checked_answers({**answers_to(audit), "answers": answers}, audit, CLASSES)
