'''Where the made-up units of preflight come from; no private value is ever read for them.

The data module, the data set or the callback says best what an item looks like::

    def synthetic_items(self, num_items: int) -> list[tuple[Tensor, int]]:
        """Made-up items as __getitem__ returns them, from public facts only."""
        return [(torch.rand(3, 32, 32) * 2 - 1, number % self.num_classes) for number in range(num_items)]

Items, one a unit, go through the loader's own `collate_fn`. Values should be possible ones and differ between
units: other labels, other lengths, other gaps. Other values than these are tried as well.

A collated batch may be given instead (`synthetic_units(num_units)`: units in order, `rows_per_unit`
consecutive rows each). It is cut. A `collate_fn` of one's own is tried where it makes such batches of entries
of them, or of items that the data set tells by itself; else it would not be seen by any check.

Without either, data sets that tell shapes and dtypes are asked (`known_items`). A model's
`example_input_array` is the input of `forward`, not a batch.
'''

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from lightning_dp.callbacks.known_items import asked_for_items, known_items
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.preflight import NUM_UNITS, Finding, MadeUp, MadeUpItems, MadeUpUnits
from lightning_dp.privacy.preflight.made_up import collating
from lightning_dp.protocols import MakesItems, MakesUnits, provides

Source = Callable[[int], Any]
"""From a number of units to as many made-up items, or to a collated batch of them."""


def made_up_units(
    trainer: Trainer,
    loader: DataLoader[Any],
    *,
    rows_per_unit: int,
    synthetic_items: Source | None = None,
    synthetic_units: Source | None = None,
) -> tuple[MadeUp | None, list[Finding]]:
    """Units to try a step on, and what could not be looked at.

    Asked in this order: the callback's two arguments, the data module's and the data set's `synthetic_items`,
    their `synthetic_units`, then what a data set tells by itself.
    """
    datamodule = datamodule_of(trainer)
    assert loader.collate_fn is not None
    try:
        items = _items(datamodule, loader, given=synthetic_items, batch_is_given=synthetic_units is not None)
        if items is not None:
            return MadeUpItems(items, collate=loader.collate_fn, rows_per_unit=rows_per_unit), []
        source = _source(datamodule, loader, given=synthetic_units)
        if source is None:
            return None, [_untold(loader, place=type(datamodule or loader.dataset).__name__)]
        units = MadeUpUnits.of(source, num_units=NUM_UNITS, rows_per_unit=rows_per_unit)
    except ValueError as error:
        return None, [
            Finding(
                code="unchecked",
                place=type(datamodule or loader.dataset).__name__,
                problem=f"gives no made-up units to try training_step on: {error}",
                fix=_method(loader.dataset, to="the data module or data set"),
            )
        ]
    if loader.collate_fn is default_collate:
        return units, []
    told: list[Any] | None = None
    with suppress(ValueError):  # entries that could be anything
        told = known_items(loader.dataset, num_items=NUM_UNITS)
    for items in ([units.item(unit) for unit in range(NUM_UNITS)], told):
        if items is not None and collating(units, items, loader.collate_fn):
            return MadeUpItems(items, collate=loader.collate_fn, rows_per_unit=rows_per_unit), []
    return units, [
        Finding(
            code="unchecked",
            place=f"collate_fn {getattr(loader.collate_fn, '__qualname__', loader.collate_fn)!r}",
            problem="makes batches of items, and synthetic_units(num_units) gives a batch without it",
            fix=_method(loader.dataset, to="the data module or data set"),
        )
    ]


def _items(
    datamodule: Any, loader: DataLoader[Any], *, given: Source | None, batch_is_given: bool
) -> list[Any] | None:
    if given is not None:
        return asked_for_items(given, NUM_UNITS, of="privacy")
    if batch_is_given:
        return None
    if provides(datamodule, MakesItems):
        return asked_for_items(datamodule.synthetic_items, NUM_UNITS, of=type(datamodule).__name__)
    if provides(_inner(loader.dataset), MakesItems):
        return known_items(loader.dataset, num_items=NUM_UNITS)
    if any(provides(one, MakesUnits) for one in (datamodule, _inner(loader.dataset))):
        return None
    return known_items(loader.dataset, num_items=NUM_UNITS)


def _source(datamodule: Any, loader: DataLoader[Any], *, given: Source | None) -> Source | None:
    if given is not None:
        sources = [("privacy", given)]
    else:
        asked = (datamodule, _inner(loader.dataset))
        sources = [(type(one).__name__, one.synthetic_units) for one in asked if provides(one, MakesUnits)]
    if not sources:
        return None
    name, source = sources[0]

    def units(num_units: int) -> Any:
        try:
            return source(num_units)
        except Exception as error:
            raise ValueError(f"{name}.synthetic_units fails: {error!r}") from error

    return units


def _inner(dataset: Any) -> Any:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def _untold(loader: DataLoader[Any], *, place: str) -> Finding:
    dataset = _inner(loader.dataset)
    return Finding(
        code="unchecked",
        place=place,
        problem=(
            "gives no made-up units to try training_step on, as nothing says what an item of "
            f"{type(dataset).__name__} looks like without reading one"
        ),
        fix=_method(dataset, to=f"class {type(dataset).__name__}")
        + " (or synthetic_units(num_units), a collated batch)",
    )


def _method(dataset: Any, *, to: str) -> str:
    return (
        f"add to {to}: def synthetic_items(self, num_items): return [{_example(_inner(dataset))} "
        "for i in range(num_items)], items as __getitem__ returns them, or give DifferentialPrivacy such a "
        "function as synthetic_items"
    )


def _example(dataset: Any) -> str:
    """An item in Python, by what `__getitem__` says it returns."""
    try:
        returned = inspect.signature(type(dataset).__getitem__, eval_str=True).return_annotation
    except (AttributeError, NameError, TypeError, ValueError):
        returned = None
    parts = get_args(returned) if getattr(returned, "__origin__", returned) is tuple else ()
    if parts and all(part in _PLAIN for part in parts):
        return f"({', '.join(_PLAIN[part] for part in parts)})"
    if returned in _PLAIN:
        return _PLAIN[returned]
    return "(torch.rand(3, 32, 32), i % 10)"


_PLAIN: dict[Any, str] = {
    Tensor: "torch.rand(3, 32, 32)",
    int: "i % 10",
    float: "i / 10",
    bool: "i % 2 == 0",
    str: "f'made up {i}'",
}
