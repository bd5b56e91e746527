"""Commands in the documentation name targets, options, parameters and services that exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from pu_kd_pipeline.params.given import parse_given
from pu_kd_pipeline.params.validation import check_parameters
from tests.configuration import BLOCKS, kedro_parameters
from tests.documentation import (
    CONTAINERS,
    DOCS,
    GUIDES,
    PROJECT,
    SCALE,
    commands,
    environments,
    fenced,
    name_of,
    stages,
)
from tests.test_environments import ENVIRONMENT_BLOCKS

# What `--params` may set in addition to the blocks.
RUN_PARAMETERS = {"cache_gb", "checkpoint_every_s", "data", "recipe", "seed", "tracking"}
PROGRAMS = {
    "make",
    "export",
    "cd",
    "cp",
    "mkdir",
    "python3",
    "../elsewhere/bin/pip",
    "../elsewhere/bin/python",
    "docker",
    "argo",
    "kubectl",
    "ray",
    "kedro",
    ".venv/bin/kedro",
    ".venv/bin/python",
    ".venv/bin/pip",
    ".venv/bin/pre-commit",
}
COMPOSE_VERBS = {"run", "logs", "up", "stop", "exec", "cp"}


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the configuration with the environments that the guides show."""
    folder = tmp_path_factory.mktemp("documented") / "conf"
    shutil.copytree(PROJECT / "conf", folder)
    for path in [*GUIDES, SCALE]:
        for environment, files in environments(path).items():
            # These would change what all other environments are merged with.
            assert environment not in {"base", "local"}
            target = folder / environment
            target.mkdir(exist_ok=True)
            for file, text in files.items():
                (target / file).write_text(text)
    return folder


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_make_targets_and_variables_exist(path: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    variables = re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE)
    for words in commands(path):
        if words[0] != "make":
            continue
        for word in words[1:]:
            variable, separator, _ = word.partition("=")
            if separator:
                assert variable in variables, words
            else:
                assert word in targets, words


def kedro_runs() -> list[tuple[str, list[str]]]:
    """Return (page, options) of every `kedro run`, also of those that `make run` starts."""
    runs = []
    for path in DOCS:
        page = name_of(path)
        for words in commands(path):
            program = Path(words[0]).name
            command = [program, *words[1:2]]
            rest = words[2:]
            if command == ["kedro", "run"]:
                runs.append((page, rest))
            if command == ["make", "run"]:
                runs.append((page, options_of_make_run(rest)))
    return runs


def options_of_make_run(words: list[str]) -> list[str]:
    """Return the options of the `kedro run` that `make run VARIABLE=value ...` starts."""
    given = dict(word.split("=", 1) for word in words)
    pipeline = given.get("PIPELINE", "full")
    arguments = given.get("ARGS", "")
    return [f"--pipeline={pipeline}", *arguments.split()]


