"""What the project uses of other libraries without their promise: private names, and names that
errors are recognized by. A new version that renames one of them fails here, with a sentence.
"""

from __future__ import annotations

import ast
import inspect
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "pu_kd_pipeline"

# Private name -> where a library has it.
PRIVATE_NAMES = {
    "_BatchNorm": "torch.nn.modules.batchnorm:_BatchNorm",
    "_assert_async": "torch:_assert_async",
    "_config_file_callback": "kedro.framework.cli.utils:_config_file_callback",
    "_describe": "kedro.io.core:AbstractDataset._describe",
    "_exists": "kedro.io.core:AbstractDataset._exists",
    "_get_conf_env_path": "kedro.config:OmegaConfigLoader._get_conf_env_path",
    "_get_load_path": "kedro.io.core:AbstractVersionedDataset._get_load_path",
    "_get_globals_value": "kedro.config:OmegaConfigLoader._get_globals_value",
    "_get_runtime_value": "kedro.config:OmegaConfigLoader._get_runtime_value",
    "_get_save_path": "kedro.io.core:AbstractVersionedDataset._get_save_path",
    "_initialise_filesystem_and_protocol": (
        "kedro.config:OmegaConfigLoader._initialise_filesystem_and_protocol"
    ),
    "_is_amx_tile_supported": "torch.cpu:_is_amx_tile_supported",
    "_is_avx512_bf16_supported": "torch.cpu:_is_avx512_bf16_supported",
    "_is_hidden": "kedro.config:OmegaConfigLoader._is_hidden",
    "_load_obj": "kedro.io.core:_load_obj",
    "_lru_cache_wrapper": "functools:_lru_cache_wrapper",
    "_merge_configs": "kedro.config:OmegaConfigLoader._merge_configs",
    "_read_dir_configs": "kedro.config:OmegaConfigLoader._read_dir_configs",
    "_release": "kedro.io.core:AbstractVersionedDataset._release",
    "_release_datasets": "kedro.runner:SequentialRunner._release_datasets",
    "_resolve_credentials": (
        "kedro.io.catalog_config_resolver:CatalogConfigResolver._resolve_credentials"
    ),
    "_run": "kedro.runner:SequentialRunner._run",
    "_strip_protocol": "fsspec.spec:AbstractFileSystem._strip_protocol",
    "_unwrap_optional": "kedro.validation.utils:_unwrap_optional",
}
# Private attribute -> classes whose objects have it; `_objects` makes one of each.
PRIVATE_ATTRIBUTES = {
    "_filepath": ["JSONDataset", "TextDataset"],
    "_fs": ["JSONDataset", "TextDataset"],
    "_globals": ["OmegaConfigLoader"],
    "_globals_oc": ["OmegaConfigLoader"],  # emptied, like `_runtime_params_oc`
    "_init_args": ["JSONDataset", "TextDataset"],
    "_inputs": ["Node"],
    "_is_async": ["SequentialRunner"],
    "_outputs": ["Node"],
    "_protocol": ["JSONDataset", "TextDataset", "OmegaConfigLoader"],
    # Emptied, so that it is made again from other values.
    "_runtime_params_oc": ["OmegaConfigLoader"],
    "_version": ["JSONDataset", "TextDataset"],
}
# Private attribute -> the classes that keep the labels of a torchvision data set in it. Their
# objects need files, so their source tells.
LABELS_OF_TORCHVISION = {"_labels": ["Flowers102", "Food101"], "_samples": ["GTSRB"]}
# Text of ours that looks like a private name, such as parts of names in files of weights.
NO_NAMES = {
    "_2",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_model",
    "_name_of_pickled_class",
    "_orig_mod",
    "_per_second",
    "_plus",
    "_reconstruct",
    "_type",
}
# Private in form only: the documented way of a named tuple.
DOCUMENTED_NAMES = {"_asdict"}

