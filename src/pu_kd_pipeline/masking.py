"""Texts as they may be shown: without credentials, and without invisible control characters.

What is secret is recognized by where it stands in a URL. A secret that is part of a URL's path
cannot be distinguished from a folder, and stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
# A name in front of `@` is no secret where these ask for one: a user, or a container of Azure.
_SCHEMES_WITH_NAMES = ("ssh", "sftp", "scp", "hdfs", "webhdfs", "smb")
_SCHEMES_WITH_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs", "az")
# Their buckets have no ports, so that digits behind a colon begin a secret.
_SCHEMES_WITHOUT_PORTS = ("s3", "s3a", "s3n", "gs", "gcs", "oss", "cos", "r2")
_LOCAL_SCHEMES = ("file", "local")

# pathlib shortens `//` to `/`, and JSON may write `\/`.
_SCHEME = r"(?<![a-zA-Z0-9+.-])(?P<scheme>[a-zA-Z0-9+.-]{2,}):(?P<slashes>(?:\\?/){1,3})"
_USER_INFO = re.compile(
    # What stands in front of the last `@` before the first slash, question mark or number sign
    _SCHEME + r"(?:(?P<plain>[^/?#\s\"<>]*)@"
    # or a password with one of these characters in it, as secret keys of AWS have. Not across
    # another `://`: fsspec chains URLs.
    r"|(?P<user>[^/?#\s@:\[\"<>]*):(?P<password>(?:(?!://)[^\s\"<>])*)@)"
)
_PORT = re.compile(r"[0-9]{0,5}(?:[/?#]|$)")
_QUERY_VALUE = re.compile(r"(?P<start>[?&#;](?P<name>[\w.~%\[\]-]+)=)(?P<value>[^\s&#\"'<>]*)")
_PUNCTUATION = ":,;.)]}"
_HEADER = re.compile(r"\b(?P<kind>Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE)
# Query parameters and options whose values are secret, without what is between their words
_SECRET_NAMES = frozenset(["auth", "code", "hmac", "jwt", "key", "pass", "pw", "pwd", "sas", "sig"])
_SECRET_PREFIXES = ("xamz", "xgoog", "xms", "xoss", "xcos", "xobs")
_SECRET_ENDINGS = (
    *("accesskey", "accesskeyid", "accountkey", "apikey", "authkey", "keypairid", "privatekey"),
    *("sharedkey", "sessionkey", "sessionid", "authorization", "credential", "credentials"),
    *("passphrase", "passwd", "password", "secret", "secretkey", "signature", "token"),
)
# Secret in a URL, but common names in configuration, such as `teacher.output.key`
_OPEN_OPTIONS = frozenset(["code", "key"])
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]")
# Next to a signature, these are the terms that it signs: they change with it.
_SIGNATURE = re.compile(r"[?&;](?:sig|signature|[\w-]+-signature)=", re.IGNORECASE)
_SIGNED_NAMES = frozenset(
    [
        *("se", "st", "sv", "sr", "sp", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv"),
        *("expires", "policy"),
    ]
)


def without_credentials(text: str, url: str | None = None) -> str:
    """Return a text with the credentials of all URLs in it replaced by `***`.

    Credentials are user and password in front of a host, and values of query parameters with names
    such as `token` or `X-Amz-Signature`. Applied again, nothing changes.

    Args:
        text: one URL, several chained ones as fsspec takes them, or a message with URLs in it.
        url: an address that the text is about: its credentials are masked wherever they stand, also
            where a library shows them outside of an URL.
    """
    if url is not None:
        for secret in _secrets(url):
            text = text.replace(secret, MASK)
    if "@" in text:
        text = _USER_INFO.sub(_without_user_info, text)
    if "=" in text:
        is_signed = _SIGNATURE.search(text) is not None
        text = _QUERY_VALUE.sub(lambda match: _without_value(match, is_signed), text)
    return _HEADER.sub(rf"\g<kind> {MASK}", text)


def masked_urls(value: Any) -> Any:
    """Return a nested value of configuration without the credentials of the URLs in it."""
    return _masked(value, masks_keys=False)


def masked_values(value: Any) -> Any:
    """Return a nested value of configuration as it may be shown.

    URLs lose their credentials, and texts under a key such as `password` or `token` are masked.
    """
    return _masked(value, masks_keys=True)


def masked_option(key: str, value: Any) -> Any:
    """Return the value of a dotted key as it may be shown, as `masked_values` does."""
    name = key.rpartition(".")[2]
    return masked_values({name: value})[name]


def _masked(value: Any, masks_keys: bool) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, list | tuple):
        return [_masked(inner, masks_keys) for inner in value]
    if not isinstance(value, Mapping):
        return value
    masked: dict[Any, Any] = {}
    for key, inner in value.items():
        is_secret = masks_keys and is_secret_option(str(key))
        if is_secret and isinstance(inner, str):
            masked[key] = MASK
        else:
            masked[key] = _masked(inner, masks_keys)
    return masked


def is_secret_option(name: str) -> bool:
    """Return whether the text under a key of configuration is secret."""
    return name.lower() not in _OPEN_OPTIONS and is_secret_name(name)


def is_secret_name(name: str) -> bool:
    """Return whether the value of a query parameter or option of this name is secret."""
    plain = _BETWEEN_WORDS.sub("", name.lower())
    is_known = plain in _SECRET_NAMES or plain.startswith(_SECRET_PREFIXES)
    return is_known or plain.endswith(_SECRET_ENDINGS)


def visible(text: str) -> str:
    """Return a text with invisible characters escaped, such as ESC as `\\x1b`.

    These are control characters, which a terminal obeys, and characters that reorder or hide
    others: names from data could otherwise forge what a user reads. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible_character, text))


