"""A private score without noise: for fits without privacy, whose ε is ∞ in any case."""

from itertools import islice
from typing import Any

from torch import Tensor

from lightning_dp.adapters.scores.score import NormsFn, PrivateScore
from lightning_dp.lightning_internals import datamodule_of, train_loader_of
from lightning_dp.protocols import rows_per_unit_of


def exact_scores(
    score: PrivateScore, module: Any, *, norms: NormsFn, number: int, max_units: int | None
) -> Tensor:
    """(M,) sums over the train set of a fit without privacy, in its loader's order.

    Args:
        score: what each unit adds.
        module: a LightningModule in a fit.
        norms: measures gradient norms by matrix.
        number: of matrices that will be chosen.
        max_units: how many units are looked at; None is all.
    """
    loader = train_loader_of(module.trainer)
    rows = rows_per_unit_of(datamodule_of(module.trainer))
    most = None if max_units is None else -(-max_units // (loader.batch_size or 1))
    found = norms(islice(loader, most), rows_per_unit=rows)[:max_units]  # (U, M)
    return score.contributions(found, number=number).sum(dim=0)
