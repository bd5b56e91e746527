"""One package per stage (`nodes.py`, `pipeline.py`), and `full`, which connects them."""
