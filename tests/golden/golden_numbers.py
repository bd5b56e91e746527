"""The numbers of golden runs: how they are summarized, stored in a file, and compared with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import nn

GOLDEN_FILE = Path(__file__).with_name("golden_losses.json")

# One machine repeats its numbers to the last bit, and torch 2.11 and 2.13 agree to it. Other vector
# units sum float32 in another order: without AVX-512, AVX2 or oneDNN, no number moved by more than
# 3e-6 of its column's largest. A loss scaled by 1.001 moves many by more than 1e-4.
RELATIVE_TOLERANCE = 1e-5
# Heads read features stored as float16: one that differs in its seventh digit may round to the
# neighboring float16, 5e-4 away. Without AVX2 that moved held-out scores by 4e-5.
STORED_FEATURES_TOLERANCE = 1e-4
SIGNIFICANT_DIGITS = 8

Columns = dict[str, list[float]]
"""The numbers of one run: a history's columns, and what is measured on the trained model."""


# --- what is recorded -----------------------------------------------------------------------------


def history_columns(history: pd.DataFrame) -> Columns:
    """Return every column of a history, truth values as 0 and 1."""
    columns: Columns = {}
    for name in history.columns:
        values = history[name].astype(float)
        columns[str(name)] = values.tolist()
    return columns


def model_columns(module: nn.Module, *probe_shape: int) -> Columns:
    """Return sum and L2 norm of the parameters, and the module's outputs for fixed inputs.

    The outputs show what sums cannot: BatchNorm's statistics, signs, permuted weights.
    """
    parameters = module.parameters()
    flat = [parameter.detach().flatten() for parameter in parameters]
    # Sums in float64, so that rounding errors do not add up over many parameters.
    weights = torch.cat(flat).double()
    weights_sum = weights.sum().item()
    weights_norm = weights.norm().item()

    generator = torch.Generator().manual_seed(7)
    probes = torch.randn(*probe_shape, generator=generator)
    module.eval()
    with torch.no_grad():
        outputs = module(probes)

    return {
        "weights (sum, norm)": [weights_sum, weights_norm],
        "outputs": outputs.flatten().tolist(),
    }


# --- the file -------------------------------------------------------------------------------------


def read_golden() -> dict[str, Columns]:
    """Return the numbers of all runs as they were recorded; none where there is no file."""
    if not GOLDEN_FILE.exists():
        return {}
    text = GOLDEN_FILE.read_text(encoding="utf-8")
    golden: dict[str, Columns] = json.loads(text)
    return golden


def write_golden(golden: Mapping[str, Columns]) -> None:
    """Write the file with one line per column, so that a diff reads like a table."""
    blocks = []
    for run, columns in golden.items():
        lines = []
        for name, values in columns.items():
            key = json.dumps(name)
            numbers = json.dumps(values)
            line = f"    {key}: {numbers}"
            lines.append(line)

        key = json.dumps(run)
        body = ",\n".join(lines)
        block = f"  {key}: {{\n{body}\n  }}"
        blocks.append(block)

    text = ",\n".join(blocks)
    document = f"{{\n{text}\n}}\n"
    GOLDEN_FILE.write_text(document, encoding="utf-8")


def rounded(columns: Columns) -> Columns:
    """Return the columns with the digits that float32 has, and one more."""
    result: Columns = {}
    for name, values in columns.items():
        texts = [f"{value:.{SIGNIFICANT_DIGITS}g}" for value in values]
        result[name] = [float(text) for text in texts]
    return result


# --- comparison -----------------------------------------------------------------------------------


def differences(run: str, expected: Columns, actual: Columns, tolerance: float) -> list[str]:
    """Return one sentence for each number of a run that is outside the tolerance.

    `tolerance` is relative to the largest number of a column.
    """
    found: list[str] = []
    names = expected.keys() | actual.keys()
    for name in sorted(names):
        where = f"run {run!r}, column {name!r}"
        if name not in actual:
            found.append(f"{where}: the run no longer gives it")
        elif name not in expected:
            found.append(f"{where}: {GOLDEN_FILE.name} does not have it")
        else:
            before = expected[name]
            now = actual[name]
            found += record_differences(where, before, now, tolerance)
    return found


def record_differences(
    where: str,
    expected: list[float],
    actual: list[float],
    tolerance: float,
) -> list[str]:
    """Return one sentence for each record of a column that is outside the tolerance."""
    if len(actual) != len(expected):
        difference = f"{where}: expected {len(expected)} records, got {len(actual)}"
        return [difference]

    # A loss close to zero is a difference of larger numbers and has their rounding error, so the
    # scale is the column's largest value and not its own.
    magnitudes = [abs(value) for value in expected]
    scale = max(magnitudes)
    allowed = tolerance * scale

    found = []
    pairs = zip(expected, actual, strict=True)
    for record, (before, now) in enumerate(pairs, start=1):
        error = abs(now - before)
        # False where a number is nan: a run that diverges is a difference.
        is_close = error <= allowed
        if not is_close:
            found.append(f"{where}, record {record}: expected {before:.8g}, got {now:.8g}")
    return found
