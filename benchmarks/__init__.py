"""Commands that measure: each prints a table of what it saw, and none of them is a test."""
