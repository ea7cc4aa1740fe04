"""How a population evolves: public choices."""

from dataclasses import dataclass
from typing import Literal, get_args

Selection = Literal["sample", "rank"]


@dataclass(frozen=True, kw_only=True)
class Generations:
    """How a population evolves; public choices, none of which changes ε but the number of iterations.

    Lin et al. (arXiv 2305.15560) run lookahead 8, `keep_parents: false` and the rest as here; Aug-PE (Xie
    et al., arXiv 2403.01749) runs lookahead 0, selection `rank` and 4 or 7 children, the parent among them.

    Attributes:
        iterations: T ≥ 1 votes; the noise of each grows with √T.
        population: samples of one generation, spread evenly over the classes. Each should get several
            times the noise in votes: units ÷ population against σ.
        num_samples: size of the finished set, balanced over the classes.
        threshold: H ≥ 0, in standard deviations of the noise; taken off every count. `rank` ignores it.
        first_degree, last_degree: of variation, in [0, 1]; in equal steps from one to the other, the last
            one for the finished set.
        lookahead: k ≥ 0; a candidate stands for election with the mean embedding of k variations of itself,
            as its children will be; 0 is itself. Costs k · population variations an iteration.
        neighbours: k ≥ 1 nearest candidates that each private row votes for, with a weight of 1/√k each
            where a unit is one row.
        selection: of parents, `sample` for draws in proportion to their votes above the threshold, `rank`
            for those with the most votes, as many as `children` leaves room for.
        children: L ≥ 1 samples of the next generation that come of one choice of a parent; more than 1 for
            `rank`, by which everybody would be chosen otherwise.
        keep_parents: whether one of the children of a parent that was chosen is the parent itself. Off is
            Private Evolution's own rule, on is Aug-PE's.
    """

    iterations: int = 10
    population: int = 2000
    num_samples: int = 10_000
    threshold: float = 2.0
    first_degree: float = 1.0
    last_degree: float = 0.1
    lookahead: int = 8
    neighbours: int = 1
    selection: Selection = "sample"
    children: int = 1
    keep_parents: bool = True

    def __post_init__(self) -> None:
        for name in ("iterations", "population", "num_samples", "neighbours", "children"):
            if getattr(self, name) < 1:
                raise ValueError(f"generations.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.lookahead < 0:
            raise ValueError(
                f"generations.lookahead is {self.lookahead}; it counts variations and can't be negative: 0 "
                "takes each candidate as it is, 8 is the paper's."
            )
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(
                f"generations.threshold is {self.threshold}; it counts standard deviations of the noise and "
                "can't be negative: 2 is usual."
            )
        for name in ("first_degree", "last_degree"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"generations.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if self.selection not in get_args(Selection):
            raise ValueError(
                f"generations.selection is {self.selection!r}; it must be one of "
                f"{', '.join(get_args(Selection))}."
            )
        if self.selection == "rank" and self.children == 1:
            raise ValueError(
                "generations.children is 1, so that by selection rank every sample would be a parent: set it "
                "to 2 or more; Aug-PE takes 4 or 7."
            )

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError where a class would have fewer samples than it needs.

        Args:
            num_classes: 0 for data without classes.
        """
        if self.population < num_classes:
            raise ValueError(
                f"generations.population is {self.population}, but there are {num_classes} "
                "classes: each needs at least one sample."
            )
        smallest = self.population // max(1, num_classes)
        if self.neighbours > smallest:
            raise ValueError(
                f"generations.neighbours is {self.neighbours}, but a class has {smallest} samples to vote "
                "for: take fewer neighbours, or a larger generations.population."
            )

    def degree(self, iteration: int) -> float:
        """Of the variations that follow vote number `iteration`, from 1."""
        done = (iteration - 1) / (self.iterations - 1) if self.iterations > 1 else 1.0
        return self.first_degree + (self.last_degree - self.first_degree) * done
