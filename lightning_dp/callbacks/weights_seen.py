"""What weights have learnt from, remembered by the modules that hold them.

Importing this makes every fit of Lightning leave a mark on the module that it trains, private or not, and
on all modules inside of it. A mark goes where its module goes: with the instance, with copies and pickles,
and in the metadata of its state dict, thus in checkpoints and back by `load_state_dict`. Two methods of
others are wrapped for that: `Trainer.fit`, for fits that no callback of ours takes part in, and
`torch.nn.Module.load_state_dict`, which alone knows of both a state dict and its receiver. Parameters that
an optimizer steps outside of any fit, by a hook of torch's for all optimizers, are known to have seen
something.

Not seen: weights copied tensor by tensor or by a state dict that was rebuilt as a plain dict; copies of
what a loop other than Lightning's trained; weights trained where this was not imported.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_dp.protocols import NamesDataset, is_public, provides

_KEY = "lightning_dp_seen"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One data set that weights have seen.

    Attributes:
        dataset: its name, "" where nobody recorded it.
        public: whether its data module says by an attribute `public` that no row of it is private.
        statement: why it is public, in the words of whoever says so; "" where nobody does.
        ledger: [sequence number, hash] of an entry that the private run left in its ledger, or None.
        run: id of the private run, "" where it was none or nobody recorded it.
    """

    dataset: str
    public: bool = False
    statement: str = ""
    ledger: list[Any] | None = None
    run: str = ""


class _Marks:
    """The marks of one module: a hook of its `state_dict()`, and so a part of it that copies and pickles."""

    def __init__(self) -> None:
        self.origins: list[Origin] = []

    def __call__(
        self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]
    ) -> None:
        if self.origins:  # where torch keeps versions, beside the tensors
            local_metadata[_KEY] = [asdict(origin) for origin in self.origins]


def seen_by(module: nn.Module) -> list[Origin]:
    """What the weights of a module and of all modules inside have seen, each once, oldest first."""
    marked = unique(origin for child in module.modules() for marks in _of(child) for origin in marks.origins)
    stepped = any(parameter in _stepped for parameter in module.parameters())
    return [*marked, *([Origin(dataset="")] if stepped and Origin(dataset="") not in marked else [])]


def unique(origins: Iterable[Origin]) -> list[Origin]:
    """Each once, in order."""
    return list({str(asdict(origin)): origin for origin in origins}.values())


def remember(module: nn.Module, *origins: Origin) -> None:
    """Mark a module and all modules inside that hold parameters or buffers."""
    if not origins:
        return
    for child in module.modules():
        # What holds no tensor has learnt nothing, and may be shared by modules that have.
        if next(chain(child.parameters(), child.buffers()), None) is None:
            continue
        if not _of(child):
            child.register_state_dict_post_hook(_Marks())
        marks = _of(child)[0]
        marks.origins = unique([*marks.origins, *origins])


def _forget(module: nn.Module, origin: Origin) -> None:
    for child in module.modules():
        for marks in _of(child):
            marks.origins = [one for one in marks.origins if one != origin]


def _of(module: nn.Module) -> list[_Marks]:
    return [hook for hook in module._state_dict_hooks.values() if isinstance(hook, _Marks)]


def data_of(data: object) -> Origin:
    """A data set or data module as an origin without privacy."""
    name = data.dataset_id if provides(data, NamesDataset) else None
    if not isinstance(name, str):
        name = type(data).__name__ if isinstance(data, LightningDataModule) else ""
    return Origin(dataset=name, public=is_public(data))


# --- what marks without being asked -----------------------------------------------------------------


def _fit_that_marks(fit: Any) -> Any:
    @functools.wraps(fit)
    def marking(self: Trainer, model: Any, train_dataloaders: Any = None, *args: Any, **options: Any) -> Any:
        from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy

        if DifferentialPrivacy.of(self) is not None or not isinstance(model, nn.Module):
            with _in_a_fit():
                return fit(self, model, train_dataloaders, *args, **options)
        module_given = args[1] if len(args) > 1 else options.get("datamodule")
        given = train_dataloaders if module_given is None else module_given
        data = given if isinstance(given, LightningDataModule) else getattr(given, "dataset", given)
        origin, step = data_of(data), self.global_step
        new = origin not in seen_by(model)
        remember(model, origin)  # before: checkpoints of the fit must have it
        try:
            with _in_a_fit():
                return fit(self, model, train_dataloaders, *args, **options)
        finally:
            if new and self.global_step == step:  # refused, or over before a step
                _forget(model, origin)

    return marking


def _load_that_marks(load: Any) -> Any:
    @functools.wraps(load)
    def marking(self: nn.Module, state_dict: Any, *args: Any, **options: Any) -> Any:
        result = load(self, state_dict, *args, **options)
        remember(self, *_in_metadata(state_dict))
        return result

    return marking


def _in_metadata(state_dict: Any) -> list[Origin]:
    metadata = getattr(state_dict, "_metadata", None) or {}
    return unique(Origin(**mark) for local in metadata.values() for mark in local.get(_KEY, ()))


_stepped = WeakTensorKeyDictionary()
_fits = 0


@contextmanager
def _in_a_fit() -> Iterator[None]:
    global _fits
    _fits += 1
    try:
        yield
    finally:
        _fits -= 1


def _note_step(optimizer: Optimizer, args: Any, options: Any) -> None:
    if _fits:  # which has marked the module
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            _stepped[parameter] = True


if not hasattr(Trainer.fit, "_marks"):  # once, also where this is imported anew
    Trainer.fit = _fit_that_marks(Trainer.fit)  # type: ignore[method-assign]
    Trainer.fit._marks = True  # type: ignore[attr-defined]
    register_optimizer_step_post_hook(_note_step)
    nn.Module.load_state_dict = _load_that_marks(nn.Module.load_state_dict)  # type: ignore[method-assign]
