"""Which privacy unit a fit claims, and hooks that nobody would have asked."""

import json

import pytest
import torch
from support import Records, Regression, make_trainer
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    StackDataset,
    Subset,
    TensorDataset,
)

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.fit import hook_names
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.units import PrivacyUnit

N = 24


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": 4}
    return DifferentialPrivacy(**{**defaults, **options})


def unit(name="window", *, num_units=N, **more) -> PrivacyUnit:
    return PrivacyUnit(name=name, num_units=num_units, description="one of them", **more)


class Windows(TensorDataset):
    """A dataset that declares its own unit."""

    def __init__(self, n: int = N) -> None:
        super().__init__(torch.randn(n, 4), torch.randn(n))

    def privacy_unit(self):
        return unit(num_units=len(self))

    def synthetic_units(self, num_units):
        return [torch.randn(num_units, 4), torch.randn(num_units)]


def fit(folder, *, data=None, dataset=None, module=None, privacy=None) -> dict:
    trainer = make_trainer(folder, steps=1, privacy=privacy or private())
    loader = DataLoader(dataset, batch_size=4) if dataset is not None else None
    trainer.fit(module or Regression(), loader, datamodule=data)
    return json.loads((folder / "privacy.json").read_text())


def refused(folder, ledger_path, match: str, **options) -> None:
    with pytest.raises(ValueError, match=match):
        fit(folder, **options)
    assert not ledger_path.exists(), "nothing may be charged"


def with_hook(**attributes) -> Records:
    """A data module of a class with these attributes."""
    return type("Mine", (Records,), attributes)(N)


def test_a_unit_that_nobody_declared_is_said_to_be_assumed(tmp_path, ledger_path, caplog):
    plain = TensorDataset(torch.randn(N, 4), torch.randn(N))
    report = fit(tmp_path, dataset=plain)
    assert (report["unit"], report["unit_declared"]) == ("record", False)
    assert "assumed" in report["unit_description"]
    assert "record, assumed: nobody declared the unit" in caplog.text
    (opened,) = [e for e in Ledger(ledger_path).entries() if e.kind == "open"]
    assert opened.detail["facts"] == {"unit": "record, assumed: nobody declared the unit", "declared": False}
    report = fit(tmp_path / "said", dataset=plain, privacy=private(unit="record"))
    assert (report["unit"], report["unit_declared"]) == ("record", True)


@pytest.mark.parametrize("given", ["window", unit()])
def test_the_callback_may_say_it(tmp_path, given):
    report = fit(tmp_path, data=Records(N), privacy=private(unit=given))
    assert (report["unit"], report["unit_declared"]) == ("window", True)


def test_the_train_dataset_may_say_it_also_from_inside_of_a_subset(tmp_path):
    assert fit(tmp_path / "a", dataset=Windows())["unit"] == "window"
    report = fit(tmp_path / "b", dataset=Subset(Subset(Windows(), range(20)), range(2, 12)))
    assert (report["unit"], report["num_units"]) == ("window", 10)


def test_a_wrapper_does_not_hide_what_it_wraps(tmp_path, ledger_path):
    class Noisy(Dataset):
        def __init__(self, base):
            self.base = base

        def __len__(self):
            return len(self.base)

        def __getitem__(self, index):
            return self.base[index]

        synthetic_units = Windows.synthetic_units

    refused(tmp_path, ledger_path, "Noisy is made of Windows, which declares", dataset=Noisy(Windows()))
    both = ConcatDataset([Windows(), Windows()])
    refused(tmp_path, ledger_path, "ConcatDataset is made of Windows", dataset=both)
    assert fit(tmp_path, dataset=Noisy(Windows()), privacy=private(unit="user"))["unit"] == "user"


