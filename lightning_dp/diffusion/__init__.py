"""Noise schedules, what a network predicts, objectives and samplers."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
