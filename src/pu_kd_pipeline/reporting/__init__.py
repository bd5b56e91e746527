"""What a person sees of a run: figures, tables, and one HTML page."""
