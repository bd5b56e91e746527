"""Opening PyTorch files that hold more than tensors, without importing or running what they name.

Training scripts save their arguments, paths, NumPy numbers and configurations next to the weights.
`torch.load(weights_only=True)` refuses a whole file for one of them. Here each gets a stand-in that
does nothing, so that the tensors are read; all other limits of `weights_only` stay in force.
"""

from __future__ import annotations

import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from dataclasses import dataclass, field
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
        "webbrowser",
    }
)
_HARMLESS_BUILTINS = frozenset(
    f"builtins.{name}"
    for name in (
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"),
        *("list", "object", "range", "set", "slice", "str", "tuple", "type"),
    )
)
NETWORK_MODULES = "torch.nn.modules."
CLASS_NAME = "_name_of_pickled_class"  # attribute of a stand-in's instance


@dataclass
class PickleFacts:
    """What the pickles of a file name, found without importing or running anything.

    Attributes:
        names: classes and functions, as `module.name`.
        protocol: of the last pickle; 0 if there is none.
    """

    names: set[str] = field(default_factory=set)
    protocol: int = 0

    @property
    def holds_network(self) -> bool:
        """Whether layers of a network were pickled, and not only its weights."""
        return any(name.startswith(NETWORK_MODULES) for name in self.names)

    @property
    def dangerous_names(self) -> list[str]:
        """Those of the names that have no place in a checkpoint."""
        dangerous = []
        for name in sorted(self.names - _HARMLESS_BUILTINS):
            root, _, _ = name.partition(".")
            # Python keeps the code of `io`, which has `open`, in `_io`, and names that since 3.13.
            if root.lstrip("_") in _NEVER_IN_CHECKPOINTS:
                dangerous.append(name)
        return dangerous


def read_pickle_facts(path: Path) -> PickleFacts:
    """Return what the pickles of a PyTorch file name.

    Of a file that cannot be parsed, the facts up to its fault are returned.
    """
    facts = PickleFacts()
    try:
        if zipfile.is_zipfile(path):
            _add_facts_of_archive(path, facts)
        else:
            with open(path, "rb") as file:
                for _ in range(_OLD_FORMAT_PICKLES):
                    _add_facts(file, facts)
    # pickletools raises what the damage leads to; the reader of torch reports such a file.
    except Exception:
        return facts
    return facts


def _add_facts_of_archive(path: Path, facts: PickleFacts) -> None:
    with zipfile.ZipFile(path) as archive:
        for part in archive.namelist():
            if part.endswith("data.pkl"):
                with archive.open(part) as file:
                    _add_facts(file, facts)


def _add_facts(file: Any, facts: PickleFacts) -> None:
    """Add the facts of one pickle, and leave the file behind its end."""
    import pickletools  # only runs that read such weights need it

    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            facts.names.add(_name_in_python_3(module, name))
        # Protocol 4 puts module and name on the stack, usually as the two texts before.
        elif opcode.name == "STACK_GLOBAL" and len(texts) == 2:
            facts.names.add(".".join(texts))
        elif opcode.name == "PROTO":
            facts.protocol = int(argument or 0)
        if isinstance(argument, str):
            texts = [*texts[-1:], argument]
        elif opcode.name != "MEMOIZE":
            texts = []


def _name_in_python_3(module: str, name: str) -> str:
    """Return `module.name`; pickles of protocol 2 write it as Python 2 called it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


class _Ignored:
    """Takes any arguments and any state, such as the tuples of NumPy's objects; keeps nothing."""

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

    if name.startswith(("numpy.", "functools.")):
        return _ignoring_stand_in(name)
    if name == "collections.deque":
        # Items are only ever appended to a list.
        return type("Deque", (), {"__new__": lambda _cls, *_arguments: []}), name
    return type("StandIn", (), {"__new__": create}), name


def _ignoring_stand_in(name: str) -> tuple[Any, str]:
    return type("Ignored", (_Ignored,), {CLASS_NAME: name}), name


def load_tensors(path: Path, facts: PickleFacts) -> Any:
    """Return the content of a PyTorch file, with stand-ins for what is neither tensor nor plain.

    Args:
        path: a file of torch.save, of any version.
        facts: from `read_pickle_facts`.

    Raises:
        Exception: of any type, as torch raises them for damaged files and for what
            `weights_only` refuses.
    """
    stand_ins = [_stand_in(name) for name in facts.names]
    try:
        return _load(path, stand_ins)
    # A stand-in that does not fit fails in different ways, depending on how its object is rebuilt.
    # Nothing is hidden: errors with another cause are raised again by the second attempt.
    except Exception:
        if not stand_ins:
            raise
    # Objects with slots are built from a tuple, too, which ordered dicts do not take.
    stand_ins = [_ignoring_stand_in(name) for name in facts.names]
    return _load(path, stand_ins)


def _load(path: Path, stand_ins: list[Any]) -> Any:
    import torch

    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        # About storages and protocols of older versions, which a user cannot act on.
        warnings.simplefilter("ignore")
        # An open file: of a path, torch reads some formats by their suffix.
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