# Public names without documentation.
UNDOCUMENTED_NAMES = [
    "kedro.framework.cli.project:run.callback",
    "kedro.framework.project:pipelines.set_requested",
    "kedro.io:DataCatalog.from_config",
    "kedro.io.core:AbstractDataset.from_config",
    "kedro.io.core:parse_dataset_definition",
    "kedro.io.catalog_config_resolver:CatalogConfigResolver.config",
    "kedro.io.catalog_config_resolver:CatalogConfigResolver.match_dataset_pattern",
    "kedro.io.catalog_config_resolver:CatalogConfigResolver.resolve_pattern",
    "kedro.runner.task:Task.execute",
    "kedro.validation.exceptions:ParameterValidationError",
    "kedro.validation.type_extractor:TypeExtractor.extract_types_from_pipelines",
    "kedro.validation.utils:is_pydantic_class",
]
# Function -> parameters that the project passes, in their order.
PARAMETERS = {
    "kedro.runner:SequentialRunner._release_datasets": [
        "node",
        "catalog",
        "load_counts",
        "pipeline",
    ],
    "kedro.runner:SequentialRunner._run": ["pipeline", "catalog", "hook_manager", "run_id"],
    "kedro.runner.task:Task": ["node", "catalog", "is_async", "hook_manager", "run_id"],
    "kedro.validation.type_extractor:TypeExtractor": ["pipelines"],
    "mlflow.system_metrics.system_metrics_monitor:SystemMetricsMonitor": [
        "run_id",
        "sampling_interval",
        "resume_logging",
        "tracking_uri",
    ],
}


def _complaint(path: str) -> str:
    """Return what to tell whoever updates a library that lacks a name, or has another one."""
    module, _, name = path.partition(":")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        release = f"Python {platform.python_version()}"
    else:
        release = f"{package} {version(package)}"
    last = name.rpartition(".")[2]
    users = [file for file, used in _used_names() if used == last]
    return (
        f"{release} has no {module}.{name} as it is used in "
        f"{', '.join(sorted(set(users))) or 'src'}: find what replaces it, "
        f"or cap {package} in pyproject.toml"
    )


def _used_names() -> Iterator[tuple[str, str]]:
    """Yield the file and the name of every import, attribute and text in src."""
    for path in sorted(SOURCES.rglob("*.py")):
        file = path.relative_to(SOURCES).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield file, alias.name
            elif isinstance(node, ast.Attribute):
                yield file, node.attr
            elif isinstance(node, ast.Constant):
                yield file, str(node.value)


def _own_names() -> set[str]:
    """Return every name that src itself defines."""
    names = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def _is_private(name: str) -> bool:
    """Return whether a text is a name with one underscore in front."""
    return name.isidentifier() and name.startswith("_") and not name.startswith("__")


def test_every_private_name_of_a_library_is_guarded():
    guarded = {*PRIVATE_NAMES, *PRIVATE_ATTRIBUTES, *LABELS_OF_TORCHVISION}
    guarded |= NO_NAMES | DOCUMENTED_NAMES
    own_names = _own_names()
    unguarded = []
    for file, name in _used_names():
        if _is_private(name) and name not in guarded | own_names:
            unguarded.append(f"{name} in {file}")

    assert unguarded == [], (
        "use a public name instead, or add where the library has it to PRIVATE_NAMES or "
        "PRIVATE_ATTRIBUTES, so that a version without it fails a test"
    )


def test_every_private_method_that_replaces_one_of_a_library_is_guarded():
    # If a version renames the library's, nothing calls ours any more, and nothing fails.
    from pu_kd_pipeline import datasets
    from pu_kd_pipeline.hooks import configuration
    from pu_kd_pipeline.incremental import runner

    unguarded = []
    for module in (datasets, configuration, runner):
        for _, own_class in inspect.getmembers(module, inspect.isclass):
            for name in _replaced_methods(own_class):
                if name not in PRIVATE_NAMES:
                    unguarded.append(f"{own_class.__name__}.{name}")

    assert unguarded == [], "add where the library has it to PRIVATE_NAMES"


def _replaced_methods(own_class: type) -> Iterator[str]:
    """Yield the private methods of a class of ours that a class of a library has as well."""
    if not own_class.__module__.startswith("pu_kd_pipeline"):
        return
    for name, value in vars(own_class).items():
        is_method = inspect.isroutine(value)
        for base in own_class.__mro__[1:]:
            is_library = not base.__module__.startswith("pu_kd_pipeline")
            if is_method and is_library and _is_private(name) and name in vars(base):
                yield name
                break


@pytest.mark.parametrize("path", [*PRIVATE_NAMES.values(), *UNDOCUMENTED_NAMES])
def test_the_library_still_has_the_name(path):
    try:
        resolve_name(path)
    except (ImportError, AttributeError):
        pytest.fail(_complaint(path))


