"""Who says what one privacy unit is, and under which name the ledger keeps the account of the data.

Guarantee: a fit's unit is the one that `DifferentialPrivacy.unit`, the data module or the train dataset
declares; where two declare one they agree; where nobody does it is `record` and every report says that this
was assumed. Nothing here reads a row.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from torch.utils.data import Subset

from lightning_dp.fit.hook_names import check_hooks, inner_datasets, short
from lightning_dp.privacy.units import PrivacyUnit, UnitName
from lightning_dp.protocols import DeclaresUnit, HasContentPieces, NamesDataset, provides

ASSUMED = "record, assumed: nobody declared the unit"


def find_unit(
    data: object,
    *,
    datamodule: object | None,
    module: object,
    unit: PrivacyUnit | UnitName | None = None,
    dataset: str | None = None,
) -> PrivacyUnit:
    """The unit of a fit, with as many units as the train dataset has items.

    Args:
        data: the train dataset; only its length is asked.
        datamodule: of the fit, or None.
        module: of the fit; it is no place to declare a unit.
        unit: what the callback was given.
        dataset: the ledger's name for the data where the callback was given one.

    Raises:
        ValueError: a hook is misspelt, in the wrong place or wrong itself, two declarations differ, or the
            count of units is not that of the items.
    """
    check_hooks(datamodule, data, module, said={"privacy_unit": unit, "dataset_id": dataset})
    counted = _length(data)
    declared = [
        (f"{type(one).__name__}.privacy_unit()", _ask(one))
        for one in (datamodule, data)
        if provides(one, DeclaresUnit)
    ]
    if not declared:
        declared = _of_what_is_wrapped(data, counted=counted, said=unit is not None)
    if unit is not None:
        declared.insert(0, ("privacy.unit", _given(unit, counted=counted, others=declared)))
    if not declared:
        return PrivacyUnit(
            name="record",
            num_units=counted,
            description="one item of the train dataset; assumed, for nobody declared the unit",
            declared=False,
        )
    chosen = _agreed(declared)
    for where, one in declared:
        if one.num_units != counted:
            raise ValueError(
                f"{where} declares {one.num_units} units and the train dataset has {counted} "
                "items: each item must be exactly one unit"
            )
    return chosen


def unit_before_data(
    *, datamodule: object, module: object, unit: PrivacyUnit | UnitName | None, dataset: str | None
) -> PrivacyUnit | None:
    """The unit of a fit whose data is not read yet; None where only the number of items would tell it.

    Args:
        datamodule: declared, not opened.
        module, unit, dataset: as for `find_unit`.

    Raises:
        ValueError: as `find_unit`, but for what the train dataset says.
    """
    check_hooks(datamodule, None, module, said={"privacy_unit": unit, "dataset_id": dataset})
    declared = []
    if provides(datamodule, DeclaresUnit):
        declared = [(f"{type(datamodule).__name__}.privacy_unit()", _ask(datamodule))]
    if isinstance(unit, PrivacyUnit) or (unit is not None and declared):
        counted = declared[0][1].num_units if declared else 1
        declared.insert(0, ("privacy.unit", _given(unit, counted=counted, others=declared)))
    return _agreed(declared) if declared else None


def _agreed(declared: list[tuple[str, PrivacyUnit]]) -> PrivacyUnit:
    """The first of several declarations, (who, what) each, if the others don't contradict it."""
    (place, chosen), *others = declared
    for other_place, other in others:
        for field in ("name", "rows_per_unit"):
            own, its = getattr(chosen, field), getattr(other, field)
            if own != its:
                raise ValueError(
                    f"{place} declares {field}={own!r} and {other_place} {field}={its!r}: one fit has one "
                    "privacy unit, so let them agree"
                )
    return chosen


