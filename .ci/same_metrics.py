"""Compare two metrics.json files: all numbers except latencies must be equal."""

import json
import sys
from pathlib import Path


def numbers(tree: object, prefix: str = "") -> dict[str, object]:
    """Return dotted key -> leaf, without latencies."""
    if isinstance(tree, dict):
        leaves: dict[str, object] = {}
        for key, value in tree.items():
            leaves.update(numbers(value, f"{prefix}.{key}"))
        return leaves
    if "latency" in prefix:
        return {}
    return {prefix: tree}


def numbers_of_file(path: str) -> dict[str, object]:
    """Return the numbers of a metrics.json file."""
    return numbers(json.loads(Path(path).read_text(encoding="utf-8")))


first = numbers_of_file(sys.argv[1])
second = numbers_of_file(sys.argv[2])
different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
print(f"{len(first)} numbers, {len(different)} of them different")
for name in different:
    print(f"  {name}: {first.get(name)} and {second.get(name)}")
sys.exit(bool(different))
