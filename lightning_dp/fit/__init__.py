"""What a fit is, resolved once: its privacy unit, the name of its data, its plan and its releases.

Callbacks, sweeps, the run folder and adapters ask here, so that no two of them can answer differently.
"""
