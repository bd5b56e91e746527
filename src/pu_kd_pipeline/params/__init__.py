"""Typed parameter blocks, one per conf/<environment>/parameters_<stage>.yml.

Kedro checks them before any node runs. Every number lives in the configuration; the blocks state
type, range and meaning. An unknown key is refused by name. Nothing here knows Kedro, and nothing
imports torch.
"""
