"""What a node's outputs were made from, and whether that has changed: nothing here knows Kedro or torch."""
