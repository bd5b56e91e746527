"""Finding the tensors of a network in what a training script has saved.

The rule, of which `module.`, `state_dict` and the like are cases: the weights are those of any dict
in the file in which all tensors of the network are found under one prefix. What wrappers insert
into names does not count. Nothing is guessed: where two dicts fit and differ, `_decided` says which
one is taken, or both are named.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.models.pickled_objects import CLASS_NAME

if TYPE_CHECKING:
    from torch import Tensor

# How deep dicts are searched, and how many: a pickle may refer to itself.
_MAX_DEPTH = 6
_MAX_CONTAINERS = 10_000
_MAX_LISTED = 100  # entries of a list that are searched
_MAX_PLACES = 4  # of weights that fit, in a message
_MAX_ENTRIES = 12  # of a dict, in a message
_MAX_NAME_LENGTH = 60  # of a foreign name in a message

# Modules that wrap another one (compiled, data-parallel, sharded, checkpointed activations); each
# adds a part to the names of all tensors below it.
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_fsdp_wrapped_module",
        "_forward_module",
        "_checkpoint_wrapped_module",
    }
)
_BATCH_COUNTER = "num_batches_tracked"
# Counters of averaged weights and of tools that count operations: no layer reads them.
_COUNTERS = frozenset({_BATCH_COUNTER, "n_averaged", "total_ops", "total_params", "num_updates"})
# Of a loss or a metric, which take no part in classifying.
_LOSS = re.compile(r"(^|_)(loss|losses|criterion|criteria|metric|metrics)(_|$)")
# Functions that unpickle NumPy's objects -> what these are.
_NUMPY_KINDS = {"_reconstruct": "NumPy array", "scalar": "NumPy number"}
_EMA = re.compile(r"(^|[._/])(ema|swa)([._/]|$)")


@dataclass(frozen=True)
class StateDict:
    """Tensors of a network, as they were found in a file.

    Attributes:
        entry: keys that lead to the dict, such as `model_ema`; empty if it is the whole file.
        prefix: what was removed from the names, with its dot.
        tensors: by the names of the network.
        left_over: names in the same dict, without the prefix, that the network does not have.
        ignored: names in the same dict that take no part in classifying.
        n_fitting: how many tensors have the shapes of the network's.
        is_complete: every tensor that the network needs is there, in its shape.
    """

    entry: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    left_over: tuple[str, ...]
    ignored: tuple[str, ...]
    n_fitting: int
    is_complete: bool

    @property
    def place(self) -> str:
        """Where it was found, for messages; empty if that is the whole file."""
        parts = []
        if self.entry:
            keys = ".".join(self.entry)
            parts.append(f"entry {_shown(keys)}")
        if self.prefix:
            parts.append(f"prefix {_shown(self.prefix)}")
        return ", ".join(parts)

    @property
    def is_average(self) -> bool:
        """Whether entry or prefix say that the weights are averages over the training."""
        parts = [*self.entry, self.prefix]
        place = ".".join(parts)
        return _EMA.search(place.lower()) is not None


def needed_names(expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names that a file must have; as in torch, counters of batches are not among them.

    They are from torch 0.4.1 on, and only count where BatchNorm has no momentum.
    """
    return [name for name in expected if not name.endswith(_BATCH_COUNTER)]


def tensor_dicts(content: Any) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Return the dicts of a file that hold tensors, with the keys that lead to each.

    Other values next to the tensors, such as the number of the epoch, are left out.
    """
    import torch

    found = []
    for entry, mapping in _mappings(content):
        tensors = {}
        for name, value in mapping.items():
            if isinstance(value, torch.Tensor):
                tensors[str(name)] = value
        if tensors:
            found.append((entry, tensors))
    return found


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield all dicts of a file, outer ones first."""
    queue: list[tuple[tuple[str, ...], Any]] = []
    if isinstance(content, Mapping | list | tuple):
        queue.append(((), content))
    seen: set[int] = set()
    # The queue grows while it is gone through.
    for entry, value in queue:
        if id(value) in seen or len(seen) > _MAX_CONTAINERS:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            yield entry, value
        if len(entry) < _MAX_DEPTH:
            for key, item in _containers_in(value):
                queue.append(((*entry, key), item))


