"""What a network returns, and how to get logits from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# How far the sum of a row may be from one: bf16 and float16 networks round each probability.
_SUM_TOLERANCE = 1e-2
_SMALLEST = torch.finfo(torch.float32).tiny  # a probability of zero has no logarithm
_N_IMAGES = 2
_LARGE = 1e6  # times the usual size of normalized pixels, where a sigmoid is 0 or 1
# Whether all rows have one sum is judged from more images, some of strong contrast so that their
# probabilities differ. Sums of float32 differ by less than this share of what the rows differ by.
_N_IMAGES_FOR_SUMS = 4
_N_IMAGES_FOR_KIND = 8
_CONTRAST = 30.0
_SUM_DIFFERENCE = 1e-4
_SUM_DIFFERENCE_IN_HALF = 1e-2
_MIN_DIFFERENCE = 1e-2  # of two rows, as a share of their sum; below, nothing is concluded
_MAX_STEPS = 20  # reshaping operations behind the last one that computes

# Names of autograd's nodes. The first kind moves values without changing them; the second ends in
# values between 0 and 1.
_RESHAPING = (
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "Clone",
    "Alias",
    "ToCopy",
    "Transpose",
    "Permute",
    "T",
    "Mean",
)
_BOUNDED = ("Sigmoid", "Hardsigmoid", "Softmax", "Reciprocal", "Div", "Exp", "Clamp", "Hardtanh")

_WAY_OUT = {
    "probabilities": (
        "returns probabilities (its rows are not negative and sum to 1), of which the objectives "
        "would take a softmax again. Of a teacher, set teacher.output.kind to probabilities, which "
        "converts them to logits; of a student, leave out the last softmax"
    ),
    "log_probabilities": (
        "returns logarithms of probabilities (exp of its rows sums to 1). Of a teacher, set "
        "teacher.output.kind to log_probabilities; of a student, leave out the last log-softmax"
    ),
    "scaled_probabilities": (
        "returns rows that have one sign and the same sum for all images, as probabilities times a "
        "constant do. Objectives need logits: use a factory (package.module:function) that returns "
        "what enters the softmax"
    ),
    "sigmoid": (
        "seems to end in a sigmoid: its values are between 0 and 1, and rows do not sum to 1. "
        "Objectives need logits over exclusive classes: use a factory (package.module:function) "
        "that returns what enters the sigmoid"
    ),
}


class OutputError(ValueError):
    """A network does not return what `teacher.output` says."""


def convert_output(network: nn.Module, key: str | int | None, kind: str) -> nn.Module:
    """Make a network return logits, and return it.

    Its class is replaced by a subclass with another `forward`, as torch.nn.utils.parametrize does:
    a module around it would change the names of its layers and tensors, and the tracing of taps
    passes over hooks.

    Args:
        network: changed in place.
        key: the entry, attribute or index of what the network returns; None: it returns a tensor.
        kind: `logits`, `probabilities` or `log_probabilities`.

    Raises:
        ValueError: the network would bypass the other `forward`: it has one of its own besides
            that of its class, or copies itself as another class (torch.compile, torch.fx).
    """
    own_class = type(network)
    if "forward" in vars(network) or hasattr(own_class, "__deepcopy__"):
        raise OutputError(
            f"the output of a {own_class.__name__} cannot be converted: use a factory "
            "(package.module:function) that returns logits"
        )

    # torch.fx, which finds the taps, needs a fixed number of arguments.
    def forward(self: nn.Module, images: Tensor) -> Tensor:
        return as_logits(own_class.forward(self, images), key, kind)

    members = {"forward": forward, "__module__": own_class.__module__}
    network.__class__ = type(own_class.__name__, (own_class,), members)
    return network


def as_logits(output: Any, key: str | int | None, kind: str) -> Tensor:
    """Return the (N, K) float32 logits in what a network returned.

    The logarithm of probabilities is the logits up to a constant in each row, which softmax does
    not see. Probabilities below 1e-38 count as 1e-38.

    Raises:
        OutputError: there is no such entry, or it is no tensor.
    """
    values = output
    if key is not None:
        values = _entry(output, key)
    # Not isinstance: while a graph is traced, symbols take the place of tensors.
    if not hasattr(values, "float"):
        raise OutputError(
            f"the network returns {describe_output(values)} in the place of logits: set "
            "teacher.output.key to an entry that is a tensor"
        )
    # Always a step of its own, so that it is the last one of a traced graph.
    logits: Tensor = values.float()
    if kind == "probabilities":
        logits = logits.clamp(min=_SMALLEST).log()
    return logits


def _entry(output: Any, key: str | int) -> Any:
    if isinstance(output, Tensor):
        raise OutputError(
            f"the network returns a tensor, which has no entry {key!r}: remove teacher.output.key"
        )
    try:
        # Outputs of Hugging Face's models are dicts that take an index as well.
        if isinstance(output, Mapping) or isinstance(key, int):
            return output[key]
        return getattr(output, key)
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise OutputError(
            f"the network returns {describe_output(output)}, which has no entry {key!r}: set "
            "teacher.output.key to the one that holds the logits"
        ) from exc


def describe_output(output: Any) -> str:
    """Return the shape of a tensor, the entries of a dict or tuple, or the type of anything else.

    Of other objects, such as dataclasses, the attributes that are tensors are listed.
    """
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    name = type(output).__name__
    entries = []
    for key, value in output_entries(output).items():
        entries.append(f"{key!r}: {describe_output(value)}")
    if not entries:
        return name
    return f"{name} with {', '.join(entries)}"


def output_entries(output: Any) -> dict[str | int, Any]:
    """Return what `teacher.output.key` could name in a network's output."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if hasattr(output, "_asdict"):  # a named tuple
        return output._asdict()
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    attributes = getattr(output, "__dict__", {})
    return {key: value for key, value in attributes.items() if isinstance(value, Tensor)}


