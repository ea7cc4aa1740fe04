"""By which rule each parameter is clipped and what that costs, in words: what following a step has shown.

Scope: for people. Engines go by `sites.py` and choose again with the tensors at hand, so that a rule named
here may still fall back to running its operator unit by unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# Registers the operators' rules.
import lightning_dp.privacy.clipping._book_keeping.functional_rules  # noqa: F401
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import _BROADCASTING, _JOINING, RULES
from lightning_dp.privacy.clipping.sites import Answer, PerUnit, Site, Sites

Cost = Literal["cheap", "one copy per unit", "loop"]

_WITH_RULE = {getattr(function, "__name__", str(function)) for function in RULES}
_ONLY_FIRST = ("conv2d", "group_norm")
_DIMENSIONS_OF_WEIGHT = {"linear": 1, "conv2d": 3, "embedding": 0, "group_norm": 1}  # in the input


@dataclass(frozen=True)
class Described:
    """How the gradients of a parameter come about unit by unit.

    Attributes:
        rule: in words.
        cost: `cheap` forms no per-unit gradient of a weight where that is dear; `one copy per unit` holds
            U of them; `loop` runs a module once a unit.
    """

    rule: str
    cost: Cost


def describe(shapes: Mapping[str, Sequence[int]], sites: Sites) -> dict[str, list[Described]]:
    """Every way in which each parameter meets units.

    Args:
        shapes: by name of the trainable parameters.
        sites: what was followed.

    Returns:
        By name; parameters that met no units are left out.
    """
    found: dict[str, list[Described]] = {}
    for site, answers in sites.answers.items():
        if site.operator == "call":
            continue
        for answer in answers:
            if any(answer.operands):
                rule = _described(site, answer, shapes)
                for name in site.parameters:
                    computed = rule.cost == "cheap" and name in sites.computed.get(site, ())
                    one = Described(f"{rule.rule}, on what is computed from it", "one copy per unit")
                    one = one if computed else rule
                    if one not in found.setdefault(name, []):
                        found[name].append(one)
    for path in sorted(sites.modules, key=len, reverse=True):  # the outermost has the last word
        names = [name for name in shapes if not path or name.startswith(f"{path}.")]
        found |= {name: [_alone(path, how) for how in sites.modules[path].values()] for name in names}
    return found


def _alone(path: str, how: PerUnit) -> Described:
    kind: Cost = "one copy per unit" if how.vectorised else "loop"
    manner = "vmap" if how.vectorised else "loop"
    return Described(f"inside '{path}', run per unit ({manner}): {' '.join(how.why.split())}", kind)


def _described(site: Site, answer: Answer, shapes: Mapping[str, Sequence[int]]) -> Described:
    operator = site.operator
    if operator in _BROADCASTING or operator in _JOINING:
        return Described(f"joined with units by {operator.strip('_')}", "one copy per unit")
    place = answer.operands[0] if answer.operands else None
    if operator == "scaled_dot_product_attention":
        return Described("mask of scaled_dot_product_attention, repeated for each unit", "one copy per unit")
    # A norm's weight has as many dimensions as it normalises.
    norm = max((len(shapes[name]) for name in site.parameters if name in shapes), default=1)
    last = _DIMENSIONS_OF_WEIGHT.get(operator, norm)
    applies = (
        operator in _WITH_RULE
        and place is not None
        and place.dim < site.ranks[0] - last
        and (operator not in _ONLY_FIRST or (place.dim, place.outer) == (0, 1))
    )
    if applies:
        return Described(f"{operator}: units in {place}", "cheap")
    return Described(f"operator {operator.strip('_')} unit by unit", "one copy per unit")
