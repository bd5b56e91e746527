"""The sections of a run's report: one module per section, which returns what its template shows."""
