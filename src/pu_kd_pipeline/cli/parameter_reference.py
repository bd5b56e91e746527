"""The page of all parameters, written from the models of params/ and from conf/base.

Types, ranges and meanings are those of a block's JSON schema. Where the model has no meaning of a
key, it is the comment next to the key in conf/base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

INTRODUCTION = """\
# Parameters

Every parameter of every block: `make reference` writes this page from the models in
[params/](../src/pu_kd_pipeline/params) and from [conf/base](../conf/base), and a test compares
them. A default is the value in `conf/base`, that of the demo. `*` stands for each entry of a list
or mapping.

An environment, `conf/<name>/`, contains only what differs; `--params=block.key=value` sets a key
for one run ([configuration](../conf/README.md)). `seed`, `data`, `recipe`, `compute` and the
student of all stages that distill are in [conf/base/globals.yml](../conf/base/globals.yml).
"""
# A default with more characters than this is not readable in a table.
LONGEST_DEFAULT = 60
TYPE_NAMES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
# Keyword of JSON schema -> how a bound is written.
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@dataclass(frozen=True)
class Row:
    """One parameter: its path in the block, what it may be, its default and its meaning."""

    path: str
    type: str
    default: str
    meaning: str


class _Missing:
    """A key that conf/base does not have."""


MISSING = _Missing()


def parameter_page(
    blocks: Mapping[str, type[BaseModel]], parameters: Mapping[str, Any], conf: Path
) -> str:
    """Return the page in Markdown.

    Args:
        blocks: name of each parameter block -> its model, in the order of the page.
        parameters: the parameters of conf/base, as Kedro reads them.
        conf: the folder conf/base, for the comments of its files.
    """
    comments: dict[str, str] = {}
    for file in sorted(conf.glob("parameters*.yml")):
        comments.update(key_comments(file.read_text(encoding="utf-8")))
    parts = [INTRODUCTION]
    for name, model in blocks.items():
        schema = model.model_json_schema()
        rows = list(_rows(schema, schema, name, parameters[name], comments))
        summary, _, _ = (model.__doc__ or "").partition("\n")
        parts.append(f"## {name}\n\n{summary}\n\n{_table(rows, name)}")
    return "\n".join(parts)


def key_comments(text: str) -> dict[str, str]:
    """Return dotted key -> the comment behind its value, for the keys of a YAML file."""
    found: dict[str, str] = {}
    _collect_comments(yaml.compose(text), "", text.splitlines(), found)
    return found


def _collect_comments(
    node: yaml.Node | None, prefix: str, lines: list[str], found: dict[str, str]
) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        line = key.start_mark.line
        is_nested = value.start_mark.line > line
        end = key.end_mark.column if is_nested else value.end_mark.column
        # A value of several lines has no comment of its own.
        if is_nested or value.end_mark.line == line:
            _, hash_sign, comment = lines[line][end:].partition("# ")
            if hash_sign:
                found[path] = comment.strip()
        _collect_comments(value, f"{path}.", lines, found)


def _rows(
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    path: str,
    values: Any,
    comments: Mapping[str, str],
    described: set[str] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a model and of the models inside of it.

    Args:
        schema: the schema of the model.
        root: the schema with the definitions that `$ref` names.
        path: dotted path of the model.
        values: its values in conf/base; MISSING where there are none.
        comments: dotted path -> comment.
        described: models that already have their rows, such as the source of an image store.
    """
    described = set() if described is None else described
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        key_path = f"{path}.{key}"
        value = values.get(key, MISSING) if isinstance(values, Mapping) else MISSING
        if value is MISSING and key not in required:
            value = field.get("default", MISSING)
        model_name, suffix = _inner_model(field)
        meaning = field.get("description") or comments.get(key_path, "")
        if model_name is None:
            if value is MISSING and field.get("type") == "object":
                # A default that a factory makes is in no schema.
                value = {}
            yield Row(key_path, type_text(field), _default(value, key in required), meaning)
            continue
        inner = root["$defs"][model_name]
        meaning = meaning or inner.get("description", "").partition("\n")[0]
        default = _default(value, key in required) if suffix or value is None else "below"
        if suffix and model_name in described:
            meaning += "; its keys are those of the first such list"
            yield Row(key_path, type_text(field), default, meaning)
            continue
        yield Row(key_path, type_text(field), default, meaning)
        described.add(model_name)
        inner_values = MISSING if suffix else value
        yield from _rows(inner, root, key_path + suffix, inner_values, comments, described)


def _inner_model(field: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the definition that a field has inside, and `.*` for one of several entries."""
    for choice in [field, *field.get("anyOf", [])]:
        for part, suffix in [
            (choice, ""),
            (choice.get("items"), ".*"),
            (choice.get("additionalProperties"), ".*"),
        ]:
            if not isinstance(part, dict):
                continue
            for each in [part, *part.get("anyOf", []), *part.get("allOf", [])]:
                if "$ref" in each:
                    return each["$ref"].rpartition("/")[2], suffix
    return None, ""


def type_text(field: Mapping[str, Any]) -> str:
    """Return what a value may be, from its JSON schema."""
    if "$ref" in field or "allOf" in field:
        return "block"
    if "anyOf" in field:
        choices = [type_text(choice) for choice in field["anyOf"]]
        # A nested choice may have null, too.
        return " or ".join(dict.fromkeys(choices))
    if "const" in field:
        return f"`{_yaml_text(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{_yaml_text(value)}`" for value in field["enum"])
    kind = field.get("type")
    if kind == "array":
        return _list_text(field)
    if kind == "object":
        entries = field.get("additionalProperties")
        if isinstance(entries, dict) and entries:
            return f"mapping of name to {type_text(entries)}"
        return "mapping"
    text = TYPE_NAMES.get(str(kind), "any value")
    bounds = [words.format(f"{field[key]:,}") for key, words in BOUNDS.items() if key in field]
    if "pattern" in field:
        bounds.append(f"of the form `{field['pattern']}`")
    return ", ".join([text, *bounds])


def _list_text(field: Mapping[str, Any]) -> str:
    if "prefixItems" in field:
        items = field["prefixItems"]
        return f"list of {len(items)}: " + "; ".join(_item_text(item) for item in items)
    text = f"list of: {_item_text(field['items'])}"
    if field.get("minItems"):
        text += f"; at least {field['minItems']}"
    return text


def _item_text(item: Mapping[str, Any]) -> str:
    text = type_text(item)
    return f"({text})" if "anyOf" in item else text


def _default(value: Any, is_required: bool) -> str:
    if isinstance(value, _Missing):
        return "needed" if is_required else "–"
    text = _yaml_text(value)
    if len(text) > LONGEST_DEFAULT:
        return "in conf/base"
    return f"`{text}`"


def _yaml_text(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _table(rows: list[Row], block: str) -> str:
    lines = ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        name = row.path.removeprefix(f"{block}.")
        cells = [f"`{name}`", row.type, row.default, row.meaning]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    # A bar would end the cell, and `<` begin a tag outside of code.
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
