"""What the documentation names exists: links, make targets, commands and their options, parameters, stages, outputs."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from pydantic import BaseModel

from pu_kd_pipeline.hooks.catalog import dataset_path
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.evaluation import EvaluationParams
from pu_kd_pipeline.params.feature_extraction import FeatureExtractionParams
from pu_kd_pipeline.params.pool_scoring import PoolScoringParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.params.validation import check_parameters
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows

PROJECT = Path(__file__).resolve().parents[1]
DOCS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").rglob("*.md"))]
GUIDES = [
    PROJECT / "README.md",
    *(PROJECT / "docs" / name for name in ("bring_your_own.md", "containers.md")),
]
BLOCKS: dict[str, type[BaseModel]] = {
    "data_ingestion": DataIngestionParams,
    "teacher": TeacherParams,
    "teacher_training": TeacherTrainingParams,
    "feature_extraction": FeatureExtractionParams,
    "relatedness": RelatednessParams,
    "unlabeled_distillation": DistillationParams,
    "critic_distillation": DistillationParams,
    "pu_training": PUTrainingParams,
    "pool_scoring": PoolScoringParams,
    "subset_materialization": SubsetParams,
    "class_weighting": ClassWeightingParams,
    "distillation": DistillationParams,
    "evaluation": EvaluationParams,
    "reporting": ReportingParams,
}
EVERY_RUN = {
    "checkpoint_every_s",
    "data",
    "seed",
    "tracking",
}  # what `--params` may name beside the blocks
PROGRAMS = {
    "make",
    "export",
    "cd",
    "docker",
    "argo",
    *(f".venv/bin/{name}" for name in ("kedro", "python", "pip")),
}
PROGRAMS |= {".venv/bin/pre-commit"}


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def fenced(language: str, path: Path) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL
    )


def commands(path: Path) -> list[list[str]]:
    """Return the words of every command that a fenced block shows behind a `$`, and of every one quoted in the text."""
    shown = [
        line[2:]
        for block in fenced("console", path)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`((?:make|kedro|\.venv/bin/\w+) [^`]+)`", prose)
    return [shlex.split(line) for line in [*shown, *quoted]]


def environments(path: Path) -> dict[str, dict[str, str]]:
    """Return environment -> file -> text of the YAML blocks, each of which names its file in its first line."""
    found: dict[str, dict[str, str]] = {}
    for block in fenced("yaml", path):
        named = re.match(r"# conf/(\w+)/(\w+\.yml)\n", block)
        assert named, (
            f"{name_of(path)}: a YAML block does not begin with '# conf/<environment>/<file>.yml':\n{block}"
        )
        environment, file = named.groups()
        assert file not in found.setdefault(environment, {}), (
            f"{name_of(path)} shows conf/{environment}/{file} twice"
        )
        found[environment][file] = block
    return found


def configured(
    environment: str, folder: Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the parameters that Kedro reads in an environment."""
    from pu_kd_pipeline.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

    arguments: Any = CONFIG_LOADER_ARGS
    loader = CONFIG_LOADER_CLASS(
        str(folder), env=environment, runtime_params=dict(given or {}), **arguments
    )
    return dict(loader["parameters"])


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the configuration with the environments that the guides show."""
    folder = tmp_path_factory.mktemp("documented") / "conf"
    shutil.copytree(PROJECT / "conf", folder)
    for path in GUIDES:
        for environment, files in environments(path).items():
            assert environment not in {"base", "local"}
            (folder / environment).mkdir(exist_ok=True)
            for file, text in files.items():
                (folder / environment / file).write_text(text)
    return folder


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_relative_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?://|#", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_nothing_was_left_to_fill_in(path: Path) -> None:
    assert re.findall(r"@@|TODO|TBD|FIXME|/(?:home|root|tmp|work)/", path.read_text()) == []


def test_every_decision_is_listed_and_says_context_choice_and_cost() -> None:
    folder = PROJECT / "docs" / "decisions"
    decisions = sorted(folder.glob("[0-9]*.md"))
    listed = re.findall(r"- \[(.+)\]\((.+)\)", (folder / "README.md").read_text())
    assert [file for _, file in listed] == [path.name for path in decisions]
    for (title, _), path in zip(listed, decisions, strict=True):
        text = path.read_text()
        assert text.startswith(f"# {title}\n")
        assert title.startswith(f"{int(path.name[:4])}. ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE) == [
            "Context",
            "Choice",
            "Cost",
        ]


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_make_targets_and_variables_exist(path: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    for words in commands(path):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= variables, words


def kedro_runs() -> list[tuple[str, list[str]]]:
    """Return (document, options) of every `kedro run`, also of those that `make run ARGS=...` makes."""
    runs = []
    for path in DOCS:
        for words in commands(path):
            if Path(words[0]).name == "kedro" and words[1:2] == ["run"]:
                runs.append((name_of(path), words[2:]))
            if words[:2] == ["make", "run"]:
                given = dict(word.split("=", 1) for word in words[2:])
                runs.append(
                    (
                        name_of(path),
                        [
                            f"--pipeline={given.get('PIPELINE', 'full')}",
                            *given.get("ARGS", "").split(),
                        ],
                    )
                )
    return runs


def test_kedro_runs_name_known_options_pipelines_environments_nodes_and_parameters(
    conf: Path,
) -> None:
    from kedro.framework.cli.utils import _split_params

    from pu_kd_pipeline.cli.commands import run
    from pu_kd_pipeline.pipeline_registry import registered_names

    known = {option for parameter in run.params for option in parameter.opts}
    nodes = {node for stage in stages().values() for node in stage["nodes"]}
    seen = kedro_runs()
    assert len(seen) > 10
    for where, options in seen:
        given = dict(option.partition("=")[::2] for option in options)
        assert set(given) <= known, (where, options)
        names = f"{given.get('--pipeline', '')},{given.get('--pipelines', '')}".strip(",")
        assert set(names.split(",")) <= {*registered_names(), "", "…"}, (where, options)
        environment = given.get("--env", "local")
        assert (conf / environment).is_dir(), (where, options)
        assert {given["--from-nodes"]} <= nodes if "--from-nodes" in given else True, (
            where,
            options,
        )
        if "--params" in given and "..." not in given["--params"]:
            nested = _split_params(click.Context(run), run.params[0], given["--params"])
            assert set(nested) <= {*BLOCKS, *EVERY_RUN}, (where, options)
            parameters = configured(environment, conf, nested)
            check_parameters(parameters, BLOCKS, files={}, given={})


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_commands_start_known_programs(path: Path) -> None:
    assert {words[0] for words in commands(path)} <= {*PROGRAMS, "kedro"}
    shown = [line for block in fenced("console", path) for line in block.splitlines()]
    assert [line for line in shown if not line.startswith("$ ")] == []
    for words in commands(path):
        files = [word for word in words[1:] if word.startswith(("docs/", "docker/"))]
        assert [file for file in files if not (PROJECT / file).exists()] == []


def test_every_yaml_block_makes_an_environment_that_validates(conf: Path) -> None:
    shown = {name: files for path in GUIDES for name, files in environments(path).items()}
    assert shown
    for environment, files in shown.items():
        blocks = check_parameters(configured(environment, conf), BLOCKS, files={}, given={})
        assert blocks.keys() == BLOCKS.keys()
        for file, text in files.items():
            assert (PROJECT / "conf" / "base" / file).is_file(), (
                f"conf/{environment}/{file} overrides nothing"
            )
            if file == "globals.yml":
                base = yaml.safe_load((PROJECT / "conf" / "base" / file).read_text())
                mine = yaml.safe_load(text)
                assert mine.keys() <= base.keys()
                assert mine.get("compute", {}).keys() <= base["compute"].keys()
            else:
                assert yaml.safe_load(text).keys() <= BLOCKS.keys()


def test_a_wrong_key_in_a_yaml_block_would_be_found(conf: Path, tmp_path: Path) -> None:
    shutil.copytree(conf, tmp_path / "conf")
    (tmp_path / "conf" / "mine" / "parameters_wrong.yml").write_text(
        "distillation: {n_update: 5}\n"
    )
    with pytest.raises(ValueError, match=r"distillation\.n_update"):
        check_parameters(configured("mine", tmp_path / "conf"), BLOCKS, files={}, given={})


def test_the_worked_example_and_its_script_agree() -> None:
    teacher = yaml.safe_load(environments(GUIDES[1])["mine"]["parameters_teacher.yml"])["teacher"]
    folder = PROJECT / "docs" / "examples"
    script = ast.parse((folder / "make_stand_ins.py").read_text())
    constants: dict[str, Any] = {}
    for statement in (each for each in script.body if isinstance(each, ast.Assign)):
        names, value = (
            ast.unparse(statement.targets[0]).strip("()").split(", "),
            ast.literal_eval(statement.value),
        )
        constants.update(zip(names, value if len(names) > 1 else [value], strict=True))
    assert constants["CLASSES"] == teacher["classes"]
    assert [constants["MEAN"]] == teacher["input"]["mean"]
    assert [constants["STD"]] == teacher["input"]["std"]
    assert constants["SIZE_PX"] == teacher["input"]["size_px"]
    module, _, function = teacher["architecture"].partition(":")
    factories = [
        node.name
        for node in ast.parse((folder / f"{module}.py").read_text()).body
        if hasattr(node, "name")
    ]
    assert function in factories


def test_python_blocks_compile_and_import_what_exists() -> None:
    import importlib

    blocks = [block for path in GUIDES for block in fenced("python", path)]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def stages() -> dict[str, dict[str, Any]]:
    """Return what each stage reads and writes, in the order of `full`, as Kedro knows it."""
    from pu_kd_pipeline.pipelines import full

    found = {}
    for stage in full.pipeline.STAGES:
        pipeline = stage.create_pipeline()
        reads = {name for name in pipeline.inputs() if name != "parameters"}
        found[stage.__name__.rpartition(".")[2]] = {
            "reads": {name for name in reads if not name.startswith("params:")},
            "writes": set(pipeline.all_outputs()),
            "parameters": {
                name.removeprefix("params:") for name in reads if name.startswith("params:")
            },
            "nodes": [node.name for node in pipeline.nodes],
        }
    return found


def test_the_table_of_stages_is_what_kedro_knows() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$",
        (PROJECT / "README.md").read_text(),
        flags=re.MULTILINE,
    )
    told = {
        stage: {"reads": set(re.findall(r"`(\w+)`", reads)), "writes": set(re.findall(r"`(\w+)`", writes)),
                "parameters": set(re.findall(r"`(\w+)`", blocks))}
        for stage, reads, writes, blocks in rows
    }  # fmt: skip
    known = stages()
    for stage in known.values():
        stage.pop("nodes")
    assert list(told) == list(known)
    assert told == known


def test_the_tables_that_a_run_prints_have_the_rows_of_the_code() -> None:
    model = dict.fromkeys(
        ("accuracy", "agreement", "parameters", "flops", "latency_ms", "size_bytes"), 0.5
    )
    selection = {
        "n_selected": 1,
        "class_prior": 0.2,
        "precision": 0.5,
        "recall": 0.5,
        "auc": 0.5,
        "gain": 0.1,
    }
    titles = [row[0] for row in model_rows({"student": model})[1:]] + [
        row[0] for row in selection_rows({"selection": selection})
    ]
    printed = "\n".join(fenced("text", PROJECT / "README.md"))
    assert [title for title in titles if f"  {title}  " not in printed] == []


def test_the_guide_lists_every_selection_rule_and_criterion() -> None:
    text = (PROJECT / "docs" / "bring_your_own.md").read_text()
    for heading, known in (("`rule`", RULES), ("`criterion` (rule `nnpu`)", CRITERIA)):
        [table] = re.findall(rf"^\| {re.escape(heading)} \| \w+ \|\n(.*?)\n\n", text, re.M | re.S)
        assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(known)


def test_outputs_that_the_readme_lists_are_in_the_catalog() -> None:
    # A dataset factory has a path once it has a name, so the names come from the pipelines.
    bootstrap_project(PROJECT)
    with KedroSession.create(project_path=PROJECT) as session:
        catalog = session.load_context().catalog
    known = set()
    for pipeline in dict(pipelines).values():
        for name in pipeline.all_outputs():
            known.add(dataset_path(catalog, name).name)
    layout = next(
        block for block in fenced("text", PROJECT / "README.md") if block.startswith("data/\n")
    )
    kept = set(re.findall(r"\w+\.(?:parquet|json|html)|(?<=[ /])[a-z]+_[a-z_]+(?=/)", layout))
    assert kept - known == {"card.json"}
    assert len(kept) > 15


def test_the_variables_for_operators_are_those_of_the_compose_files() -> None:
    texts = [
        (PROJECT / "docker" / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml")
    ]
    used = {
        key: default
        for text in texts
        for key, default in re.findall(r"\${([A-Z_]+):-([^}]*)}", text)
    }
    shown = re.findall(
        r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? ?\|",
        (PROJECT / "docs" / "containers.md").read_text(),
        re.MULTILINE,
    )
    assert {**dict(shown), "LIKE_THIS": "default"} == used


def test_docker_commands_name_services_that_exist() -> None:
    services = yaml.safe_load((PROJECT / "docker" / "compose.yaml").read_text())["services"]
    verbs = {"run", "logs", "up", "stop", "exec", "cp"}
    for path in GUIDES:
        for words in commands(path):
            if words[:2] == ["docker", "compose"] and words[2] in verbs:
                given = [
                    word.partition(":")[0] for word in words[3:] if re.match(r"[a-z_]+(:|$)", word)
                ]
                assert not given or given[0] in {*services, "tar"}, words


def test_every_test_that_a_page_names_is_there() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for file, name in named:
        path = next(
            path
            for path in (PROJECT / "tests" / file, PROJECT / "tests" / "hostile" / file)
            if path.is_file()
        )
        assert not name or f"def {name}(" in path.read_text(), f"{file} has no {name}"