@pytest.mark.parametrize(
    ("hook", "match"),
    [
        (lambda self: None, r"privacy_unit\(\) returns None"),
        (lambda self: {"name": "user", "num_units": N}, r"returns \{'name': 'user'"),
        (lambda self: "user", r"returns 'user'"),
        (unit(), "and no method"),
        ("user", "'user' and no method"),
        (None, "None and no method"),
        (property(lambda self: unit()), "and no method"),
        (property(lambda self: self.missing), "can't be asked .AttributeError"),
        (lambda: unit(), "can't be asked .TypeError"),
        (lambda self: unit(num_units=N - 1), "declares 23 units and the train dataset has 24"),
        (lambda self: unit(num_units="24"), "must be a whole number"),
        (lambda self: PrivacyUnit(name="user", num_units=N, description=None), "description is None"),
        (lambda self: unit("customer"), "it must be one of record, window, user"),
    ],
)
def test_a_hook_that_does_not_give_a_unit_is_refused(tmp_path, ledger_path, hook, match):
    refused(tmp_path, ledger_path, match, data=with_hook(privacy_unit=hook))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("privacy_units", "privacy_unit"),
        ("privacyUnit", "privacy_unit"),
        ("private_unit", "privacy_unit"),
        ("synthetic_unit", "synthetic_units"),
        ("synthetic_item", "synthetic_items"),
        ("validation_public", "validation_is_public"),
        ("val_is_public", "validation_is_public"),
        ("dataset_ids", "dataset_id"),
    ],
)
@pytest.mark.parametrize("place", ["data", "dataset", "inner"])
def test_a_misspelt_hook_of_the_data_is_refused(tmp_path, ledger_path, name, meant, place):
    hook = {name: lambda self: unit()}
    if place == "data" and meant != "dataset_id":  # Records has one, so nothing is missed
        refused(tmp_path, ledger_path, f"Mine.{name} is nothing .* hook {meant}", data=with_hook(**hook))
    if place == "data":
        return
    plain = type("Mine", (TensorDataset,), hook)(torch.randn(N, 4), torch.randn(N))
    dataset = plain if place == "dataset" else Subset(plain, range(20))
    refused(tmp_path, ledger_path, f"Mine.{name} is nothing", dataset=dataset)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("preparation", "preparations"),
        ("row_per_example", "rows_per_example"),
        ("rows_per_sample", "rows_per_example"),
        ("read_trainset", "read_train_set"),
    ],
)
def test_a_misspelt_hook_of_the_module_is_refused(tmp_path, ledger_path, name, meant):
    module = Regression()
    setattr(module, name, 2)
    refused(tmp_path, ledger_path, f"Regression.{name} .* hook {meant}", data=Records(N), module=module)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("privacy_unt", "data"),
        ("privacy_unit_", "data"),
        ("synthetic_itmes", "data"),
        ("validation_is_publik", "data"),
        ("row_per_examples", "module"),
        ("read_trainset_", "module"),
        ("preparation_s", "module"),
        ("logged_metric", "module"),
    ],
)
def test_other_slips_of_the_pen_are_refused_too(tmp_path, ledger_path, name, place):
    if place == "data":
        refused(tmp_path, ledger_path, f"Mine.{name} is nothing", data=with_hook(**{name: 1}))
    else:
        module = type("Mine", (Regression,), {name: lambda self: 1})()
        refused(tmp_path, ledger_path, f"Mine.{name} is nothing", data=Records(N), module=module)


def test_names_that_others_have_by_chance_are_not_refused(tmp_path):
    chance = ("units", "privacy", "rows", "synthetic", "validation", "dataset", "prepare", "publish", "fact")
    data = with_hook(**dict.fromkeys(chance, 1), prepare_data=lambda self: None)
    module = type("Mine", (Regression,), {**dict.fromkeys(chance, 1), "log_metrics": lambda self: 1})()
    assert fit(tmp_path, data=data, module=module)["unit"] == "record"


@pytest.mark.parametrize(
    ("name", "value", "place", "match"),
    [
        ("validation_is_public", lambda self: False, "data", "is a method, and is read without a call"),
        ("validation_is_public", "no", "data", "is 'no'; it must be True or False"),
        ("dataset_id", lambda self: "records", "dataset", "is a method, and is read without a call"),
        ("dataset_id", classmethod(lambda cls: "records"), "dataset", "is a method"),
        (
            "synthetic_items",
            [1, 2],
            "data",
            r"is \[1, 2\] and no method; write 'def synthetic_items\(self, num",
        ),
        ("synthetic_units", property(lambda self: 3), "dataset", "is 3 and no method"),
        ("rows_per_example", lambda self: 2, "module", "is a method, and is read without a call"),
        ("rows_per_example", 2.0, "module", "is 2.0; it must be a whole number of at least 1"),
        ("rows_per_example", 0, "module", "is 0; it must be a whole number of at least 1"),
        ("preparations", [], "module", r"is \[\] and no method; write 'def preparations\(self, \*, unit"),
        ("read_train_set", True, "module", "is True and no method"),
    ],
)
def test_a_hook_of_the_wrong_kind_is_refused(tmp_path, ledger_path, name, value, place, match):
    of = {"data": Records, "dataset": TensorDataset, "module": Regression}[place]
    kind, match = type("Mine", (of,), {name: value}), f"Mine.{name} {match}"
    if place == "data":
        refused(tmp_path, ledger_path, match, data=kind(N))
    elif place == "module":
        refused(tmp_path, ledger_path, match, data=Records(N), module=kind())
    else:
        refused(tmp_path, ledger_path, match, dataset=kind(torch.randn(N, 4), torch.randn(N)))


