"""Files that run each stage in its own container: Compose and Argo."""
