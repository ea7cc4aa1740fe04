"""Saliency of public data, for the private choice to be compared with: free."""

from itertools import islice
from typing import Any, final

from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.score import FreeScore, NormsFn, PrivateScore
from lightning_dp.protocols import is_public, rows_per_unit_of


@final
class PublicScore(FreeScore):
    """Another score, without noise, of the train split of public data.

    Args:
        data: a data module whose attribute `public` says that no row of it is private, made for the same
            model as the private data.
        score: what each example adds; None for `GradNorm()`.
        num_batches: ≥ 1 of its train loader's batches that are looked at.

    Raises:
        ValueError: the data does not say that it is public.
    """

    def __init__(
        self, data: LightningDataModule, *, score: PrivateScore | None = None, num_batches: int = 8
    ) -> None:
        if not is_public(data):
            raise ValueError(
                f"PublicScore.data is a {type(data).__name__} that does not say it is public, so looking at "
                "it is not free: use a set whose data module has public = True, or a score that is paid for"
            )
        if num_batches < 1:
            raise ValueError(f"PublicScore.num_batches is {num_batches}, but it must be at least 1")
        self.data = data
        self.score = score or GradNorm()
        self.num_batches = num_batches

    def scores(self, *, matrices: int, number: int, norms: NormsFn) -> Tensor:
        self.data.prepare_data()
        self.data.setup("fit")
        loader: Any = self.data.train_dataloader()
        rows = rows_per_unit_of(self.data)
        found = norms(islice(loader, self.num_batches), rows_per_unit=rows)  # (U, M)
        return self.score.contributions(found, number=number).sum(dim=0)