def dataset_name(data: object, *, datamodule: object | None, dataset: str | None) -> str:
    """The name under which the ledger keeps the account of a fit's data.

    Args:
        data: the train dataset.
        datamodule: of the fit, or None.
        dataset: what the callback was given.

    Raises:
        ValueError: a `dataset_id` is no text.
    """
    if dataset is not None:
        return dataset
    for source in (datamodule, data):
        if not provides(source, NamesDataset):
            continue
        name = source.dataset_id  # a property may fail, and is then heard
        if name is None:
            continue
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{type(source).__name__}.dataset_id is {name!r}; it must be the name, as text, under which "
                "the ledger keeps the account of this data"
            )
        return name
    return type(data if datamodule is None else datamodule).__name__


def content_pieces(data: object, *, datamodule: object | None) -> Iterator[bytes] | None:
    """What a fit's data is made of, by the hook `content_pieces` of the data module or the dataset; None
    without one.
    """
    for source in (datamodule, data):
        if source is not None and provides(source, HasContentPieces):
            return iter(source.content_pieces())
    return None


def _given(
    unit: PrivacyUnit | UnitName, *, counted: int, others: list[tuple[str, PrivacyUnit]]
) -> PrivacyUnit:
    if isinstance(unit, PrivacyUnit):
        return unit
    same = [one for _, one in others if one.name == unit]
    return same[0] if same else PrivacyUnit(name=unit, num_units=counted, description=_WORDS[unit])


_WORDS: dict[UnitName, str] = {
    "record": "one item of the train dataset",
    "window": "one window of a series, which says nothing about the person behind it",
    "user": "everything that one user gave",
}


def check_unit(unit: object) -> None:
    """Raise ValueError unless `unit` is what `DifferentialPrivacy.unit` may be."""
    if (
        unit is None
        or isinstance(unit, PrivacyUnit)
        or (isinstance(unit, str) and unit in get_args(UnitName))
    ):
        return
    raise ValueError(
        f"privacy.unit is {unit!r}; it must be one of {', '.join(get_args(UnitName))}, or a "
        "lightning_dp.PrivacyUnit"
    )


# --- asking -----------------------------------------------------------------------------------------


def _ask(source: DeclaresUnit) -> PrivacyUnit:
    place = f"{type(source).__name__}.privacy_unit"
    try:
        unit: object = source.privacy_unit()
    except (TypeError, AttributeError, KeyError, LookupError) as error:
        raise ValueError(
            f"{place} can't be asked ({type(error).__name__}: {error}); it must take no argument and return "
            "a PrivacyUnit"
        ) from error
    if not isinstance(unit, PrivacyUnit):
        if inspect.iscoroutine(unit):
            unit.close()
        raise ValueError(f"{place}() returns {short(unit)}; it must return a lightning_dp.PrivacyUnit")
    return unit


def _of_what_is_wrapped(data: object, *, counted: int, said: bool) -> list[tuple[str, PrivacyUnit]]:
    """What a dataset inside of the train dataset declares, where that still holds for the whole."""
    inner = data
    while type(inner) is Subset and not provides(inner, DeclaresUnit):
        inner = inner.dataset
    if inner is not data and provides(inner, DeclaresUnit):
        unit = _ask(inner)
        if unit.num_units != _length(inner):
            raise ValueError(
                f"{type(inner).__name__}.privacy_unit() declares {unit.num_units} units and it has "
                f"{_length(inner)} items: each item must be exactly one unit"
            )
        return [(f"{type(inner).__name__}.privacy_unit()", replace(unit, num_units=counted))]
    if said:
        return []
    for one in inner_datasets(data):
        if provides(one, DeclaresUnit):
            raise ValueError(
                f"the train dataset {type(data).__name__} is made of {type(one).__name__}, which declares a "
                "privacy_unit() that need not hold for the whole: declare the unit of the whole by "
                f"{type(data).__name__}.privacy_unit() or privacy.unit"
            )
    return []


def _length(data: object) -> int:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"the train dataset {type(data).__name__} has no length, so its units can't be sampled: give it "
            "__len__, the number of its items"
        ) from error