@pytest.mark.parametrize("path", sorted(PARAMETERS))
def test_the_function_still_has_the_parameters(path):
    function: Callable[..., Any] = resolve_name(path)
    parameters = inspect.signature(function).parameters
    used = [name for name in parameters if name in PARAMETERS[path]]

    # A version may have more parameters; without a default, they fail other tests.
    assert used == PARAMETERS[path], _complaint(path)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, Any]:
    """Class name -> an object of the class, for `PRIVATE_ATTRIBUTES`."""
    from kedro.config import OmegaConfigLoader
    from kedro.pipeline import Node
    from kedro.runner import SequentialRunner
    from kedro_datasets.json import JSONDataset
    from kedro_datasets.text import TextDataset

    folder = tmp_path_factory.mktemp("conf")
    return {
        "JSONDataset": JSONDataset(filepath=f"{folder}/file.json"),
        "TextDataset": TextDataset(filepath=f"{folder}/file.txt"),
        "OmegaConfigLoader": OmegaConfigLoader(conf_source=str(folder)),
        "Node": Node(len, "text", "length"),
        "SequentialRunner": SequentialRunner(),
    }


@pytest.mark.parametrize("name", sorted(PRIVATE_ATTRIBUTES))
def test_objects_still_have_the_attribute(objects, name):
    for class_name in PRIVATE_ATTRIBUTES[name]:
        path = f"{type(objects[class_name]).__module__}:{class_name}.{name}"
        assert hasattr(objects[class_name], name), _complaint(path)


def test_kedros_datasets_say_where_their_file_is(objects):
    dataset = objects["JSONDataset"]

    assert Path(dataset._filepath).name == "file.json"
    assert dataset._protocol == "file"
    assert dataset._version is None


@pytest.mark.parametrize("name", sorted(LABELS_OF_TORCHVISION))
def test_torchvisions_data_sets_still_keep_labels_where_they_are_read(name):
    from pu_kd_pipeline.learning.networks.vision import datasets

    for class_name in LABELS_OF_TORCHVISION[name]:
        source = inspect.getsource(getattr(datasets, class_name))
        path = f"torchvision.datasets:{class_name}.{name}"
        assert f"self.{name} " in source, _complaint(path)


def test_the_file_that_kedro_was_reading_is_in_the_same_local_variables():
    # `cli/errors.py` reads them in the traceback, because Kedro's errors do not name the file.
    path = PRIVATE_NAMES["_read_dir_configs"]
    variables = resolve_name(path).__code__.co_varnames

    assert {"config_per_file", "config_filepath"} <= set(variables), _complaint(path)


def test_the_functions_and_modules_that_errors_are_recognized_by_exist():
    from pu_kd_pipeline.cli.errors import CATALOG_FUNCTIONS, CHECKING_MODULES

    guarded_paths = [*PRIVATE_NAMES.values(), *UNDOCUMENTED_NAMES]
    for name in CATALOG_FUNCTIONS:
        paths = [path for path in guarded_paths if path.endswith((f":{name}", f".{name}"))]
        assert paths, f"add where Kedro has {name} to UNDOCUMENTED_NAMES"
    for module in CHECKING_MODULES:
        assert find_spec(module), f"kedro {version('kedro')} has no module {module}"


def test_kedros_command_has_the_options_that_ours_reads():
    from kedro.framework.cli.project import run

    options = {parameter.name for parameter in run.params}

    assert {"pipeline", "pipelines", "runner", "runner_params"} <= options


def test_kedros_warning_has_the_text_that_is_filtered():
    from kedro.framework.cli import project

    # Its default names a pipeline in the deprecated way on every run.
    assert "Option '--pipeline' is deprecated" in inspect.getsource(project)


def test_every_hook_of_ours_is_one_that_kedro_calls():
    from kedro.framework.hooks import specs

    from pu_kd_pipeline import settings

    specified = set()
    for _, each in inspect.getmembers(specs, inspect.isclass):
        specified.update(dir(each))
    n_hooks = 0
    for hooks in settings.HOOKS:
        for name, method in inspect.getmembers(hooks, inspect.ismethod):
            if hasattr(method, "kedro_impl"):
                assert name in specified, f"kedro {version('kedro')} calls no hook {name}"
                n_hooks += 1
    assert n_hooks >= len(settings.HOOKS), "pluggy marks hooks in another way"


def test_a_shortage_of_the_cpus_memory_is_recognized():
    import torch

    from pu_kd_pipeline.devices import is_memory_error

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)

    assert is_memory_error(caught.value), f"torch {version('torch')} says it in other words"
