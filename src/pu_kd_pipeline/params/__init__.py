"""Typed parameter blocks: one file per conf/<environment>/parameters_<stage>.yml, checked by Kedro before any node runs.

Every number lives in the configuration; the blocks state type, range and meaning. An unknown key is refused by name.
Nothing here knows Kedro, and nothing imports torch.
"""
