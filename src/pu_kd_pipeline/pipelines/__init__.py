"""One room per stage (`nodes.py`, `pipeline.py`), and `full`, which joins them."""
