"""Kedro hooks, one concern per module; nothing heavy is imported before it is needed."""