def _containers_in(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dicts and lists in a dict or list, with their key or index."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    else:
        items = enumerate(value[:_MAX_LISTED])
    for key, item in items:
        if isinstance(item, Mapping | list | tuple):
            yield str(key), item


def candidates(content: Any, expected: Mapping[str, Tensor]) -> list[StateDict]:
    """Return every place of a file where tensors of a network are found, the best first."""
    found = []
    for entry, tensors in tensor_dicts(content):
        found.extend(_candidates_of_dict(entry, tensors, expected))
    # Sorting is stable: among equals, the outer entry comes first.
    found.sort(key=lambda state: (len(state.tensors), state.n_fitting), reverse=True)
    return found


def _candidates_of_dict(
    entry: tuple[str, ...], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[StateDict]:
    own_prefix = _common_prefix(list(expected))
    short_names = {}
    for name in expected:
        short = name.removeprefix(own_prefix)
        short_names[short] = name
    cleaned = _without_wrappers(tensors, expected)
    counts = _prefix_counts(cleaned, short_names)
    if not counts:
        return []

    most = max(counts.values())
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    # The names as they are: torch itself would load them.
    if own_prefix in counts and counts[own_prefix] == most:
        prefixes.remove(own_prefix)
        prefixes.insert(0, own_prefix)
    found = []
    for prefix in prefixes:
        state = _at_prefix(entry, prefix, cleaned, short_names, expected, prefixes)
        found.append(state)
    if found[0].prefix == own_prefix and found[0].is_complete:
        return found[:1]
    return found


def _common_prefix(names: list[str]) -> str:
    """Return the longest prefix that ends in a dot and that all names have."""
    if not names:
        return ""
    first = min(names)
    last = max(names)
    length = 0
    for own, other in zip(first, last, strict=False):
        if own != other:
            break
        length += 1
    common = first[:length]
    # A single name keeps its last part.
    return common[: common.rfind(".") + 1]


def _without_wrappers(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors by names without the parts that wrappers insert.

    A part that the network's own names have stays. Where two names would become one, all stay.
    """
    own_parts: set[str] = set()
    for name in expected:
        own_parts.update(name.split("."))
    wrappers = _WRAPPERS - own_parts
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in wrappers]
        cleaned[".".join(parts)] = tensor
    if len(cleaned) < len(tensors):
        return dict(tensors)
    return cleaned


def _prefix_counts(tensors: Mapping[str, Tensor], short_names: Mapping[str, str]) -> Counter[str]:
    """Return how many of the network's names are found behind each prefix."""
    depths = {name.count(".") for name in short_names}
    counts: Counter[str] = Counter()
    for name in tensors:
        for depth in depths:
            parts = name.rsplit(".", depth + 1)
            # Without a prefix there is one part less.
            if len(parts) == depth + 1 and name in short_names:
                counts[""] += 1
            elif len(parts) == depth + 2:
                prefix = f"{parts[0]}."
                if name[len(prefix) :] in short_names:
                    counts[prefix] += 1
    return counts


def _at_prefix(
    entry: tuple[str, ...],
    prefix: str,
    tensors: Mapping[str, Tensor],
    short_names: Mapping[str, str],
    expected: Mapping[str, Tensor],
    all_prefixes: list[str],
) -> StateDict:
    """Return the tensors behind one prefix, and what becomes of the others in the same dict."""
    found: dict[str, Tensor] = {}
    left_over: list[str] = []
    ignored: list[str] = []
    n_fitting = 0
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        if name.startswith(prefix) and short in short_names:
            own_name = short_names[short]
            found[own_name] = tensor
            n_fitting += tensor.shape == expected[own_name].shape
        elif _takes_no_part(name, tensor) or _belongs_to(name, all_prefixes, short_names):
            ignored.append(name)
        else:
            left_over.append(short)

    needed = set(needed_names(expected))
    is_complete = n_fitting == len(found) and found.keys() >= needed
    return StateDict(entry, prefix, found, tuple(left_over), tuple(ignored), n_fitting, is_complete)


def _takes_no_part(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a counter, or belongs to a loss or a metric."""
    first, _, _ = name.partition(".")
    _, _, last = name.rpartition(".")
    is_counter = last in _COUNTERS and tensor.numel() == 1
    return is_counter or _LOSS.search(first) is not None


def _belongs_to(name: str, prefixes: list[str], short_names: Mapping[str, str]) -> bool:
    """Return whether a tensor is one of the network behind another prefix, such as its average."""
    for prefix in prefixes:
        short = name.removeprefix(prefix)
        if name.startswith(prefix) and short in short_names:
            return True
    return False


class AmbiguousWeightsError(ValueError):
    """Two different sets of weights fit, and nothing decides between them."""


def choose(found: list[StateDict]) -> StateDict | None:
    """Return the weights to take, or None if none are complete.

    Of several complete ones that differ, the averaged ones are taken (`ema` or `swa` in the entry
    or the prefix): training scripts that keep an average evaluate and publish it.

    Raises:
        AmbiguousWeightsError: several differ, and not exactly one of them is an average.
    """
    complete = [state for state in found if state.is_complete]
    if not complete:
        return None
    different = [complete[0]]
    for state in complete[1:]:
        copies = [other for other in different if _are_equal(state, other)]
        if not copies:
            different.append(state)
    if len(different) == 1:
        return different[0]

    averages = [state for state in different if state.is_average]
    if len(averages) == 1:
        return averages[0]
    places = [state.place or "the file itself" for state in different[:_MAX_PLACES]]
    raise AmbiguousWeightsError(" and ".join(places))


def _are_equal(state: StateDict, other: StateDict) -> bool:
    import torch

    if state.tensors.keys() != other.tensors.keys():
        return False
    pairs = state.tensors.items()
    try:
        return all(torch.equal(tensor, other.tensors[name]) for name, tensor in pairs)
    # Tensors of two types, sparse ones, and ones without values cannot be compared.
    except (RuntimeError, NotImplementedError):
        return False


def describe_content(content: Any) -> str:
    """Return what a file holds: its type, and of a dict the entries with their kinds."""
    is_stand_in = CLASS_NAME in _attributes(content)
    if is_stand_in or not isinstance(content, Mapping):
        return _kind(content)
    if not content:
        return "an empty dict"
    entries: list[str] = []
    for key, value in content.items():
        if len(entries) == _MAX_ENTRIES:
            entries.append(f"and {len(content) - _MAX_ENTRIES} more")
            break
        entries.append(f"{_shown(key)} ({_kind(value)})")
    return f"{type(content).__name__} with the entries {', '.join(entries)}"


def _kind(value: Any) -> str:
    import torch

    attributes = _attributes(value)
    class_name = attributes.get(CLASS_NAME)
    if "_modules" in attributes:
        return f"a pickled network, {_shown(class_name)}"
    if class_name is not None:
        _, _, function = str(class_name).rpartition(".")
        return _NUMPY_KINDS.get(function, _shown(class_name))
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        tensors = [item for item in value.values() if isinstance(item, torch.Tensor)]
        if tensors:
            return f"dict of {len(tensors)} tensors"
        return f"dict of {len(value)} entries"
    return type(value).__name__


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of a stand-in; none of anything else."""
    if type(value) is OrderedDict:
        return value.__dict__
    # The classes of ignored NumPy objects are named after them.
    name = getattr(type(value), CLASS_NAME, None)
    if name is not None:
        return {CLASS_NAME: name}
    return {}


def _shown(name: Any) -> str:
    """Return a name from a file, printable and of a bounded length."""
    text = str(name)
    if len(text) > _MAX_NAME_LENGTH:
        text = text[:_MAX_NAME_LENGTH] + "…"
    if text.isprintable():
        return text
    return repr(text)
