"""What was found about every use of a parameter: where its other operands have units, and why that is known.

A site is an operator on certain parameters with operands of certain ranks. All its uses in a step have the
same answer, or are told apart by their order.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import final

from lightning_dp.privacy.batch_layout import BatchLayout
from lightning_dp.privacy.rows import UnitDim

Places = tuple[UnitDim | None, ...]

THE_STEP = "(the step)"
"""Stands among paths for code outside of all forwards; no module's path has such a name."""


class Total(Enum):
    """An output of a module that has no units any more."""

    MEAN = "the mean over units of what each of them gives"


@dataclass(frozen=True)
class Site:
    """Where parameters are used, or a module is called.

    Attributes:
        operator: the function's name, such as "linear", or "call".
        parameters: names of the parameters it got, or that its operands were computed from; for a call the
            module's path.
        ranks: of its other operands, in order.
    """

    operator: str
    parameters: tuple[str, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Where a use or a call has units.

    Attributes:
        operands: of each tensor that is no parameter; None where it is the same for all units.
        results: of each tensor that comes out of it.
    """

    operands: Places
    results: tuple[UnitDim | Total | None, ...]


@dataclass(frozen=True)
class PerUnit:
    """A module that is run for each unit by itself, because nothing smaller has units in and units out.

    Attributes:
        inputs: of each tensor among its arguments, flattened.
        outputs: of each tensor that it returns, flattened; None for a tensor that it was given or holds.
        vectorised: by torch.vmap; else one unit after the other.
        why: what in it can't be followed.
    """

    inputs: Places
    outputs: tuple[UnitDim | Total | None, ...]
    vectorised: bool
    why: str


class UnknownUse(RuntimeError):
    """A parameter is used where no followed step used it."""


@final
@dataclass
class Sites:
    """What following steps has shown.

    Attributes:
        answers: by site.
        modules: that are run per unit, by path and by the ranks of the tensors that a call gets.
        readers: by a module's path or THE_STEP, parameters of modules inside that its own code reads.
        layout: of the batches that were followed, where it is known.
        computed: by site, parameters that came as something computed from them; engines don't ask.
    """

    answers: dict[Site, list[Answer]] = field(default_factory=dict)
    modules: dict[str, dict[tuple[int, ...], PerUnit]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    layout: BatchLayout | None = None
    computed: dict[Site, set[str]] = field(default_factory=dict)
    _met: Counter[Site] = field(default_factory=Counter)

    def begin(self) -> None:
        """A step begins: uses are counted anew."""
        self._met.clear()

    def note(self, site: Site, answer: Answer, *, computed: Iterable[str] = ()) -> None:
        """One more use of a step that is followed."""
        self.answers.setdefault(site, []).append(answer)
        self.computed.setdefault(site, set()).update(computed)

    def mark(self) -> dict[Site, int]:
        """How much is known, to go back to."""
        return {site: len(answers) for site, answers in self.answers.items()}

    def back_to(self, mark: Mapping[Site, int]) -> None:
        """Forget what was noted since `mark`."""
        self.answers = {site: answers[: mark[site]] for site, answers in self.answers.items() if site in mark}

    def settle(self) -> None:
        """A step was followed to its end: sites whose uses all agree need no order.

        Raises:
            UnknownUse: a module that is run per unit is called on something else as well.
        """
        for path, hows in self.modules.items():
            for ranks, how in hows.items():
                answers = self.answers.get(Site("call", (path,), ranks), [])
                if any(answer.operands != how.inputs for answer in answers):
                    raise UnknownUse(
                        f"{path or 'the module'} is called with units at {_shown(answers)}, and has to be "
                        "run unit by unit: give each use a module of its own"
                    )
        for site, answers in self.answers.items():
            if all(answer == answers[0] for answer in answers):
                self.answers[site] = answers[:1]

    def join(self, other: "Sites") -> bool:
        """Take in what another step has shown.

        Returns:
            Whether modules are to be treated otherwise than before, so that an engine has to attach anew.

        Raises:
            UnknownUse: both know a site, and say something else about it.
        """
        for site, answers in other.answers.items():
            mine = self.answers.setdefault(site, answers)
            if mine != answers:
                raise UnknownUse(
                    f"{site.operator} uses {', '.join(site.parameters)} now on units at "
                    f"{_shown(answers)}, where another step had them at {_shown(mine)}: give each use a "
                    "module of its own"
                )
        for site, names in other.computed.items():
            self.computed.setdefault(site, set()).update(names)
        before = (copy.deepcopy(self.modules), dict(self.readers))
        for path, hows in other.modules.items():
            self.modules.setdefault(path, {}).update(hows)
        self.readers.update(other.readers)
        return before != (self.modules, self.readers)

    def look(self, site: Site) -> Answer:
        """The answer for the next use of `site`.

        Raises:
            UnknownUse: no step that was followed used it so.
        """
        answers = self.answers.get(site)
        if not self.answers:
            raise UnknownUse(
                f"{site.operator} uses {', '.join(site.parameters)}, and no step was followed for this "
                "engine: call engine.know(follow_rows(module, loss, batch, num_units=…)) before attach"
            )
        if answers is None:
            raise UnknownUse(
                f"{site.operator} uses {', '.join(site.parameters)} in a way that no step showed that was "
                "followed before: nobody knows where its units are. A branch that only some batches take "
                "needs made-up units that take it (synthetic_items, synthetic_units)"
            )
        if len(answers) == 1:
            return answers[0]
        number = self._met[site]
        self._met[site] += 1
        if number >= len(answers):
            raise UnknownUse(
                f"{site.operator} uses {', '.join(site.parameters)} both on units and on what has none, and "
                "more often than when it was followed (activation checkpointing?): give each use a module of "
                "its own"
            )
        return answers[number]


def _shown(answers: list[Answer]) -> str:
    return "; ".join(
        ", ".join("none" if place is None else str(place) for place in answer.operands) for answer in answers
    )
