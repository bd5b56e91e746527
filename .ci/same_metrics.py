"""Compare two metrics.json: all numbers but latencies must be the same, or differ in the last bit.

Numbers that differ in the last bit are printed, too: the images have another C library.
`python same_metrics.py FIRST SECOND` prints the differences; the exit status is 1 if there are any.
"""

import json
import math
import sys
from pathlib import Path


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
    """Return whether two values are the same, or neighboring floating-point numbers."""
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= math.ulp(max(abs(first), abs(second)))
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
        if first.get(name) != second.get(name):
            print(f"  {name}: {first.get(name)} and {second.get(name)}")
        if not is_same(first.get(name), second.get(name)):
            different.append(name)
    print(f"{len(first)} numbers, {len(different)} of them different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