def test_kedro_runs_name_known_options_pipelines_environments_nodes_and_parameters(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Environments of image files need the name of their folder.
    monkeypatch.setenv("PU_KD_DATA", str(conf))
    from pu_kd_pipeline.cli.commands import run
    from pu_kd_pipeline.pipeline_registry import registered_names

    known_options = set()
    for parameter in run.params:
        known_options.update(parameter.opts)
    nodes = set()
    for stage in stages().values():
        nodes.update(stage["nodes"])
    # The ellipsis stands for further names.
    known_pipelines = {*registered_names(), "", "…"}
    runs = kedro_runs()

    assert len(runs) > 10

    for page, options in runs:
        shown = (page, options)
        given = {}
        for option in options:
            name, _, value = option.partition("=")
            given[name] = value
        assert set(given) <= known_options, shown

        pipelines = given.get("--pipelines", "").split(",")
        pipelines.append(given.get("--pipeline", ""))
        assert set(pipelines) <= known_pipelines, shown

        environment = given.get("--env", "local")
        assert (conf / environment).is_dir(), shown
        if "--from-nodes" in given:
            assert given["--from-nodes"] in nodes, shown

        params = given.get("--params", "...")
        # Three dots stand for any parameters.
        if "..." not in params:
            nested = parse_given(params)
            # The block of a stage that not every environment has.
            blocks = ENVIRONMENT_BLOCKS if "comparison" in nested else BLOCKS
            assert set(nested) <= {*blocks, *RUN_PARAMETERS}, shown
            parameters = kedro_parameters(environment, conf, nested)
            check_parameters(parameters, blocks, files={}, given={})


def test_new_environments_are_made_with_known_options() -> None:
    from pu_kd_pipeline.cli.new_env import new_env

    known = {option for parameter in new_env.params for option in parameter.opts}
    needed = {"--teacher", "--labeled", "--pool", "--test"}
    n_shown = 0
    for path in GUIDES:
        for words in commands(path):
            # The text also names the command alone.
            if Path(words[0]).name != "kedro" or words[1] != "new-env" or len(words) == 2:
                continue
            options = {word for word in words[3:] if word.startswith("--")}
            assert needed <= options <= known, words
            n_shown += 1
    assert n_shown >= 2


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_console_blocks_contain_only_commands_of_known_programs(path: Path) -> None:
    for block in fenced("console", path):
        for line in block.splitlines():
            assert line.startswith("$ "), line
    for words in commands(path):
        assert words[0] in PROGRAMS, words
        for word in words[1:]:
            if word.startswith(("docs/", "docker/")):
                assert (PROJECT / word).exists(), words


def test_every_yaml_block_makes_an_environment_that_validates(conf: Path) -> None:
    shown = {}
    for path in GUIDES:
        shown.update(environments(path))

    assert shown

    for environment, files in shown.items():
        parameters = kedro_parameters(environment, conf)
        blocks = check_parameters(parameters, BLOCKS, files={}, given={})
        assert blocks.keys() == BLOCKS.keys()
        for file, text in files.items():
            base_file = PROJECT / "conf" / "base" / file
            assert base_file.is_file(), f"conf/{environment}/{file} overrides nothing"
            content = yaml.safe_load(text)
            if file != "globals.yml":
                assert content.keys() <= BLOCKS.keys()
                continue
            base = yaml.safe_load(base_file.read_text())
            assert content.keys() <= base.keys()
            assert content.get("compute", {}).keys() <= base["compute"].keys()


def test_the_catalog_on_object_storage_places_entries_of_base() -> None:
    base = set()
    for base_file in (PROJECT / "conf" / "base" / "catalog").glob("*.yml"):
        base |= yaml.safe_load(base_file.read_text()).keys()
    [files] = environments(SCALE).values()
    catalog = yaml.safe_load(files["catalog.yml"])
    credentials = yaml.safe_load(files["credentials.yml"])

    assert len(catalog) > 3
    assert catalog.keys() <= base
    for entry in catalog.values():
        # What else an entry needs is that of base.
        assert entry.keys() == {"filepath", "credentials"}
        assert entry["credentials"] in credentials


def test_a_wrong_key_in_a_yaml_block_would_be_found(conf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "conf"
    shutil.copytree(conf, copy)
    (copy / "mine" / "parameters_wrong.yml").write_text("distillation: {n_update: 5}\n")
    parameters = kedro_parameters("mine", copy)

    with pytest.raises(ValueError, match=r"distillation\.n_update"):
        check_parameters(parameters, BLOCKS, files={}, given={})


def test_the_variables_for_operators_are_those_of_the_compose_files() -> None:
    used = {}
    for name in ("compose.yaml", "compose.gpu.yaml", "compose.cluster.yaml"):
        text = (PROJECT / "docker" / name).read_text()
        used.update(re.findall(r"\${([A-Z_]+):?-([^}]*)}", text))

    # A comment in the file explains the notation with this one.
    assert used.pop("LIKE_THIS") == "default"

    text = CONTAINERS.read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? ?\|", text, re.MULTILINE)

    assert dict(rows) == used


def test_docker_commands_name_services_that_exist() -> None:
    # `tar` is the archive that `docker compose cp` writes.
    known = {"tar"}
    for name in ("compose.yaml", "compose.cluster.yaml"):
        compose = yaml.safe_load((PROJECT / "docker" / name).read_text())
        known.update(compose["services"])
    for path in GUIDES:
        for words in commands(path):
            if words[:2] != ["docker", "compose"] or words[2] not in COMPOSE_VERBS:
                continue
            # `docker compose cp` has a path of the service after a colon.
            named = [word for word in words[3:] if re.match(r"[a-z_]+(:|$)", word)]
            if named:
                service, _, _ = named[0].partition(":")
                assert service in known, words
