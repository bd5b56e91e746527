"""Parameters that name a record: what is accepted, and the error for what is not."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from pu_kd_pipeline.params.names import one_of

KNOWN = {"nnpu": 1, "random": 2, "oracle": 3}


class Named(BaseModel):
    rule: Annotated[str, one_of(KNOWN)]


def test_every_key_is_accepted() -> None:
    for name in KNOWN:
        assert Named(rule=name).rule == name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("randm", "Input should be 'nnpu', 'random' or 'oracle'"),
        ("zzz", "Input should be 'nnpu', 'random' or 'oracle'"),
        (3, "Input should be 'nnpu', 'random' or 'oracle'"),
        (["nnpu"], "Input should be 'nnpu', 'random' or 'oracle'"),
        (None, "Input should be 'nnpu', 'random' or 'oracle'"),
    ],
)
def test_another_value_is_refused_with_all_keys(value: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Named.model_validate({"rule": value})
    [fault] = caught.value.errors()
    assert fault["type"] == "literal_error"
    assert fault["msg"] == message


def test_a_key_that_is_added_later_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "stratified", 4)
    assert Named(rule="stratified").rule == "stratified"
