"""Sweeps in W&B's YAML: read, costed, and run with no server or handed to agents."""
