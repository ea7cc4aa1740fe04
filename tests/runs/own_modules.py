"""Modules of one's own, which differ from the package's in their names alone."""

from lightning_dp import LatentDiffusion, TimeSeriesDiffusion


class MySeries(TimeSeriesDiffusion):
    """A user's subclass."""


class MyImages(LatentDiffusion):
    """A user's subclass."""
