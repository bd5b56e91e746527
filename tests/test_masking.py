"""Credentials are masked and control characters shown, and nothing else is changed."""

from __future__ import annotations

import pickle
import time

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.masking import (
    MASK,
    is_secret_name,
    masked_urls,
    masked_values,
    visible,
    visible_name,
    without_credentials,
)

MASKED = {
    "s3://AKIA:se/cr+et@bucket/x": "s3://***@bucket/x",
    "s3://AKIA:12/cret@bucket/x": "s3://***@bucket/x",
    "https://user:pass@host/x": "https://***@host/x",
    "https://user:p@ss@host/x@y.png": "https://***@host/x@y.png",
    "https://user:pa?ss@host": "https://***@host",
    "https://user:pa#ss@host": "https://***@host",
    "https://user:pa::ss@host": "https://***@host",
    "https://:pass@host": "https://***@host",
    "https://token@host/x": "https://***@host/x",
    "ftp://user:pass@host": "ftp://***@host",
    "sftp://user:pass@host": "sftp://***@host",
    "file://user:pass@host/x": "file://***@host/x",
    "simplecache::https://user:pass@host/x": "simplecache::https://***@host/x",
    "zip://a.csv::https://user:pass@host/x.zip": "zip://a.csv::https://***@host/x.zip",
    # as pathlib and JSON write them
    "s3:/AKIA:secret@bucket": "s3:/***@bucket",
    r"https:\/\/user:pass@host": r"https:\/\/***@host",
    "https://h/x?token=abc&file=1": "https://h/x?token=***&file=1",
    "https://h/x?file=1&X-Amz-Signature=a&X-Amz-Date=b": (
        "https://h/x?file=1&X-Amz-Signature=***&X-Amz-Date=***"
    ),
    "https://h/x?X%2DAmz%2DSignature=a": "https://h/x?X%2DAmz%2DSignature=***",
    "https://h/x?file=1&se=2030&sig=a": "https://h/x?file=1&se=***&sig=***",
    "https://h/x?a=1&amp;sig=abc": "https://h/x?a=1&amp;sig=***",
    "https://h/x#access_token=abc": "https://h/x#access_token=***",
    "AccountName=a;AccountKey=abc==": "AccountName=a;AccountKey=***",
    "Authorization: Bearer abcdefgh": "Authorization: Bearer ***",
    "no answer from 'https://user:pa'ss@h/x?sig=abc': retry": (
        "no answer from 'https://***@h/x?sig=***': retry"
    ),
}

UNCHANGED = [
    "a plain message, with me@example.org and key=value",
    "https://host:8080/a@b.png",
    "https://host/@user/x",
    "http://[::1]:80/a@b",
    "https://host/x?file=1&tokenizer=2&author=3&se=4",
    "abfs://container@account.dfs.core.windows.net/x",
    "sftp://user@host/x",
    "file:///a:b/c@d.png",
    "C:/x:y@z",
    "/data/a:b@c.png",
]


@pytest.mark.parametrize("text", MASKED)
def test_credentials_of_urls_are_masked(text: str) -> None:
    assert without_credentials(text) == MASKED[text]
    assert without_credentials(MASKED[text]) == MASKED[text]


@pytest.mark.parametrize("text", UNCHANGED)
def test_texts_without_credentials_stay_as_they_are(text: str) -> None:
    assert without_credentials(text) == text


def test_secrets_of_an_address_are_masked_outside_of_a_url_too() -> None:
    url = "https://alice:p%40ss@host/x?token=t0ken"
    text = without_credentials("BasicAuth(login='alice', password='p@ss'), t0ken, p%40ss", url)
    assert text == f"BasicAuth(login='alice', password='{MASK}'), {MASK}, {MASK}"


def test_nested_values_are_masked_by_their_key_or_their_url() -> None:
    value = {"path": "https://u:p@h/x", "storage": [{"secret_key": "abc", "n": 1}], "key": 3}
    assert masked_values(value) == {
        "path": "https://***@h/x",
        "storage": [{"secret_key": MASK, "n": 1}],
        "key": 3,
    }
    # What decides whether a node runs again keeps all values that are no credentials of a URL.
    assert masked_urls(value) == {**value, "path": "https://***@h/x"}


@pytest.mark.parametrize("name", ["X-Goog-Credential", "apiKey", "AWSAccessKeyId", "access_token"])
def test_names_of_secrets_are_recognized(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "text", ["a://" * 30_000, "https://u:" * 20_000, "?a=" * 50_000, "x" * 10**6]
)
def test_long_texts_take_no_long_time(text: str) -> None:
    start = time.perf_counter()
    without_credentials(f"{text}@?sig=")
    assert time.perf_counter() - start < 2


def test_control_characters_are_shown() -> None:
    text = "\x1b]8;;http://x\x07a\x1b[31m\r\x9b1m\u202egnp\u2066\u200b\udcff"
    shown = r"\x1b]8;;http://x\x07a\x1b[31m\r\x9b1m\u202egnp\u2066\u200b\udcff"
    assert visible(text) == shown
    assert visible(shown) == shown


def test_line_breaks_of_a_name_are_shown() -> None:
    assert visible_name("a\nERROR\tb") == r"a\nERROR\tb"


def test_errors_for_users_have_no_credentials() -> None:
    error = InputError("https://user:pass@host cannot be read")
    assert str(error) == "https://***@host cannot be read"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_text_of_any_language_stays() -> None:
    text = "Straße\t猫\u3000😀 é\nنص"
    assert visible(text) == text
