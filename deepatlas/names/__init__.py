"""Names of structures: when two of them mean the same structure."""
