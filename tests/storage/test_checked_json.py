"""JSON with a checksum: what is read is what was written, or an error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from tests.hostile.mutations import damaged_bytes, damaged_json

CONTENT = {"shards": ["a-12", "b-34"], "n": 3, "share": 0.5, "empty": {}}
VALID = [to_checked_json(CONTENT).encode()]


def test_an_object_comes_back():
    assert from_checked_json(to_checked_json(CONTENT)) == CONTENT


@settings(deadline=None)
@given(damaged=damaged_bytes(VALID) | damaged_json(VALID))
def test_a_damaged_text_is_refused_or_means_the_same(damaged):
    try:
        content = from_checked_json(damaged.decode())
    except (ValueError, RecursionError):
        return
    # Only white space may have changed.
    assert content == CONTENT
    assert json.dumps(content, sort_keys=True) == json.dumps(CONTENT, sort_keys=True)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"shards": []}'])
def test_json_without_a_checksum_is_refused(text):
    with pytest.raises(ValueError, match="an earlier version or another program wrote it"):
        from_checked_json(text)
