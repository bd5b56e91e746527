"""Opening PyTorch files that hold more than tensors, without importing or running what they name.

Training scripts save their arguments, paths, NumPy numbers and configurations next to the weights.
`torch.load(weights_only=True)` refuses a whole file for one of them. Here each gets a stand-in that
does nothing, so that the tensors are read; all other limits of `weights_only` stay in force.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

# The old format of torch.save is a sequence of pickles: a magic number, a version, facts of the
# machine, the content, and the keys of the storages. Their raw values follow.
_OLD_FORMAT_PICKLES = 5

# A training script has no reason to save what these modules hold, and a pickle that attacks has
# one. A stand-in would not run it either; such a file is refused as what it is.
_NEVER_IN_CHECKPOINTS = frozenset(
    {
        *("asyncio", "bdb", "builtins", "code", "codeop", "commands", "ctypes", "http", "imp"),
        *("importlib", "io", "marshal", "multiprocessing", "nt", "os", "pdb", "pip", "pkgutil"),
        *("posix", "profile", "pty", "pydoc", "runpy", "shutil", "signal", "smtplib", "socket"),
        *("subprocess", "sys", "tempfile", "threading", "timeit", "trace", "urllib", "venv"),
        *("webbrowser", "__builtin__"),
    }
)
_HARMLESS_BUILTINS = frozenset(
    f"builtins.{name}"
    for name in ("bytearray", "complex", "frozenset", "getattr", "object", "range", "set", "slice")
)
# Of the modules above, what the weights-only reader of torch never needs a stand-in for.
NETWORK_MODULES = "torch.nn.modules."
CLASS_NAME = "_name_of_pickled_class"  # attribute of a stand-in's instance


def pickled_names(path: Path) -> set[str]:
    """Return the classes and functions that the pickles of a PyTorch file name, as `module.name`.

    Nothing is imported. A file that cannot be parsed has the names up to its fault.
    """
    names: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for part in archive.namelist():
                    if part.endswith("data.pkl"):
                        with archive.open(part) as pickle_file:
                            _add_names(pickle_file, names)
        else:
            with open(path, "rb") as file:
                for _ in range(_OLD_FORMAT_PICKLES):
                    _add_names(file, names)
    # pickletools raises what the damage leads to; the reader of torch reports such a file.
    except Exception:
        return names
    return names


def _add_names(file: Any, names: set[str]) -> None:
    """Add the names of one pickle, and leave the file behind its end."""
    texts: deque[str] = deque(maxlen=2)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            # Protocol 4 puts module and name on the stack, as the two texts before.
            names.add(".".join(texts))
        elif isinstance(argument, str):
            texts.append(argument)


def dangerous_names(names: set[str]) -> list[str]:
    """Return those of the names that have no place in a checkpoint."""
    dangerous = []
    for name in sorted(names - _HARMLESS_BUILTINS):
        root, _, _ = name.partition(".")
        if root in _NEVER_IN_CHECKPOINTS:
            dangerous.append(name)
    return dangerous


class _Ignored:
    """Stands for a NumPy object, which is built from a tuple; takes any state and keeps nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> tuple[Any, str]:
    """Return an inert class and the name that it answers to.

    Its instances are ordered dicts: the only type whose items and attributes the weights-only
    reader sets, so that dicts of other classes (AttributeDict, EasyDict) keep their tensors.
    """

    def create(_cls: type, *_arguments: Any) -> OrderedDict[Any, Any]:
        made: OrderedDict[Any, Any] = OrderedDict()
        made.__dict__[CLASS_NAME] = name
        return made

    if name.startswith("numpy."):
        return type("Ignored", (_Ignored,), {CLASS_NAME: name}), name
    if name == "collections.deque":
        # Items are only ever appended to a list.
        return type("Deque", (), {"__new__": lambda _cls, *_arguments: []}), name
    return type("StandIn", (), {"__new__": create}), name


def load_tensors(path: Path, names: set[str]) -> Any:
    """Return the content of a PyTorch file, with stand-ins for what is neither tensor nor plain.

    Args:
        path: a file of torch.save, of any version.
        names: from `pickled_names`.

    Raises:
        Exception: of any type, as torch raises them for damaged files and for what
            `weights_only` refuses.
    """
    import torch

    stand_ins = [_stand_in(name) for name in sorted(names)]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        # About storages and protocols of older versions, which a user cannot act on.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)
