"""Running only what is stale: what a node's outputs were made from, and whether that has changed."""
