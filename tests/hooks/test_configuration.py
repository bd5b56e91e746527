"""The configuration loader: archives, texts that look like numbers, and paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pu_kd_pipeline.errors import ExitCode, InputError
from pu_kd_pipeline.hooks.configuration import ConfigLoader
from pu_kd_pipeline.hooks.inputs import InputHooks
from pu_kd_pipeline.params.given import parse_given
from pu_kd_pipeline.pipelines.data_ingestion import create_pipeline
from pu_kd_pipeline.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of base, with an empty environment `local`."""
    folder = tmp_path_factory.mktemp("project") / "conf"
    shutil.copytree(CONF / "base", folder / "base")
    (folder / "local").mkdir()
    (folder / "local" / "parameters.yml").write_text("reporting: { title: from local }\n")
    return folder


class Words(BaseModel):
    """A block that expects text."""

    name: str


def loader_of(
    source: Path, given: str | Mapping[str, Any] = "", env: str | None = None
) -> ConfigLoader:
    """Return the loader of the product's settings; text is given as on the command line."""
    values = given
    if isinstance(given, str):
        values = parse_given(given)
    arguments: Any = CONFIG_LOADER_ARGS
    return ConfigLoader(str(source), env=env, runtime_params=values, **arguments)


def environment(conf: Path, name: str, **files: Mapping[str, Any] | str) -> str:
    """Write an environment and return its name."""
    folder = conf / name
    folder.mkdir(exist_ok=True)
    for kind, content in files.items():
        text = content
        if not isinstance(content, str):
            text = yaml.safe_dump(content)
        (folder / f"{kind}.yml").write_text(text)
    return name


