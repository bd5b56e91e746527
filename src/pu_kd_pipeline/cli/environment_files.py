"""The files of a new environment: names that it may have, and their text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.storage.atomic import remove_leftovers, replacing_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Folders and temporary files are named after it, and file systems take 255.
_MAX_NAME_LENGTH = 100
# What Kedro merges every environment with, and its default one.
_RESERVED = ("base", "local")
# What is a text for every reader of YAML, without quotes. OmegaConf reads 1e3 as a number, which
# PyYAML writes without quotes.
_PLAIN_TEXT = re.compile(r"[A-Za-z_./~][\w./~ -]*[\w./]|[A-Za-z_]")
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", ".", "~")
_WIDTH = 110


def check_name(name: str) -> None:
    """Raise an InputError if an environment cannot have the name."""
    if name.lower() in _RESERVED:
        raise InputError(
            f"an environment cannot be called {name!r}, which Kedro uses for all: choose another "
            "name, such as photos"
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            f"an environment cannot be called {name!r}: a name has letters, digits, - and _, and "
            "is that of a folder of conf/"
        )
    if len(name) > _MAX_NAME_LENGTH:
        raise InputError(
            f"the name of the environment has {len(name)} characters, and may have "
            f"{_MAX_NAME_LENGTH}: choose a shorter one"
        )


@contextmanager
def staged_environment(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder next to an environment, which replaces it, or is removed on an error.

    With `overwrite`, it has the files of the existing environment.

    Raises:
        InputError: the environment exists, and `overwrite` is not set; or it is a link.
    """
    if folder.is_symlink():
        raise InputError(
            f"the environment {folder.name} is a link ({folder} -> {folder.readlink()}), which "
            "would be replaced by a folder: choose another name, or remove the link"
        )
    if folder.exists() and not overwrite:
        raise InputError(
            f"there is an environment {folder.name} already ({folder}): choose another name, or "
            "replace its files with --overwrite"
        )
    # Of a command that was killed.
    remove_leftovers(folder.parent, folder.name)
    with replacing_folder(folder, keeps_files=True) as staged:
        yield staged


def write_yaml(file: Path, comment: str, content: Mapping[str, Any]) -> None:
    """Write a configuration file with a comment at its top; one that is a link is replaced."""
    # Nested lists and mappings without others inside stand on one line.
    has_nested = any(isinstance(value, dict | list) for value in content.values())
    flow_style = None if has_nested else False
    lines = [f"# {line}".rstrip() for line in comment.strip().splitlines()]
    text = yaml.dump(
        _escaped(content),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow_style,
        width=_WIDTH,
    )
    # Otherwise the file that it leads to would be written, which is not in the environment.
    if file.is_symlink():
        file.unlink()
    file.write_text("\n".join([*lines, text]), encoding="utf-8")


def _escaped(value: Any) -> Any:
    """Return a value in which OmegaConf sees no interpolation: a name may contain `${`."""
    if isinstance(value, Mapping):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    if isinstance(value, str):
        return value.replace("${", "\\${")
    return value


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes where a reader may take them for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a list that occurs twice two times."""
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = '"'
    if _PLAIN_TEXT.fullmatch(text) and text.lower() not in _YAML_WORDS:
        style = None
    node: yaml.ScalarNode = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


_Dumper.add_representer(str, _text_node)