def visible_name(name: str) -> str:
    """Return a name from data as `visible`, with line breaks and tabs escaped as well."""
    return visible(name).replace("\n", r"\n").replace("\t", r"\t")


def _visible_character(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    if unicodedata.category(character) == "Zs":  # spaces of other widths
        return character
    return character.encode("unicode_escape").decode("ascii")


def _without_user_info(match: re.Match[str]) -> str:
    if not _is_secret_user_info(match):
        return match[0]
    return f"{match['scheme']}:{match['slashes']}{MASK}@"


def _is_secret_user_info(match: re.Match[str]) -> bool:
    scheme = match["scheme"].lower()
    plain = match["plain"]
    if scheme in _LOCAL_SCHEMES:
        # Of `file:///user:a@b`, all of it is a path.
        has_host = match["slashes"].count("/") == 2
        return has_host and plain is not None and ":" in plain
    if plain is not None:
        has_password = ":" in plain
        # Elsewhere a name alone may be a token.
        may_be_name = scheme in _SCHEMES_WITH_NAMES or scheme in _SCHEMES_WITH_CONTAINERS
        return has_password or not may_be_name
    if scheme in _SCHEMES_WITHOUT_PORTS:
        return True
    # `host:8080/path@2` has a port and no password.
    return _PORT.match(match["password"]) is None


def _without_value(match: re.Match[str], is_signed: bool) -> str:
    name = unquote(match["name"])
    is_term = is_signed and name.lower() in _SIGNED_NAMES
    if is_term or is_secret_name(name):
        # What follows belongs to the sentence that the URL is in.
        secret = match["value"].rstrip(_PUNCTUATION)
        rest = match["value"].removeprefix(secret)
        return f"{match['start']}{MASK}{rest}"
    return match[0]


def _secrets(url: str) -> list[str]:
    """Return the credentials in a URL, as written and decoded; the longest first."""
    secrets: set[str] = set()
    for match in _USER_INFO.finditer(url):
        if not _is_secret_user_info(match):
            continue
        user_info = match["plain"]
        if user_info is None:
            user_info = f"{match['user']}:{match['password']}"
        secrets.add(user_info)
        user, _, password = user_info.partition(":")
        secrets.add(password or user)
    for match in _QUERY_VALUE.finditer(url):
        name = unquote(match["name"])
        if is_secret_name(name):
            secrets.add(match["value"])
    # A library may show them decoded.
    secrets |= set(map(unquote, secrets))
    secrets.discard(MASK)
    # One or two characters would be found in every word.
    long_enough = [secret for secret in secrets if len(secret) > 2]
    long_enough.sort(key=len, reverse=True)
    return long_enough