def check_output_kind(
    network: nn.Module, key: str | int | None, kind: str, in_channels: int, size_px: int
) -> None:
    """Check that a network returns what is stated, on random images.

    A network that fails, or that returns anything but rows of numbers, is not judged here: see
    `checks.check_network`. Torch's random state stays unchanged.

    Args:
        network: before `convert_output`.
        key: see `convert_output`.
        kind: see `convert_output`.
        in_channels: channels of the images.
        size_px: height and width of the images.

    Raises:
        ValueError: it returns another kind; the message says what to do.
    """
    with torch.no_grad():
        rows = _random_outputs(network, key, in_channels, size_px)
    if rows is None:
        return
    found = kind_of_rows(rows)
    if found != "logits":
        # The sums of few rows may be near one by chance.
        with torch.no_grad():
            more = _random_outputs(
                network, key, in_channels, size_px, scale=_CONTRAST, n_images=_N_IMAGES_FOR_KIND
            )
        if more is not None:
            found = kind_of_rows(torch.cat([rows, more]))
    if found == "logits" and _has_one_sign(rows):
        of_usual = _random_outputs(network, key, in_channels, size_px, n_images=_N_IMAGES_FOR_SUMS)
        of_strong = _random_outputs(
            network, key, in_channels, size_px, scale=_CONTRAST, n_images=_N_IMAGES_FOR_SUMS
        )
        if of_usual is not None and of_strong is not None:
            more_rows = torch.cat([of_usual, of_strong])
            if _has_one_sign(more_rows) and _has_one_sum(more_rows):
                found = "scaled_probabilities"
    if found == "logits" and _is_bounded(rows):
        # Again, with a graph and for large values, which only few networks need.
        with torch.enable_grad():
            with_graph = _random_outputs(network, key, in_channels, size_px)
        with torch.no_grad():
            of_large = _random_outputs(network, key, in_channels, size_px, scale=_LARGE)
        if _ends_in_bounded_operation(with_graph) or _is_saturated(of_large):
            found = "sigmoid"
    if found == kind:
        return
    if kind == "logits":
        raise ValueError(f"the network {_WAY_OUT[found]}")
    raise ValueError(
        f"teacher.output.kind is {kind}, and the network returns {_description(rows, found)}: set "
        "it to what the network returns"
    )


