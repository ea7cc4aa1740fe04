"""Who says what one privacy unit is, and hooks that are spelt or placed so that nobody would ask them.

Guarantee: a fit's unit is the one that `DifferentialPrivacy.unit`, the data module or the train dataset
declares; where two declare one they agree; where nobody does it is `record` and every report says that this
was assumed. Nothing here reads a row.
"""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from torch.utils.data import DataLoader, Subset

from lightning_dp.privacy.units import PrivacyUnit, UnitName

ASSUMED = "record, assumed: nobody declared the unit"

_ON_DATA = (
    "privacy_unit",
    "synthetic_units",
    "synthetic_items",
    "validation_is_public",
    "dataset_id",
    "content_pieces",
)
_ON_MODULE = ("preparations", "rows_per_example", "read_train_set")
# Similarity, by difflib, from which a name is taken for a hook that was meant.
_NEAR = dict.fromkeys((*_ON_DATA, *_ON_MODULE), 0.82) | {"dataset_id": 0.88, "validation_is_public": 0.75}
_OURS = ("torch", "torchvision", "lightning", "lightning_fabric", "lightning_dp", "builtins", "abc", "typing")


def find_unit(
    loader: DataLoader,
    *,
    datamodule: object | None,
    module: object,
    unit: PrivacyUnit | UnitName | None = None,
    dataset: str | None = None,
) -> PrivacyUnit:
    """The unit of a fit, with as many units as the train dataset has items.

    Args:
        loader: the train loader; of its dataset only the length is asked.
        datamodule: of the fit, or None.
        module: of the fit; it is no place to declare a unit.
        unit: what the callback was given.
        dataset: the ledger's name for the data where the callback was given one.

    Raises:
        ValueError: a hook is misspelt, in the wrong place or wrong itself, two declarations differ, or the
            count of units is not that of the items.
    """
    data = loader.dataset
    _check_spelling(datamodule, data, module, said={"privacy_unit": unit, "dataset_id": dataset})
    counted = _length(data)
    declared = [
        (f"{type(one).__name__}.privacy_unit()", _ask(one))
        for one in (datamodule, data)
        if one is not None and _has(one, "privacy_unit")
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
    (place, chosen), *others = declared
    for other_place, other in others:
        for field in ("name", "rows_per_unit"):
            if getattr(chosen, field) != getattr(other, field):
                raise ValueError(
                    f"{place} declares {field}={getattr(chosen, field)!r} and {other_place} "
                    f"{field}={getattr(other, field)!r}: one fit has one privacy unit, so let them agree"
                )
    for where, one in declared:
        if one.num_units != counted:
            raise ValueError(
                f"{where} declares {one.num_units} units and the train dataset has {counted} "
                "items: each item must be exactly one unit"
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
        if source is None or not _has(source, "dataset_id"):
            continue
        name = getattr(source, "dataset_id")  # noqa: B009  a property may fail, and must then be heard
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
        if source is not None and _has(source, "content_pieces"):
            return iter(getattr(source, "content_pieces")())  # noqa: B009
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


def _has(source: object, name: str) -> bool:
    # Statically: a property that fails with an AttributeError is there all the same.
    try:
        inspect.getattr_static(source, name)
    except AttributeError:
        return hasattr(source, name)
    return True


def _ask(source: object) -> PrivacyUnit:
    place = f"{type(source).__name__}.privacy_unit"
    try:
        hook: Any = getattr(source, "privacy_unit")  # noqa: B009
        if not callable(hook):
            raise ValueError(
                f"{place} is {_short(hook)} and no method; write 'def privacy_unit(self) -> PrivacyUnit'"
            )
        unit = hook()
    except (TypeError, AttributeError, KeyError, LookupError) as error:
        raise ValueError(
            f"{place} can't be asked ({type(error).__name__}: {error}); it must take no argument and return "
            "a PrivacyUnit"
        ) from error
    if not isinstance(unit, PrivacyUnit):
        if inspect.iscoroutine(unit):
            unit.close()
        raise ValueError(f"{place}() returns {_short(unit)}; it must return a lightning_dp.PrivacyUnit")
    return unit


def _of_what_is_wrapped(data: object, *, counted: int, said: bool) -> list[tuple[str, PrivacyUnit]]:
    """What a dataset inside of the train dataset declares, where that still holds for the whole."""
    inner = data
    while type(inner) is Subset and not _has(inner, "privacy_unit"):
        inner = inner.dataset
    if inner is not data and _has(inner, "privacy_unit"):
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
        if _has(one, "privacy_unit"):
            raise ValueError(
                f"the train dataset {type(data).__name__} is made of {type(one).__name__}, which declares a "
                "privacy_unit() that need not hold for the whole: declare the unit of the whole by "
                f"{type(data).__name__}.privacy_unit() or privacy.unit"
            )
    return []


def inner_datasets(data: object) -> Iterator[object]:
    """Everything with items that a dataset keeps in its attributes, at any depth; not itself."""
    seen, waiting = {id(data)}, [data]
    while waiting:
        held = getattr(waiting.pop(), "__dict__", {})
        for value in held.values():
            for one in value if isinstance(value, list | tuple) and len(value) < 1000 else (value,):
                if id(one) not in seen and hasattr(type(one), "__getitem__") and hasattr(one, "__dict__"):
                    seen.add(id(one))
                    waiting.append(one)
                    yield one


def _length(data: object) -> int:
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"the train dataset {type(data).__name__} has no length, so its units can't be sampled: give it "
            "__len__, the number of its items"
        ) from error


# --- spelling ---------------------------------------------------------------------------------------


def _check_spelling(datamodule: object | None, data: object, module: object, *, said: dict[str, Any]) -> None:
    """Raise ValueError where something looks like a hook that nobody will ask."""
    silent = {hook for hook, value in said.items() if value is not None}
    places = [
        *((one, _ON_DATA, "the LightningModule") for one in (datamodule, data) if one is not None),
        *((one, _ON_DATA, "the LightningModule") for one in inner_datasets(data)),
        (module, _ON_MODULE, "the data module or the train dataset"),
    ]
    for place, own, elsewhere in places:
        names = set(_public_names(place))
        for hook in _NEAR:
            if hook in names and hook not in own and hook not in silent:
                raise ValueError(
                    f"{type(place).__name__}.{hook} is in the wrong place, where nobody asks it: move it to "
                    f"{elsewhere}"
                )
        there = silent | {hook for hook in own if _has(place, hook)}
        for name in sorted(names - set(_NEAR)):
            likeness = {
                hook: difflib.SequenceMatcher(None, name.lower(), hook).ratio()
                - (near if hook in own else max(near, 0.9))
                for hook, near in _NEAR.items()
                if hook not in there
            }
            hook = max(likeness, key=lambda one: likeness[one], default="")
            if hook and likeness[hook] >= 0:
                raise ValueError(
                    f"{type(place).__name__}.{name} is nothing that anybody asks for: if it is meant as "
                    f"the hook {hook}{'' if hook in own else f' of {elsewhere}'}, name it so; if not, "
                    "give it a name of its own"
                )


def _public_names(place: object) -> Iterator[str]:
    """Names that the classes of the user and the instance define, not those of torch or Lightning."""
    for kind in type(place).__mro__:
        if kind.__module__.partition(".")[0] not in _OURS:
            yield from (name for name in vars(kind) if not name.startswith("_"))
    held = getattr(place, "__dict__", {})
    yield from (name for name in held if not name.startswith("_"))
    for inside in ("_parameters", "_buffers", "_modules"):
        yield from held.get(inside, ())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
