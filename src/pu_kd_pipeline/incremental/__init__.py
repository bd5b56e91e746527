"""Running only what changed: what each node was made from, and what differs now."""
