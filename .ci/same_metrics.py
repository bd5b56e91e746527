"""Compare two metrics.json: everything but how long things took must be the same number."""

import json
import sys
from pathlib import Path


def numbers(tree: object, prefix: str = "") -> dict[str, object]:
    """Return dotted key -> leaf, without latencies."""
    if isinstance(tree, dict):
        return {
            k: v
            for key, value in tree.items()
            for k, v in numbers(value, f"{prefix}.{key}").items()
        }
    return {} if "latency" in prefix else {prefix: tree}


first, second = (
    numbers(json.loads(Path(path).read_text(encoding="utf-8"))) for path in sys.argv[1:]
)
different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
print(f"{len(first)} numbers, {len(different)} of them different")
for name in different:
    print(f"  {name}: {first.get(name)} and {second.get(name)}")
sys.exit(bool(different))
