"""Short trainings before the long one: what can be gained, with which choice, and at what cost."""