# What is packed: from which folder, and which names.
ARCHIVES = {
    "conf.tar.gz": (".", "conf"),
    "conf.tgz": (".", "conf"),
    "conf.tar": (".", "conf"),
    "conf.tar.bz2": (".", "conf"),
    "conf.tar.xz": (".", "conf"),
    "conf.zip": (".", "conf"),
    "with-dot.tar.gz": (".", "./conf"),
    "content.tar.gz": ("conf", "."),
    "project.tar.gz": ("..", "{project}"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_as_the_folder_that_it_was_made_of(conf, tmp_path, name):
    project = conf.parent
    archive = tmp_path / name
    folder, packed = ARCHIVES[name]
    packed = packed.format(project=project.name)
    if name.endswith(".zip"):
        shutil.make_archive(str(tmp_path / "conf"), "zip", project, packed)
    else:
        command = ["tar", "caf", str(archive), "--directory", str(project / folder), packed]
        subprocess.run(command, check=True)
    given = "data=1e3,tracking=false,checkpoint_every_s=5,pu_training.epochs=7"

    from_folder = loader_of(conf, given)
    from_archive = loader_of(archive, given)

    for kind in ("parameters", "catalog", "mlflow"):
        assert from_archive[kind] == from_folder[kind]
    assert from_archive["parameters"]["reporting"]["title"] == "from local"
    assert from_archive["catalog"]["metrics"]["filepath"] == "1e3/08_reporting/metrics.json"
    assert from_archive["catalog"]["checkpoints"]["every_s"] == 5
    assert from_archive["mlflow"]["enabled"] is False
    # What messages about `--params` are made of.
    assert from_archive.requested_names == {"data", "tracking", "checkpoint_every_s", "cache_gb"}
    assert from_archive.parameter_files.keys() == from_folder.parameter_files.keys()
    assert from_archive.parameter_files["reporting"].name == "parameters.yml"
    assert from_archive.parameter_files["teacher"].name == "parameters_teacher.yml"


def test_an_archive_with_absolute_names_is_read(conf, tmp_path):
    archive = tmp_path / "conf.tar.gz"
    subprocess.run(["tar", "czPf", str(archive), str(conf)], check=True)

    assert loader_of(archive, "")["parameters"] == loader_of(conf, "")["parameters"]


@pytest.mark.parametrize("name", ["conf.tar.gz", "conf.tar", "conf.zip", "conf.tgz"])
@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00" + b"\x00" * 20])
def test_a_broken_archive_is_one_message(tmp_path, name, content):
    archive = tmp_path / name
    archive.write_bytes(content)

    with pytest.raises(InputError, match=r"--conf-source: .* cannot be read .*tar czf conf"):
        loader_of(archive)


def test_a_truncated_archive_is_one_message(conf, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "conf"), "gztar", conf.parent, "conf")
    content = Path(archive).read_bytes()
    Path(archive).write_bytes(content[: len(content) // 2])

    with pytest.raises(InputError, match=r"conf.tar.gz cannot be read"):
        loader_of(Path(archive))


def test_an_archive_without_base_is_refused_with_the_command_that_packs_one(tmp_path):
    other = tmp_path / "conf" / "other"
    other.mkdir(parents=True)
    (other / "parameters.yml").write_text("a: 1\n")
    archive = shutil.make_archive(str(tmp_path / "conf"), "zip", tmp_path, "conf")

    with pytest.raises(InputError, match=r"holds no folder `base`: pack .* `tar czf conf.tar.gz"):
        loader_of(Path(archive))


def test_an_archive_that_was_packed_again_is_read_again(tmp_path):
    for title in ("first", "second"):
        base = tmp_path / "conf" / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base / "parameters.yml").write_text(f"title: {title}\n")
        archive = shutil.make_archive(str(tmp_path / "conf"), "gztar", tmp_path, "conf")

        assert loader_of(Path(archive), env="base")["parameters"] == {"title": title}


FOLDERS = ["1e3", "007", "2026-11-28", "1_000", "0x10", "true", "null", "1.10", "+5", "12:30"]
ODD_FOLDERS = ["a b", "50%", "a=b", "[x]", "#1", "a #b", "@x", "runs/", "../up", "/tmp/x:y", "é"]


@pytest.mark.parametrize("name", [*FOLDERS, *ODD_FOLDERS])
def test_the_data_folder_has_the_name_that_was_typed(conf, name):
    loader = loader_of(conf, f"data={name}")
    path = loader["catalog"]["metrics"]["filepath"]

    assert Path(path) == Path(name) / "08_reporting" / "metrics.json"
    assert Path(loader["mlflow"]["folder"]) == Path(name) / "mlflow"


def test_a_colon_in_a_relative_folder_is_no_protocol_for_kedro(conf):
    from kedro.framework.context.context import _convert_paths_to_absolute_posix

    catalog = loader_of(conf, "data=run:1")["catalog"]
    absolute = _convert_paths_to_absolute_posix(Path("/project"), catalog)

    assert absolute["metrics"]["filepath"] == "/project/run:1/08_reporting/metrics.json"


def test_a_folder_with_a_comma_stands_in_quotes(conf):
    loader = loader_of(conf, "data='/runs/a,b',tracking=false")

    assert loader["catalog"]["metrics"]["filepath"] == "/runs/a,b/08_reporting/metrics.json"
    assert loader["mlflow"]["enabled"] is False


@pytest.mark.parametrize("value", ["007", "1e3", "yes", "null", "~", "1.10", "{a: b}", "[a]"])
@pytest.mark.parametrize("name", ["data", "comparison"])
def test_a_number_for_a_folder_in_a_file_is_refused_because_its_text_is_lost(conf, name, value):
    env = environment(conf, "number", globals=f"{name}: {value}\n")

    with pytest.raises(InputError, match=f"`{name}` in globals.yml is .* write it in quotes"):
        loader_of(conf, env=env)


@pytest.mark.parametrize("value", ["'007'", "2026-11-28", '"1e3"', "'yes'"])
def test_a_text_for_a_folder_in_a_file_is_taken_as_it_is(conf, value):
    env = environment(conf, "text", globals=f"data: {value}\n")
    catalog = loader_of(conf, env=env)["catalog"]

    assert (
        catalog["metrics"]["filepath"]
        == f"{value.strip(chr(39) + chr(34))}/08_reporting/metrics.json"
    )


@pytest.mark.parametrize("value", [7, 1e3, True, None, ["a"]])
def test_a_notebook_that_gives_a_number_is_refused(conf, value):
    with pytest.raises(InputError, match="`data` in --params .* write it in quotes"):
        loader_of(conf, {"data": value})


def test_a_notebook_may_give_a_path(conf):
    catalog = loader_of(conf, {"data": Path("/runs/a")})["catalog"]

    assert catalog["metrics"]["filepath"] == "/runs/a/08_reporting/metrics.json"


@pytest.mark.parametrize("name", ["", "' '", "a{b}c"])
def test_a_folder_that_cannot_be_is_one_message(conf, name):
    with pytest.raises(InputError, match="`data` in --params .* (is empty|cannot be used)"):
        loader_of(conf, f"data={name}")


@pytest.mark.parametrize("data", ["~/runs/a", "~"])
def test_the_home_folder_is_expanded_on_the_command_line_and_in_files(conf, monkeypatch, data):
    monkeypatch.setenv("HOME", "/home/ada")
    expected = data.replace("~", "/home/ada")
    env = environment(conf, "home", globals={"data": data})

    for loader in (loader_of(conf, f"data={data}"), loader_of(conf, env=env)):
        metrics = loader["catalog"]["metrics"]

        assert metrics["filepath"] == f"{expected}/08_reporting/metrics.json"
        assert loader["mlflow"]["folder"] == f"{expected}/mlflow"


def test_the_home_folder_is_expanded_in_any_entry_of_the_catalog(conf, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    entry = {"type": "json.JSONDataset", "filepath": "~/metrics.json"}
    env = environment(conf, "entry", catalog={"metrics": entry})

    assert loader_of(conf, env=env)["catalog"]["metrics"]["filepath"] == "/home/ada/metrics.json"


def test_the_home_of_nobody_is_refused(conf):
    with pytest.raises(InputError, match=r"no home folder ~nobody-there; .* is ./~nobody-there"):
        loader_of(conf, "data=~nobody-there/runs")


def test_urls_stay_as_they_are_and_those_of_this_machine_become_paths(conf):
    for data, expected in (("s3://bucket/a", "s3://bucket/a"), ("file:///runs/a", "/runs/a")):
        catalog = loader_of(conf, f"data={data}")["catalog"]

        assert catalog["metrics"]["filepath"] == f"{expected}/08_reporting/metrics.json"


def test_a_text_that_only_the_users_own_files_ask_for_is_kept_where_the_default_is_text(conf):
    entries = {
        "_runs": "${runtime_params:runs,first}",
        "x": {"type": "json.JSONDataset", "filepath": "${_runs}/x.json"},
        "y": {"type": "a.B", "n": "${runtime_params:n,3}"},
    }
    env = environment(conf, "own", catalog=entries)
    loader = loader_of(conf, "runs=007,n=1e3", env=env)

    assert loader["catalog"]["x"]["filepath"] == "007/x.json"
    assert loader["catalog"]["y"]["n"] == 1000.0
    assert {"runs", "n"} <= loader.requested_names


def test_the_files_of_a_mounted_config_map_are_read(conf):
    # As Kubernetes mounts it: each file is a link into a hidden folder, which changes as a whole.
    folder = conf / "cluster"
    revision = folder / "..2026_11_30_20_08_44"
    revision.mkdir(parents=True)
    (revision / "catalog.yml").write_text("x: {type: json.JSONDataset, filepath: mounted.json}\n")
    (folder / "..data").symlink_to(revision.name)
    (folder / "catalog.yml").symlink_to("..data/catalog.yml")
    (folder / ".catalog_draft.yml").write_text("y: {type: json.JSONDataset, filepath: y.json}\n")

    catalog = loader_of(conf, env="cluster")["catalog"]
    assert catalog["x"]["filepath"] == "mounted.json"
    assert "y" not in catalog


def test_an_entry_of_an_environment_keeps_the_metadata_of_base(conf):
    place = {"type": "json.JSONDataset", "filepath": "s3://bucket/metrics.json"}
    report = {"type": "text.TextDataset", "filepath": "x", "metadata": {"mlflow": None}}
    env = environment(conf, "metadata", catalog={"metrics": place, "report": report})
    catalog = loader_of(conf, env=env)["catalog"]

    assert catalog["metrics"] == {
        **place,
        "metadata": {"kedro-viz": {"layer": "reporting"}, "mlflow": "metrics"},
    }
    assert catalog["report"]["metadata"] == {"kedro-viz": {"layer": "reporting"}, "mlflow": None}


def test_globals_that_are_set_change_what_is_made_of_them_until_they_are_deleted(conf):
    loader = loader_of(conf)
    # They were read before, and Kedro keeps what it has resolved.
    original = (loader["parameters"]["distillation"]["seed"], loader["mlflow"]["folder"])
    loader["globals"] = {**loader["globals"], "seed": 41, "data": "elsewhere"}

    assert loader["parameters"]["distillation"]["seed"] == 41
    assert loader["mlflow"]["folder"] == "elsewhere/mlflow"

    del loader["globals"]

    assert original == (loader["parameters"]["distillation"]["seed"], loader["mlflow"]["folder"])
    assert original != (41, "elsewhere/mlflow")


def test_a_folder_in_globals_that_are_set_is_checked(conf):
    loader = loader_of(conf)

    with pytest.raises(InputError, match="`data` in globals.yml is 7"):
        loader["globals"] = {**loader["globals"], "data": 7}


def test_a_kind_that_is_set_is_used_until_it_is_deleted(conf):
    loader = loader_of(conf)
    original = loader["mlflow"]
    loader["mlflow"] = {"enabled": "set"}

    assert loader["mlflow"] == {"enabled": "set"}

    del loader["mlflow"]

    assert loader["mlflow"] == original


def test_what_a_caller_changes_is_not_in_the_next_answer(conf):
    loader = loader_of(conf)
    for _ in range(2):
        parameters = loader["parameters"]
        assert parameters["reporting"]["title"] == "from local"
        parameters["reporting"]["title"] = "changed"


def test_texts_are_used_also_where_the_parameters_were_read_before(conf):
    env = environment(conf, "texts", parameters={"words": {"name": "${runtime_params:name,a}"}})
    loader = loader_of(conf, "words.name=007", env=env)

    assert loader["parameters"]["words"]["name"] == 7

    loader.use_texts({"words": Words})

    assert loader["parameters"]["words"]["name"] == "007"


# --- the command line -----------------------------------------------------------------------------


def output_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err
    return process.returncode, out, err


@pytest.fixture(scope="module")
def tiny_archive(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("archive")
    return shutil.make_archive(str(folder / "conf"), "gztar", tiny_project, "conf")


def test_a_run_from_an_archive_takes_any_parameter(kedro, tiny_project, tiny_archive):
    given = "data=1e3,tracking=false,training.epochs=2,training.diary=007"
    code, out, err = output_of(kedro("run", f"--conf-source={tiny_archive}", f"--params={given}"))

    assert code == 0, out + err
    assert (tiny_project / "1e3" / "08_reporting" / "metrics.json").is_file()
    assert not (tiny_project / "1000.0").exists()
    assert (tiny_project / "007").read_text() == "tidied up"


def test_faults_of_parameters_name_the_file_in_the_archive(kedro, tiny_archive):
    options = [f"--conf-source={tiny_archive}", "--env=odd"]
    given = "--params=trainng.epochs=2,dat=x,tracking=false"
    code, _, err = output_of(kedro("run", *options, given))

    assert code == ExitCode.USER_ERROR
    assert "`trainng` is not known; did you mean `training`?" in err
    # The catalog's own names are known, too.
    assert "`dat` is not known; did you mean `data`?" in err
    assert "conf/odd/parameters_training.yml: `training.optimizer.learning_rate` is -1" in err


def test_an_environment_that_is_not_in_the_archive_is_named(kedro, tiny_archive):
    code, _, err = output_of(kedro("run", f"--conf-source={tiny_archive}", "--env=elsewhere"))

    assert code == ExitCode.USER_ERROR
    assert f"there is no environment 'elsewhere' in {tiny_archive}" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("command", ["run", "explain"])
def test_options_come_from_a_file_for_every_command(kedro, tmp_path, command):
    file = tmp_path / "options.yml"
    file.write_text("run:\n  pipelines: evaluation\n  params: { data: 7 }\n")
    code, _, err = output_of(kedro(command, f"--config={file}"))

    assert code == ExitCode.USER_ERROR
    assert "`data` in --params (or runtime_params) is 7 (int)" in err

    # Options of the command line override it.
    code, _, err = output_of(kedro(command, f"--config={file}", "--params=data=007"))

    assert "/007/07_model_output/history.json" in err


def test_a_file_of_options_without_a_section_is_one_message(kedro, tmp_path):
    file = tmp_path / "options.yml"
    file.write_text("params: { seed: 1 }\n")
    code, _, err = output_of(kedro("run", f"--config={file}"))

    assert code == 2
    assert "has no section `run` with options" in err


def test_a_comma_outside_of_quotes_is_one_message(kedro):
    code, _, err = output_of(kedro("run", "--params=data=/a,b"))

    assert code == 2
    assert "`b` is no `key=value`. A value that holds a comma stands in quotes" in err


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        ("teacher_check.mode=never", "", "--params: `teacher_check.mode` is 'never'"),
        ("", "teacher_check: {mode: no one}", "parameters.yml: `teacher_check.mode` is 'no one'"),
        ("", "teacher_check: {mode: off}", ""),
    ],
)
def test_the_test_before_a_run_is_checked_where_no_node_reads_it(
    conf, monkeypatch, given, content, message
):
    pipelines = {"data_ingestion": create_pipeline()}
    monkeypatch.setattr("kedro.framework.project.pipelines", pipelines)
    loader = loader_of(conf, given, environment(conf, "checked", parameters=content))
    context: Any = SimpleNamespace(config_loader=loader, project_path=conf.parent)
    if not message:
        InputHooks().after_context_created(context)
        return
    with pytest.raises(InputError, match=message):
        InputHooks().after_context_created(context)


def test_a_relative_data_folder_starts_at_the_project_also_from_a_folder_in_it(tiny_project):
    command = [sys.executable, "-m", "kedro", "run", "--pipeline=evaluation", "--params=data=007"]
    result = subprocess.run(
        command, cwd=tiny_project / "src", capture_output=True, text=True, check=False
    )

    assert result.returncode == ExitCode.USER_ERROR
    assert f"`history` ({tiny_project}/007/07_model_output/history.json)" in result.stderr


def recipe_of(loader: ConfigLoader) -> dict[str, Any]:
    """Return the parameters that a recipe sets."""
    parameters = loader["parameters"]
    distillation = parameters["distillation"]
    return {
        "rule": parameters["subset_materialization"]["rule"],
        "objective": distillation["objective"],
        "temperature": distillation["temperature"],
        "labeled_share": distillation["labeled_share"],
        "class_weights": parameters["class_weighting"]["mode"],
    }


def test_a_recipe_is_chosen_by_one_parameter(conf: Path):
    recipes = loader_of(conf)["globals"]["recipes"]
    assert recipe_of(loader_of(conf)) == recipes["default"]
    assert recipe_of(loader_of(conf, "recipe=paper")) == recipes["paper"]
    assert recipes["paper"]["rule"] == "nnpu"

    given = "recipe=paper,distillation.temperature=2"
    assert recipe_of(loader_of(conf, given)) == {**recipes["paper"], "temperature": 2}

    name = environment(conf, "of_the_paper", globals={"recipe": "paper"})
    assert recipe_of(loader_of(conf, env=name)) == recipes["paper"]

    own = {
        "rule": "confident",
        "objective": "kd",
        "temperature": 8.0,
        "labeled_share": 0.5,
        "class_weights": "balanced",
    }
    name = environment(conf, "of_its_own", globals={"recipe": "own", "recipes": {"own": own}})
    assert recipe_of(loader_of(conf, env=name)) == own


def test_an_unknown_recipe_is_named(conf: Path):
    expected = "there is no recipe 'papre': choose one of default, paper"
    with pytest.raises(Exception, match=expected):
        loader_of(conf, "recipe=papre")["parameters"]
