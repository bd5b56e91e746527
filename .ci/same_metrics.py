"""Compare two metrics.json: all numbers but latencies must be the same, up to their last digits.

The images have another C library, whose elementary functions may round the last bit otherwise.
`python same_metrics.py FIRST SECOND` prints the differences; the exit status is 1 if there are any.
"""

import json
import math
import sys
from pathlib import Path

# A thousandfold of what rounding once leaves, and far below what any other difference makes.
RELATIVE_TOLERANCE = 1e-12


def numbers(tree: object, prefix: str = "") -> dict[str, object]:
    """Return dotted key -> value, without latencies."""
    # How long things took differs from run to run.
    if "latency" in prefix:
        return {}
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for key, value in tree.items():
        found.update(numbers(value, f"{prefix}.{key}"))
    return found


def is_same(first: object, second: object) -> bool:
    """Return whether two values are the same, or numbers that differ in their last digits."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=RELATIVE_TOLERANCE)
    return first == second


def read_numbers(path: str) -> dict[str, object]:
    """Return the numbers of a file."""
    text = Path(path).read_text(encoding="utf-8")
    return numbers(json.loads(text))


def main(first_path: str, second_path: str) -> int:
    """Print the differences and return the exit status."""
    first = read_numbers(first_path)
    second = read_numbers(second_path)
    different = []
    for name in sorted(first.keys() | second.keys()):
        if not is_same(first.get(name), second.get(name)):
            different.append(name)
    print(f"{len(first)} numbers, {len(different)} of them different")
    for name in different:
        print(f"  {name}: {first.get(name)} and {second.get(name)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
