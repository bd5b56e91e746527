"""Experiments: a comparison on a machine with a GPU, without Kedro, and one with another tool."""
