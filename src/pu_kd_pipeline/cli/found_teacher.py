"""The block `teacher` from what a user gives: a weights file, a model folder, or a factory."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pu_kd_pipeline.cli.environment_facts import FoundLabels
from pu_kd_pipeline.cli.found_sources import GivenPaths
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.cards import CARD, WEIGHTS
from pu_kd_pipeline.storage.atomic import remove_empty_folder

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.\w+)*:\w+")
_WEIGHTS_FOLDER = Path("data", "01_raw")
_DIGEST_LENGTH = 12
_COLORS = (1, 3)


@dataclass(frozen=True)
class TeacherOptions:
    """What the command line says of the teacher; None or empty: nothing.

    Attributes:
        teacher: weights file, model folder, or `package.module:function`.
        architecture: name or factory.
        architecture_options, input_keys, output_keys: texts KEY=VALUE.
        classes: names with commas, their number, or a text file with a name on each line.
        size_px: of the input.
        mean, std: one number, or one per color, with commas; fractions such as 127/255.
    """

    teacher: str
    architecture: str | None = None
    architecture_options: Sequence[str] = ()
    classes: str | None = None
    size_px: int | None = None
    mean: str | None = None
    std: str | None = None
    input_keys: Sequence[str] = ()
    output_keys: Sequence[str] = ()


@dataclass
class FoundTeacher:
    """The teacher of a new environment.

    Attributes:
        block: values of the block `teacher`; null where the card next to the weights has them.
        notes: what was taken from where, for the user.
        new_file: weights that were written for it, and are removed if the environment is not made.
    """

    block: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    new_file: Path | None = None

    def remove_new_file(self) -> None:
        """Remove the weights that were written, and their folder if nothing else is in it."""
        if self.new_file is None:
            return
        self.new_file.unlink(missing_ok=True)
        remove_empty_folder(self.new_file.parent)


def find_teacher(
    options: TeacherOptions, name: str, labels: FoundLabels | None, paths: GivenPaths
) -> FoundTeacher:
    """Return the teacher that the options describe.

    Args:
        options: of the command line.
        name: of the environment.
        labels: of the labeled images, which are the classes if no others are known.
        paths: how paths are read and written.

    Raises:
        InputError: what is needed can neither be found nor was given; all of it is named.
    """
    is_factory = bool(_FACTORY.fullmatch(options.teacher)) and not os.path.exists(
        paths.absolute(options.teacher)
    )
    folder = None
    weights = None
    if is_factory:
        if options.architecture is not None:
            raise InputError(
                f"--teacher: {options.teacher} is a factory, and --architecture another one: give "
                "the weights file to --teacher, or leave --architecture out"
            )
    else:
        folder, weights = _weights_of(options.teacher, paths)
    has_card = folder is not None and (folder / CARD).is_file()

    architecture = options.architecture
    if is_factory:
        architecture = options.teacher
    found = FoundTeacher({})
    found.block = {
        "architecture": architecture,
        "architecture_options": key_values(options.architecture_options, "--architecture-option"),
        "weights": weights,
        "classes": _classes(options.classes, paths),
        "input": _input(options, folder if has_card else None),
        "taps": None,
        "output": key_values(options.output_keys, "--output") or None,
    }
    if found.block["classes"] is None and not has_card and labels is not None:
        found.block["classes"] = labels.classes
        found.notes.append(
            f"the classes are the labels of the labeled images {labels.order}: give --classes if "
            "the teacher's outputs have another order"
        )
    if not has_card:
        _check_complete(found.block, options, is_factory=is_factory)
    if is_factory:
        _write_factory_weights(found, name, paths)
    return found


def _weights_of(given: str, paths: GivenPaths) -> tuple[Path, str]:
    """Return the folder of the weights, and the parameter `weights`."""
    path = paths.absolute(given)
    # These functions take a name that is too long for one of no file.
    if os.path.isfile(path):
        return path.parent, paths.written(path)
    if not os.path.isdir(path):
        raise InputError(
            f"--teacher: there is no file or folder {given} (looked for {path}), and it is no "
            "factory `package.module:function`. Give the weights to --teacher and the name of the "
            "network to --architecture"
        )
    if not (path / WEIGHTS).is_file():
        raise InputError(
            f"--teacher: the folder {path} has no {WEIGHTS}: give the weights file itself"
        )
    return path, paths.written(path)


def _check_complete(block: dict[str, Any], options: TeacherOptions, *, is_factory: bool) -> None:
    missing = []
    if block["architecture"] is None:
        missing.append(
            "--architecture (a classifier of torchvision such as resnet18, one of ours, or your "
            "own factory package.module:function)"
        )
    if block["classes"] is None:
        missing.append("--classes (names in the order of the network's outputs)")
    known = block["input"] or {}
    for key, option in (("size_px", "--size"), ("mean", "--mean"), ("std", "--std")):
        if key not in known:
            missing.append(f"{option} (of the images that it was trained on)")
    if missing:
        what = f"no {CARD} is next to the weights {options.teacher}"
        if is_factory:
            what = f"a factory ({options.teacher}) does not state its input"
        raise InputError(f"{what}, so that these options are needed: {'; '.join(missing)}")


def _classes(given: str | None, paths: GivenPaths) -> list[str] | int | None:
    if given is None:
        return None
    names = _classes_of_file(given, paths)
    if names is None and given.isdecimal():
        return int(given)
    if names is None:
        names = [name.strip() for name in given.split(",")]
    if len(names) < 2 or "" in names:
        raise InputError(
            f"--classes: {given!r} gives {len(names)} classes: give names with commas, their "
            "number, or a text file with a name on each line"
        )
    return names


def _classes_of_file(given: str, paths: GivenPaths) -> list[str] | None:
    """Return the lines of a text file; None: the text that was given names no file."""
    try:
        path = paths.absolute(given)
    except InputError:  # a class may be called `~a`
        return None
    # A list of many names is too long for the name of a file, which this function accepts.
    if not os.path.isfile(path):
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise InputError(
            f"--classes: {path} is no text in UTF-8 (byte {exc.start}): save it as UTF-8"
        ) from exc
    except OSError as exc:
        raise InputError(f"--classes: {path} cannot be read ({exc.strerror})") from exc
    return [line.strip() for line in lines if line.strip()]


def _input(options: TeacherOptions, card_folder: Path | None) -> dict[str, Any] | None:
    """Return the keys of `teacher.input` that are known; None: those of the card."""
    given: dict[str, Any] = {}
    if options.size_px is not None:
        given["size_px"] = options.size_px
    for key in ("mean", "std"):
        text = getattr(options, key)
        if text is not None:
            given[key] = _numbers(text, f"--{key}")
    given |= key_values(options.input_keys, "--input")
    if not given:
        return None
    for key in ("mean", "std"):
        if key in given:
            given[key] = _number_list(given[key], f"--input {key}")
    if "channels" in given and given["channels"] not in _COLORS:
        raise InputError(
            f"--input channels: {given['channels']!r} is neither 1 (gray) nor 3 (color)"
        )
    if card_folder is not None:
        from pu_kd_pipeline.models.cards import ModelCard, read_card

        card = read_card(card_folder, ModelCard)
        given = {**card.input.model_dump(mode="json"), **given}
    if "mean" in given and "std" in given:
        given.setdefault("channels", max(len(given["mean"]), len(given["std"])))
        for key in ("mean", "std"):
            # One number for all colors.
            if len(given[key]) == 1 and given["channels"] in _COLORS:
                given[key] = given[key] * given["channels"]
    order = ("size_px", "channels", "mean", "std")
    return {key: given[key] for key in (*order, *given) if key in given}


def _number_list(value: Any, option: str) -> list[float]:
    """Return the numbers per color that a value of YAML stands for."""
    if isinstance(value, str):
        return _numbers(value, option)
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"{option}: {value!r} is not one number, or a list of numbers")
    return [float(number) for number in numbers]


def _numbers(text: str, option: str) -> list[float]:
    numbers = []
    for part in text.split(","):
        numerator, _, denominator = part.partition("/")
        try:
            numbers.append(float(numerator) / float(denominator or 1))
        except (ValueError, ZeroDivisionError) as exc:
            raise InputError(
                f"{option}: {text!r} is not one number, or one per color with commas, such as "
                "0.485,0.456,0.406 or 127/255"
            ) from exc
    return numbers


def key_values(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return the values of options KEY=VALUE, which are read as YAML."""
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InputError(f"{option}: {text!r} is not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        # The others: a date that does not exist, and a value that is nested too deeply.
        except (yaml.YAMLError, ValueError, RecursionError) as exc:
            raise InputError(f"{option}: the value of {text!r} is not YAML") from exc
    return found


def _write_factory_weights(found: FoundTeacher, name: str, paths: GivenPaths) -> None:
    """Store the weights that a factory's network has, so that runs depend on a file."""
    from pu_kd_pipeline.learning.loop import seeded
    from pu_kd_pipeline.learning.networks.build import build_network
    from pu_kd_pipeline.models.weights import save_weights, tensor_bytes

    block = found.block
    factory = block["architecture"]
    states = []
    n_classes = block["classes"]
    if not isinstance(n_classes, int):
        n_classes = len(n_classes)
    for seed in (0, 1):
        with seeded(seed):
            try:
                network = build_network(
                    factory, n_classes, block["input"]["channels"], block["architecture_options"]
                )
            except ValueError as exc:
                raise InputError(f"--teacher: {exc}") from exc
        tensors = network.state_dict()
        states.append({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()})
    first, second = states
    random = [key for key in first if not first[key].equal(second[key])]
    if random:
        raise InputError(
            f"--teacher: the factory {factory} returns a network with random weights (such as "
            f"{random[0]}): give the weights file to --teacher and the factory to --architecture"
        )
    folder = paths.project / _WEIGHTS_FOLDER / name
    digest = hashlib.sha256()
    for key, tensor in first.items():
        digest.update(key.encode())
        digest.update(tensor_bytes(tensor))
    # Named after its content: it never replaces the weights of another environment.
    file = folder / f"teacher-{digest.hexdigest()[:_DIGEST_LENGTH]}.safetensors"
    if not file.exists():
        found.new_file = file
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_weights({key: tensor.contiguous() for key, tensor in first.items()}, file)
        except BaseException:  # also if the user stops it
            found.remove_new_file()
            raise
    block["weights"] = paths.written(file)
    found.notes.append(
        f"the weights that the factory loads are stored in {paths.written(file)}: run this command "
        "again if they change"
    )