def test_every_hook_of_a_private_fit_is_guarded():
    assert set(hook_names._GUARDED) == {
        "privacy_unit",
        "dataset_id",
        "synthetic_items",
        "synthetic_units",
        "content_pieces",
        "validation_is_public",
        "preparations",
        "read_train_set",
        "rows_per_example",
        "logged_metrics",
    }


def test_a_hook_in_the_wrong_place_is_refused(tmp_path, ledger_path):
    class Tells(Regression):
        def privacy_unit(self):
            return unit()

    refused(
        tmp_path, ledger_path, "Tells.privacy_unit is in the wrong place", data=Records(N), module=Tells()
    )
    data = with_hook(rows_per_example=3)
    refused(tmp_path, ledger_path, "rows_per_example is in the wrong place.*LightningModule", data=data)


def test_two_that_say_it_must_agree(tmp_path, ledger_path):
    data = with_hook(privacy_unit=lambda self: unit("window"))
    for said in ("user", unit("window", rows_per_unit=2)):
        refused(tmp_path, ledger_path, "let them agree", data=data, privacy=private(unit=said))
    assert fit(tmp_path, data=data, privacy=private(unit="window"))["unit"] == "window"


@pytest.mark.parametrize("given", ["customer", "", 3, {"name": "user"}, PrivacyUnit])
def test_a_unit_of_no_known_kind_is_refused(given):
    with pytest.raises(ValueError, match=r"privacy.unit is .*must be one of record, window, user"):
        private(unit=given)


@pytest.mark.parametrize("bad", ["24", 24.0, True, [24], {"num_units": 24}])
def test_a_count_that_is_no_whole_number_is_refused(bad):
    with pytest.raises(ValueError, match="num_units must be a whole number of at least 1, not"):
        private(num_units=bad)


@pytest.mark.parametrize("bad", [3, "", object()])
def test_a_dataset_id_that_is_no_name_is_refused(tmp_path, ledger_path, bad):
    refused(tmp_path, ledger_path, "dataset_id is .*it must be the name", data=Records(N, dataset_id=bad))


# --- each item once ---------------------------------------------------------------------------------


class Unreadable(Dataset):
    """Items that nobody may look at."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        raise AssertionError("a private row was read")

    synthetic_units = Windows.synthetic_units


def repeated():
    one, other = Unreadable(), TensorDataset(torch.randn(N, 4), torch.randn(N))
    x, y = other.tensors
    yield Subset(one, [0] * 20 + list(range(1, 21)))
    yield Subset(one, [0, -N])
    yield Subset(one, torch.tensor([1, 2, 1]))
    yield Subset(Subset(one, [3, 4, 5]), [0, 1, 0])
    yield ConcatDataset([one, one])
    yield ConcatDataset([Subset(one, range(12)), Subset(one, range(11, N))])
    yield Subset(ConcatDataset([one, other]), [0, 1, N, N])
    yield ConcatDataset([other, TensorDataset(x, y)])
    yield ConcatDataset([other, TensorDataset(x + 1, y)])
    yield ConcatDataset([TensorDataset(x[:12], y[:12]), TensorDataset(x[11:], y[11:])])
    yield StackDataset(Subset(other, [0, 0]), Subset(one, [1, 2]))


@pytest.mark.parametrize("number", range(len(list(repeated()))))
def test_one_item_as_several_units_is_refused(tmp_path, ledger_path, number):
    dataset = list(repeated())[number]
    privacy = private(unit="record", expected_batch_size=1, delta=1e-6)
    refused(tmp_path, ledger_path, "times, so what one unit can change", dataset=dataset, privacy=privacy)


def test_each_item_once_is_not_refused(tmp_path):
    x, y = torch.randn(N, 4), torch.zeros(1).expand(N)
    halves = torch.utils.data.random_split(TensorDataset(x, y), [12, 12])
    privacy = private(unit="record", accept={"unchecked": "rows of the same two tensors"})
    report = fit(tmp_path, dataset=ConcatDataset([*halves, Windows()]), privacy=privacy)
    assert report["num_units"] == 2 * N


def test_a_sampler_that_repeats_is_refused(tmp_path, ledger_path):
    class Again(Records):
        def train_dataloader(self):
            sampler = RandomSampler(self.dataset, replacement=True)
            return DataLoader(self.dataset, batch_size=4, sampler=sampler)

    refused(tmp_path, ledger_path, "replacement=True", data=Again(N))