def kind_of_rows(rows: Tensor) -> str:
    """Return whether (N, K) outputs are `probabilities`, `log_probabilities` or else `logits`.

    Args:
        rows: (N, K) of any float dtype, of several different images.
    """
    values = rows.detach().double()
    if not values.isfinite().any():
        return "logits"
    is_not_negative = bool((values >= 0).all())
    if is_not_negative and _are_one(values.sum(dim=1)):
        return "probabilities"
    is_not_positive = bool((values <= 0).all())
    if is_not_positive and _are_one(values.exp().sum(dim=1)):
        return "log_probabilities"
    return "logits"


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < _SUM_TOLERANCE).all())


def _is_bounded(rows: Tensor) -> bool:
    return bool(((rows >= 0) & (rows <= 1)).all())


def _has_one_sign(rows: Tensor) -> bool:
    return bool((rows >= 0).all() or (rows <= 0).all())


def _has_one_sum(rows: Tensor) -> bool:
    """Return whether the rows of different images differ, and their sums do not."""
    values = rows.detach().double()
    differences = values - values.mean(dim=0)
    largest = differences.abs().sum(dim=1).max()
    sums = values.sum(dim=1)
    if not largest > _MIN_DIFFERENCE * sums.abs().max():
        return False
    is_in_half = rows.dtype in (torch.float16, torch.bfloat16)
    tolerance = _SUM_DIFFERENCE_IN_HALF if is_in_half else _SUM_DIFFERENCE
    return bool(sums.max() - sums.min() <= tolerance * largest)


def _random_outputs(
    network: nn.Module,
    key: str | int | None,
    in_channels: int,
    size_px: int,
    scale: float = 1.0,
    n_images: int = _N_IMAGES,
) -> Tensor | None:
    """Return the (N, K) outputs of random images; None if there are none of this shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, in_channels, size_px, size_px, generator=generator)
    images = images * scale
    # A network whose parameters are frozen has a graph only if its input needs gradients.
    images.requires_grad_(torch.is_grad_enabled())
    was_training = network.training
    try:
        with torch.random.fork_rng(devices=[]):
            output = network.eval()(images)
        if key is not None:
            output = _entry(output, key)
    # Of any kind: a user's network may raise anything, and the next check reports that.
    except Exception:
        return None
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or not output.is_floating_point():
        return None
    return output


def _is_saturated(rows: Tensor | None) -> bool:
    """Return whether all values are 0 or 1, and both occur, as a sigmoid of large numbers gives."""
    if rows is None:
        return False
    is_zero = rows.abs() < _SUM_TOLERANCE
    is_one = (rows - 1).abs() < _SUM_TOLERANCE
    return bool((is_zero | is_one).all() and is_zero.any() and is_one.any())


def _ends_in_bounded_operation(output: Tensor | None) -> bool:
    """Return whether the last operation of a network, by its graph, gives values in [0, 1].

    Values alone do not show that: untrained networks give small numbers of any sign.
    """
    if output is None:
        return False
    node = output.grad_fn
    for _ in range(_MAX_STEPS):
        if node is None:
            return False
        name = node.name().partition("Backward")[0]
        if name not in _RESHAPING:
            return name in _BOUNDED
        node = node.next_functions[0][0]
    return False


def _description(rows: Tensor, found: str) -> str:
    if found == "logits":
        sums = ", ".join(f"{float(total):.3g}" for total in rows.detach().sum(dim=1)[:3])
        return f"logits (its rows sum to {sums})"
    if found == "sigmoid":
        return "values between 0 and 1 whose rows do not sum to 1"
    return found
