"""Clipping functions: unit norms in, factors out.

Every function keeps the whole contribution of one unit at ℓ2 norm ≤ max_grad_norm, so the
sensitivity under add/remove adjacency is max_grad_norm for all of them and noise of standard
deviation noise_multiplier · max_grad_norm is right whichever is chosen.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class ClippingFunction(ABC):
    """Maps the norms of one unit's gradient, per group of parameters, to factors in [0, ∞)."""

    @abstractmethod
    def partition(self, names: Sequence[str]) -> list[int]:
        """The group of each named parameter, as integers 0 … G−1 with none left out."""

    @abstractmethod
    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        """Factors for each unit and group.

        Args:
            norms: (U, G) fp64, finite, ≥ 0: of a crafted unit anything from 1e-90 to 1e38.
            max_grad_norm: C > 0.

        Returns:
            (U, G), finite and ≥ 0, with Σ_g (factor · norm)² ≤ C² for every unit; what exceeds it by more
            than rounding is refused when it happens.
        """


def _limit(norms: Tensor, thresholds: Tensor | float) -> Tensor:
    """min(1, threshold / norm), 1 at norm 0."""
    return torch.clamp(thresholds / norms.clamp_min(torch.finfo(norms.dtype).tiny), max=1.0)


class Flat(ClippingFunction):
    """One norm over all parameters: g · min(1, C / ‖g‖). Abadi et al. 2016, arXiv 1607.00133, Alg. 1."""

    def partition(self, names: Sequence[str]) -> list[int]:
        return [0] * len(names)

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return _limit(norms, max_grad_norm)


class Automatic(ClippingFunction):
    """No threshold to tune: g · C / (‖g‖ + stability). AUTO-S of Bu et al. 2023, arXiv 2206.07136, Eq. 4.2.

    Every unit contributes almost C, whatever its norm; max_grad_norm only scales the learning rate.

    Args:
        stability: γ > 0, in units of the gradient's norm; keeps small gradients smaller than large ones.
    """

    def __init__(self, *, stability: float = 0.01) -> None:
        if not stability > 0:
            raise ValueError(f"stability={stability} must be > 0, else a zero gradient is divided by zero")
        self.stability = stability

    def partition(self, names: Sequence[str]) -> list[int]:
        return [0] * len(names)

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return max_grad_norm / (norms + self.stability)


class PerLayer(ClippingFunction):
    """Each layer (the parameters of one module) apart, at C / √layers each. He et al. 2022, arXiv 2212.01539.

    Equal shares of C²: the contributions of all layers together have norm ≤ √(Σ C²/layers) = C.
    """

    def partition(self, names: Sequence[str]) -> list[int]:
        layers: dict[str, int] = {}
        return [layers.setdefault(name.rpartition(".")[0], len(layers)) for name in names]

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return _limit(norms, max_grad_norm / norms.shape[1] ** 0.5)


class PerGroup(ClippingFunction):
    """Groups of parameters apart, for instance the condition's path apart from all else.

    Group g is clipped at C · √(share_g / Σ shares), so that the whole contribution has norm ≤ C.

    Args:
        groups: group name → regular expressions, searched for in parameter names ("^net\\.cond\\.").
            A name belongs to the first group with a match, else to "other".
        shares: group name → share > 0 of C²; 1 where none is given. May name "other".
    """

    def __init__(
        self, *, groups: Mapping[str, Sequence[str]], shares: Mapping[str, float] | None = None
    ) -> None:
        if not groups:
            raise ValueError("groups is empty: name at least one, or use Flat")
        unknown = set(shares or {}) - set(groups) - {"other"}
        if unknown:
            raise ValueError(f"shares names {sorted(unknown)}, which groups does not: {sorted(groups)}")
        if any(not share > 0 for share in (shares or {}).values()):
            raise ValueError(f"shares={dict(shares or {})}: every share must be > 0")
        self._patterns = {
            name: [re.compile(p) for p in ([patterns] if isinstance(patterns, str) else patterns)]
            for name, patterns in groups.items()
        }
        self._share_of = dict(shares or {})
        self._order: list[str] = []

    def partition(self, names: Sequence[str]) -> list[int]:
        """Raises ValueError where a group matches no parameter (a typo would clip nothing apart)."""
        found = [self._group_of(name) for name in names]
        for group in self._patterns:
            if group not in found:
                patterns = [p.pattern for p in self._patterns[group]]
                raise ValueError(f"groups[{group!r}]={patterns} matches no trainable parameter")
        self._order = [g for g in [*self._patterns, "other"] if g in found]
        return [self._order.index(group) for group in found]

    def _group_of(self, name: str) -> str:
        for group, patterns in self._patterns.items():
            if any(pattern.search(name) for pattern in patterns):
                return group
        return "other"

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        if len(self._order) != norms.shape[1]:
            raise RuntimeError("partition() was not asked before factors()")
        shares = torch.tensor([self._share_of.get(g, 1.0) for g in self._order], device=norms.device)
        return _limit(norms, max_grad_norm * (shares / shares.sum()).sqrt())
