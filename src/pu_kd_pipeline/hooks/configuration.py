"""Kedro's configuration loader, with paths and texts as they were given, also from archives."""

from __future__ import annotations

import io
import lzma
import mimetypes
import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from kedro.config import MissingConfigException, OmegaConfigLoader
from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.given import with_texts

# Folders in memory and in archives have the names of `--conf-source` and not of this machine.
_ARCHIVES = ("tar", "zip")
# What the readers of archives raise for files that are none.
_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ImportError,
)
_URL = "://"
# Keys of globals.yml that are parts of paths.
_TEXTS = ("data", "comparison")
# The key of globals.yml that says what each recipe sets.
_RECIPES = "recipes"
# Of a catalog entry of base, what an entry of the same type in an environment need not repeat.
_KEPT_KEYS = ("cache", "cache_gb")


class ConfigLoader(OmegaConfigLoader):
    """Reads conf/, a folder, an archive or a URL, and knows what was read from where.

    Attributes:
        requested_names: names that `${runtime_params:...}` of the files read so far asked for.
        parameter_files: parameter block -> the last file that sets it, of those read so far.
    """

    def __init__(
        self,
        conf_source: str | Path,
        env: str | None = None,
        runtime_params: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.requested_names: set[str] = set()
        self.parameter_files: dict[str, Path] = {}
        self._texts: Mapping[str, str] = getattr(runtime_params, "texts", {})
        # Kind -> what was read of it; a command asks for some kinds several times.
        self._configs: dict[str, dict[str, Any]] = {}
        # OmegaConf accepts no subclass of a dictionary.
        given = dict(runtime_params or {})
        if "data" in given:
            data = self._texts.get("data", given["data"])
            given["data"] = _path_text(data, "`data` in --params (or runtime_params)")
        try:
            super().__init__(conf_source, env, given, **arguments)
        except _ARCHIVE_ERRORS as exc:
            # In the lines after the first, tarfile lists every compression that it has tried.
            reason = str(exc).partition(":\n")[0]
            raise InputError(
                f"--conf-source: {conf_source} cannot be read ({reason}): name a folder, or an "
                "archive made with `tar czf conf.tar.gz conf`"
            ) from exc
        self._check_globals()

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return the configuration of a kind; local paths of catalog and tracking are complete."""
        if key in self._configs:
            return deepcopy(self._configs[key])
        config = super().__getitem__(key)
        if key == "catalog":
            for name, entry in config.items():
                if isinstance(entry, dict) and isinstance(entry.get("filepath"), str):
                    where = f"catalog entry `{name}`: filepath"
                    entry["filepath"] = local_path(entry["filepath"], where)
        if key == "mlflow" and isinstance(config.get("folder"), str):
            config["folder"] = local_path(config["folder"], "mlflow.yml: folder")
        self._configs[key] = deepcopy(config)
        return config

    def __setitem__(self, key: str, value: Any) -> None:
        """Replace the configuration of a kind; others are resolved again if it is `globals`."""
        super().__setitem__(key, value)
        self._forget_resolved()
        if key == "globals":
            self._globals = deepcopy(value)
            self._check_globals()

    def __delitem__(self, key: str) -> None:
        """Drop a configuration that was set, so that the files of its kind are read again."""
        super().__delitem__(key)
        self._forget_resolved()
        if key == "globals":
            self._globals = {}
            with suppress(MissingConfigException):
                self._globals = self[key]
            self._check_globals()

    def use_texts(self, models: Mapping[str, type[BaseModel]]) -> None:
        """Take what was typed where a block of these types expects text, instead of a number."""
        self.runtime_params = with_texts(self.runtime_params, self._texts, models)
        self._runtime_params_oc = None
        self._forget_resolved()

    def _forget_resolved(self) -> None:
        """Resolve all kinds again when they are asked for: each may contain globals."""
        self._configs.clear()
        # Kedro keeps the first globals that were used, also after others were set.
        self._globals_oc = None

    def _check_globals(self) -> None:
        """Complete the paths in globals; a number in the place of a path is refused."""
        for name in _TEXTS:
            if name in self._globals:
                where = f"`{name}` in globals.yml"
                self._globals[name] = _path_text(self._globals[name], where)

    def _get_globals_value(self, variable: str, *default: Any) -> Any:
        """Return what `${globals:variable,default}` stands for."""
        block, _, rest = variable.partition(".")
        recipes = self._globals.get(_RECIPES)
        if block == _RECIPES and isinstance(recipes, Mapping):
            name = rest.rpartition(".")[0]
            if name not in recipes:
                raise InputError(
                    f"recipe: there is no recipe {name!r}: choose one of {', '.join(recipes)}, or "
                    f"add it to `{_RECIPES}` in globals.yml"
                )
        return super()._get_globals_value(variable, *default)

    def _get_runtime_value(self, variable: str, *default: Any) -> Any:
        """Return what `${runtime_params:variable,default}` stands for."""
        self.requested_names.add(variable.partition(".")[0])
        value = super()._get_runtime_value(variable, *default)
        has_text_default = bool(default) and isinstance(default[0], str)
        if has_text_default and not isinstance(value, str):
            return self._texts.get(variable, value)
        return value

    def _merge_configs(
        self, config: dict[str, Any], env_config: dict[str, Any], key: str, env_path: str
    ) -> Any:
        """Return base with an environment in it; an entry of the catalog keeps its metadata.

        So the entry that places a table elsewhere need not repeat how kedro-viz and MLflow show it.
        One without a type is that of base but for the keys that it has, and one of the same type
        has the cache of base.
        """
        if key == "catalog":
            for name, entry in env_config.items():
                replaced = config.get(name)
                if isinstance(entry, dict) and isinstance(replaced, dict):
                    env_config[name] = _merged_entry(replaced, entry)
        return super()._merge_configs(config, env_config, key, env_path)

    def _read_dir_configs(
        self, conf_path: str, patterns: Any, key: str, *arguments: Any, **options: Any
    ) -> Any:
        """Return file -> content, of the files of a kind in one environment."""
        contents = super()._read_dir_configs(conf_path, patterns, key, *arguments, **options)
        if key == "parameters":
            # Of base first, and then of the environment, which overrides it.
            for file, content in contents.items():
                for block in content:
                    self.parameter_files[str(block)] = Path(file)
        return contents

    def _is_hidden(self, path_str: str) -> bool:
        """Return whether a file of the configuration is hidden, by its own path.

        Kedro asks where links lead to. Kubernetes mounts the files of a ConfigMap as links into a
        folder `..2026_11_30`, and all of them would be left out without a message.
        """
        folder = os.path.abspath(self.conf_source)
        path = os.path.abspath(path_str)
        if self._protocol != "file" or os.path.commonpath([folder, path]) != folder:
            return bool(super()._is_hidden(path_str))
        parts = Path(path).relative_to(folder).parts
        return any(part.startswith(".") for part in parts)

    @staticmethod
    def _initialise_filesystem_and_protocol(conf_source: str) -> tuple[Any, str]:
        """Return the file system that reads `--conf-source`, and its name."""
        file_type, _ = mimetypes.guess_type(conf_source)
        if file_type != "application/x-tar":
            found: tuple[Any, str] = OmegaConfigLoader._initialise_filesystem_and_protocol(
                conf_source
            )
            return found
        # Not cached: a notebook may pack the archive again.
        archive = fsspec.filesystem("zip", fo=_as_zip(conf_source), skip_instance_cache=True)
        return archive, "zip"

    def _get_conf_env_path(self, env: str) -> str:
        """Return the folder of an environment, wherever in an archive it is."""
        if self._protocol not in _ARCHIVES:
            return str(super()._get_conf_env_path(env))
        folder = self._archive_root() / env
        if not self._fs.isdir(folder.as_posix()):
            raise MissingConfigException(
                f"there is no environment {env!r} in {self.conf_source}: its folder {folder} is "
                "missing"
            )
        return str(folder)

    def _archive_root(self) -> PurePosixPath:
        """Return the folder in an archive that has `base`, and so the other environments."""
        roots = set()
        for name in self._fs.find(""):
            for folder in PurePosixPath(name).parents:
                if folder.name == self.base_env:
                    roots.add(folder.parent)
        if not roots:
            raise InputError(
                f"--conf-source: {self.conf_source} holds no folder `{self.base_env}`: pack the "
                "folder of the configuration, as with `tar czf conf.tar.gz conf`"
            )
        # Archivers add folders of their own next to it, which repeat its names.
        return min(roots, key=lambda root: (len(root.parts), root))


def _merged_entry(base: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the catalog of an environment, with what it keeps of that of base."""
    kept: dict[str, Any] = {}
    if "type" not in entry:
        kept = base
    elif entry["type"] == base.get("type"):
        kept = {key: base[key] for key in _KEPT_KEYS if key in base}
    metadata = {**(base.get("metadata") or {}), **(entry.get("metadata") or {})}
    return {**kept, **entry, "metadata": metadata}


def _as_zip(tar_file: str) -> io.BytesIO:
    """Return the files of a tar archive as a zip archive, in memory.

    fsspec's reader of tar archives does not find the names that `tar czf conf.tar.gz ./conf` and
    `tar -P` write, and does not know `.tgz`.
    """
    content = io.BytesIO()
    with (
        fsspec.open(tar_file, "rb") as file,
        tarfile.open(fileobj=file) as packed,
        zipfile.ZipFile(content, "w") as unpacked,
    ):
        for member in packed:
            name = PurePosixPath("/", member.name).relative_to("/").as_posix()
            # An environment may be an empty folder.
            if member.isdir():
                unpacked.writestr(f"{name}/", b"")
                continue
            # A link that leads nowhere is as good as a file that is not there.
            with suppress(KeyError):
                opened = packed.extractfile(member)
                if opened is not None:  # a device or a pipe
                    unpacked.writestr(name, opened.read())
    return content


def local_path(path: str, where: str) -> str:
    """Return a path with the home folder in place of `~`, and URLs of other machines unchanged.

    Args:
        path: a path or URL.
        where: what names it, for messages.

    Raises:
        InputError: the user of `~user` does not exist.
    """
    path = path.removeprefix("file://")
    if path.startswith("~"):
        expanded = os.path.expanduser(path)
        if expanded.startswith("~"):
            user, *_ = path.split("/")
            raise InputError(
                f"{where}: there is no home folder {user}; a folder of that name is ./{user}"
            )
        return expanded
    has_colon_first = ":" in path.partition("/")[0]
    # Kedro takes what is before a colon for the protocol of a URL, or for a drive of Windows.
    if has_colon_first and _URL not in path and os.name != "nt":
        return f"./{path}"
    return path


def _path_text(value: Any, where: str) -> str:
    """Return a value that is part of paths.

    Raises:
        InputError: it is no text, or no path can hold it.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where} is {value!r} ({type(value).__name__}), but a text is needed: write it in "
            "quotes, such as '007'"
        )
    if not value.strip():
        raise InputError(f"{where} is empty, but names a folder: leave it out, or name one")
    unusable = [character for character in "\0{}" if character in value]
    if unusable:
        raise InputError(
            f"{where} is {value!r}: {unusable[0]!r} cannot be used in it (braces are placeholders "
            "of dataset factories)"
        )
    return local_path(value, where)
