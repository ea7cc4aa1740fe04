"""The second look at real batches: planted faults stop the step, clean models never do. Preflight is off."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from support import Records, Regression, make_trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_dp.callbacks import differential_privacy
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.followed_batches import FollowedBatches
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.units import PrivacyUnit

N = 48
STOPPED = "the spot check stopped step"


@pytest.fixture(autouse=True)
def no_preflight(monkeypatch):
    """What is planted here must be seen by the spot check alone."""
    monkeypatch.setattr(differential_privacy, "run_preflight", lambda *_, **__: [])
    follow = FollowedBatches.__init__

    def answered(self, *args, **options):
        follow(self, *args, **options)
        self._answered = True

    monkeypatch.setattr(FollowedBatches, "__init__", answered)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


class Module(LightningModule):
    """A net with dropout; `losses` are per row."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
        )

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x).squeeze(1) - y).square()

    def training_step(self, batch, batch_idx):
        return self.losses(*batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Data(LightningDataModule):
    def __init__(self, dataset: Dataset, *, collate_fn=None, rows_per_unit: int = 1) -> None:
        super().__init__()
        self.dataset, self.collate_fn, self.rows_per_unit = dataset, collate_fn, rows_per_unit

    def privacy_unit(self) -> PrivacyUnit:
        return PrivacyUnit(
            name="record",
            num_units=len(self.dataset),
            rows_per_unit=self.rows_per_unit,
            description="one item",
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=4, collate_fn=self.collate_fn)


class Items(Dataset):
    def __init__(self, get, n: int = N) -> None:
        self.get, self.n = get, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        return self.get(index)


X, Y = normal(N, 4), normal(N)
RECORDS = TensorDataset(X, Y)


def fit(folder, module=None, data=None, *, steps=4, options=None, **privacy):
    defaults = {"noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": 16, "spot_check": 1}
    callback = DifferentialPrivacy(**{**defaults, **privacy})
    data = Data(RECORDS) if data is None else data
    data = data if isinstance(data, LightningDataModule) else Data(data)
    trainer = make_trainer(folder, steps=steps, privacy=callback, **(options or {}))
    trainer.fit(module or Module(), datamodule=data)
    return trainer


def report(folder) -> dict:
    return json.loads((folder / "privacy.json").read_text())["spot_check"]


# --- planted ---------------------------------------------------------------------------------------------


class IgnoresIndex(Module):
    """The usual loss of a language model: torch divides by the batch's number of labels."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20)))

    def training_step(self, batch, batch_idx):
        ids, labels = batch
        return F.cross_entropy(self.net(ids).flatten(0, 1), labels.flatten(), ignore_index=-100)


def tokens() -> TensorDataset:
    ids = torch.arange(N * 12).view(N, 12) * 7 % 20
    gaps = torch.arange(12) > torch.arange(N)[:, None] % 11
    return TensorDataset(ids, ids.roll(1, 1).masked_fill(gaps, -100))


class WeighsClasses(Module):
    """Couples only batches that hold both heavy and light classes."""

    def __init__(self):
        super().__init__(nn.Linear(4, 10))

    def training_step(self, batch, batch_idx):
        weight = torch.tensor([1.0] * 9 + [50.0])
        return F.cross_entropy(self.net(batch[0]), batch[1].abs().mul(6).long().clamp(max=9), weight=weight)


# Half of the units are of the heavy class: one kind alone, next to never drawn, couples nothing.
HEAVY_AND_LIGHT = TensorDataset(X, torch.where(torch.arange(N) % 2 == 0, 2.0, 0.5))


class DividesByTheLargest(Module):
    def losses(self, x, y):
        return super().losses(x / x.abs().max(), y)


class MixesUp(Module):
    def losses(self, x, y):
        return super().losses(0.7 * x + 0.3 * x[torch.randperm(len(x))], y)


class LikeOthers(Module):
    """Awake only where something is negative, as no made-up value is."""

    def losses(self, x, y):
        return super().losses(x - x.min() if (x < 0).any() else x, y)


class FromStep3(Module):
    def losses(self, x, y):
        z = self.net(x).squeeze(1)
        return super().losses(x, y) if self.global_step < 3 else (z / z.detach().norm() * 4 - y).square()


class HooksMix(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return [x - x.mean(dim=0), y]


def standardise(items):
    x, y = (torch.stack(column) for column in zip(*items, strict=True))
    return [(x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-3), y]


@pytest.mark.parametrize(
    ("module", "data", "step", "says"),
    [
        (IgnoresIndex, tokens(), 0, "depends on the others of its batch"),
        (WeighsClasses, HEAVY_AND_LIGHT, 0, "depends on the others of its batch"),
        # Which of the two sentences depends on the units that are drawn: some have next to no gradient.
        (DividesByTheLargest, RECORDS, 0, "so clipping does not bound it"),
        (LikeOthers, RECORDS, 0, "so clipping does not bound it"),
        (MixesUp, RECORDS, 0, "depends on the others of its batch"),
        (FromStep3, RECORDS, 3, "depends on the others of its batch"),
        (HooksMix, RECORDS, 0, "collation or a transfer hook"),
        (Module, Data(RECORDS, collate_fn=standardise), 0, "collation or a transfer hook"),
    ],
)
def test_units_that_see_each_other(tmp_path, module, data, step, says):
    with pytest.raises(RuntimeError, match=f"{STOPPED} {step}") as error:
        fit(tmp_path, module(), data, steps=6)
    assert says in str(error.value)


def test_a_unit_of_another_divisor_that_all_units_of_a_small_batch_share(tmp_path):
    """Two units alone agree with each other; the whole batch doesn't agree with them."""

    class OfALargeBatch(Module):
        def losses(self, x, y):
            return super().losses(x, y) * (2.0 if len(x) > 2 else 1.0)

    with pytest.raises(RuntimeError, match="depends on the others of its batch"):
        fit(tmp_path, OfALargeBatch())


class Mistaken(Materialised):
    """An engine that finds something else than the units' gradients for one parameter."""

    def __init__(self, change, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.change, self.shape = change, shape

    def _unit_gradients(self, call):
        found = super()._unit_gradients(call)
        return {
            key: self.change(value) if tuple(value.shape[1:]) == self.shape else value
            for key, value in found.items()
        }


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.roll(1, dims=0),  # a table taken for rows
        lambda rows: rows.mean(dim=0, keepdim=True).expand_as(rows),
        # a crafted unit whose norm is lost, and that of no other
        lambda rows: rows * (torch.arange(len(rows)) != 3).view(-1, 1, 1),
        lambda rows: rows * 1.02,  # a norm that is a little off
    ],
)
@pytest.mark.parametrize("physical_batch_size", [None, 6])
def test_an_engine_that_measures_wrongly_is_named_with_the_layer(tmp_path, change, physical_batch_size):
    engine = Mistaken(change, shape=(16, 4))
    with pytest.raises(RuntimeError, match=r"what Mistaken measured .* 'net.0.weight'"):
        fit(
            tmp_path,
            Module(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))),
            expected_batch_size=40,
            physical_batch_size=physical_batch_size,
            clipping_engine=engine,
        )


def test_a_stopped_step_is_charged_and_nothing_of_it_leaves(tmp_path, ledger_path):
    module = DividesByTheLargest()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(RuntimeError, match=STOPPED) as error:
        fit(tmp_path, module)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert all(p.grad is None for p in module.parameters())
    written = json.loads((tmp_path / "privacy.json").read_text())
    assert (written["status"], written["steps_charged"]) == ("interrupted", 1)
    (account,) = Ledger(ledger_path).accounts()
    assert sum(e.steps for e in Ledger(ledger_path).events(account[0], unit=account[1])) == 1
    words = re.sub(r"'net.\d", "", str(error.value).split("step 0 ")[1])
    assert not re.search(r"\d", words), "no number that comes from the data"
    assert "training_step" not in vars(module)
    assert not any("forward" in vars(child) for child in module.modules())


# --- clean -----------------------------------------------------------------------------------------------


class Checkpointed(Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__(nn.Linear(4, 16))
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.use_reentrant = use_reentrant

    def losses(self, x, y):
        z = checkpoint(self.inner, self.net(x), use_reentrant=self.use_reentrant)
        return (z.squeeze(1) - y).square()


class Draws(Module):
    """As diffusion does, and in shapes that tell nobody whose they are."""

    def losses(self, x, y):
        t = torch.randint(0, 10, (len(x),))
        hidden = torch.rand(len(x), 1) < 0.1
        x = torch.where(hidden, 0.0, x) + torch.randn_like(x) * t[:, None] / 10
        return super().losses(x, y)


class OddDraws(Draws):
    def losses(self, x, y):
        x = x + torch.rand(1000)[: len(x), None] + torch.randn(4, len(x)).T
        return super().losses(x * torch.rand(()), y)


class FoldsRows(Module):
    rows_per_example = 2

    def losses(self, x, y):
        noise = torch.randn(2 * len(x), 1)
        return super().losses(x.repeat_interleave(2, dim=0) + noise, y.repeat_interleave(2))


class Scaled(Module):
    """Uses parameters in the step itself, one of them a child's."""

    def __init__(self):
        super().__init__()
        self.scale, self.log_variance = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(()))

    def losses(self, x, y):
        found = super().losses(x * self.scale, y) + F.linear(x, self.net[0].weight).square().mean(dim=1)
        return found * torch.exp(-self.log_variance) + self.log_variance


class Centres(nn.Module):
    """A loss with weights of its own."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 1))

    def forward(self, z, y):
        return (z - self.centres[(y > 0).long() + (y > 1).long()]).square().sum(dim=1)


class KeepsItself(Module):
    """A function in an attribute has the module in its closure, which copies of the module share."""

    def __init__(self):
        super().__init__()
        self.criterion = Centres()
        self.row_losses = lambda x, y: self.criterion(self.net(x), y)

    def losses(self, x, y):
        return self.row_losses(x, y)


class Counts(Module):
    """Has state that every step moves on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.calls = 0

    def on_train_batch_start(self, batch, batch_idx):
        self.temperature = 1.0 + 0.1 * batch_idx

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.calls += 1
        self.log("train_loss", 1.0)
        batch[0].mul_(self.temperature + self.calls / (1 + float(self.steps)))  # writes into its batch
        return super().training_step(batch, batch_idx)


class Attention(Module):
    def __init__(self):
        super().__init__(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True))

    def losses(self, x, y):
        return (self.net(x).mean(dim=(1, 2)) - y).square()


def three_rows(items):
    return [torch.cat(column) for column in zip(*items, strict=True)]


def padded(items):
    x, y = zip(*items, strict=True)
    x = nn.utils.rnn.pad_sequence(x, batch_first=True)
    return {"x": x[..., 0], "y": torch.stack(y), "names": ["a"] * len(y), "kind": "made"}


class Padded(Module):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)))

    def training_step(self, batch, batch_idx):
        x, y = batch["x"], batch["y"]
        there = (x != 0).float()
        z = (self.net(x[..., None]).squeeze(-1) * there).sum(dim=1) / there.sum(dim=1)
        return (z - y).square().mean()


class Lists(Module):
    """A list of tensors of different sizes, one a unit."""

    def training_step(self, batch, batch_idx):
        rows = torch.stack([x.mean(dim=0) for x in batch["images"]])
        return self.losses(rows, torch.stack([one["y"] for one in batch["targets"]])).mean()


def lists(items):
    return {"images": [x for x, _ in items], "targets": [{"y": y} for _, y in items]}


def flipped(index: int):
    return X[index] * (1 if np.random.rand() < 0.5 else -1), Y[index]


ROWS3 = TensorDataset(normal(N, 3, 4), normal(N, 3))
RAGGED = Items(lambda index: (X[index, :, None].repeat(1 + index % 3, 1), Y[index]))
UNEQUAL = Items(lambda index: (X[index].repeat(3 + index % 2, 1), Y[index]))


@pytest.mark.parametrize(
    ("make", "data", "privacy", "options"),
    [
        (Module, RECORDS, {}, {}),
        (Module, RECORDS, {"physical_batch_size": 5}, {}),
        (Module, RECORDS, {"expected_batch_size": 1}, {}),
        (Module, RECORDS, {"clipping_engine": Materialised()}, {}),
        (Module, RECORDS, {}, {"precision": "bf16-mixed"}),
        (Module, RECORDS, {}, {"precision": "bf16-true"}),
        (lambda: Checkpointed(use_reentrant=True), RECORDS, {}, {}),
        (lambda: Checkpointed(use_reentrant=False), RECORDS, {}, {}),
        (lambda: Module(torch.compile(Module().net, backend="eager")), RECORDS, {}, {}),
        (Attention, TensorDataset(normal(N, 5, 8), Y), {}, {}),
        (Draws, RECORDS, {}, {}),
        (OddDraws, RECORDS, {}, {}),
        (Counts, RECORDS, {}, {}),
        (KeepsItself, RECORDS, {}, {}),
        (Scaled, RECORDS, {}, {}),
        (Scaled, RECORDS, {"physical_batch_size": 5}, {}),
        (Scaled, RECORDS, {}, {"precision": "bf16-mixed"}),
        (FoldsRows, Data(ROWS3, collate_fn=three_rows, rows_per_unit=3), {}, {}),
        (Padded, Data(RAGGED, collate_fn=padded), {}, {}),
        (Module, Items(flipped), {"expected_batch_size": 3}, {}),
    ],
)
def test_clean_models_go_on_with_every_batch_looked_at(tmp_path, make, data, privacy, options):
    trainer = fit(tmp_path, make(), data, steps=5, options=options, **privacy)
    assert trainer.global_step == 5
    assert report(tmp_path) == {"one_in": 1, "batches": 5, "not_checked": [], "accepted": []}


class NoNoise(GaussianNoise):
    def add_to(self, sums, *, scale):
        return sums


class Observes(Callback):
    """Another who reads the engine's norms."""

    def __init__(self, privacy: DifferentialPrivacy) -> None:
        self.privacy, self.seen = privacy, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.privacy.clipping_engine.observe(self.seen.append)


def test_looking_changes_nothing_of_training(tmp_path):
    ends = []
    for every in (0, 1):
        torch.manual_seed(0)
        module = Counts()
        module.net[2].p = 0.0  # dropout is drawn anew in every private fit
        privacy = DifferentialPrivacy(
            noise_multiplier=1.0, delta=1e-3, expected_batch_size=N, spot_check=every, num_units=N
        )
        privacy._noise = NoNoise()
        observes = Observes(privacy)
        trainer = make_trainer(tmp_path / str(every), steps=3, privacy=None, callbacks=[observes, privacy])
        trainer.fit(module, datamodule=Data(TensorDataset(X.clone(), Y)))
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        ends.append((module.calls, float(module.steps), len(observes.seen), torch.rand(()), weights))
    for one, other in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


# --- what can't be looked at, and when -------------------------------------------------------------------


def nodes(items):
    sizes = [1 + index % 3 for index in range(len(items))]
    x = torch.cat([x.repeat(k, 1) for k, (x, _) in zip(sizes, items, strict=True)])
    owner = torch.arange(len(items)).repeat_interleave(torch.tensor(sizes))
    return {"x": x, "owner": owner, "y": torch.stack([y for _, y in items])}


class Graphs(Module):
    def training_step(self, batch, batch_idx):
        y = batch["y"]
        x = torch.zeros(len(y), 4).index_add(0, batch["owner"], batch["x"])
        return self.losses(x, y).mean()


class DrawsWithNumpy(Module):
    def losses(self, x, y):
        return super().losses(x + torch.from_numpy(np.random.rand(len(x), 1)).float(), y)


@pytest.mark.parametrize(
    ("module", "data", "code", "says"),
    [
        (DrawsWithNumpy, RECORDS, "draws", "random numbers that can't be repeated"),
    ],
)
def test_what_can_not_be_looked_at_is_said_once(tmp_path, module, data, code, says):
    with pytest.warns(UserWarning, match=says) as warned:
        fit(tmp_path, module(), data, options={"logger": False})
    assert sum(says in str(one.message) for one in warned) == 1
    assert report(tmp_path)["not_checked"] == [code]


@pytest.mark.parametrize(
    ("module", "data"), [(Graphs, Data(RECORDS, collate_fn=nodes)), (Lists, Data(UNEQUAL, collate_fn=lists))]
)
def test_batches_whose_units_can_not_be_followed_are_not_trained_on(tmp_path, module, data):
    """Their units may share one tensor, or have a tensor each: no operator says whose is what."""
    with pytest.raises(RuntimeError, match="followed"):
        fit(tmp_path, module(), data, expected_batch_size=4)


def test_the_first_batch_and_one_in_n_are_looked_at(tmp_path):
    fit(tmp_path, steps=3, spot_check=10**9)
    assert report(tmp_path)["batches"] == 1
    fit(tmp_path / "none", DividesByTheLargest(), steps=3, spot_check=0)
    assert report(tmp_path / "none") == {
        "one_in": None,
        "batches": 0,
        "not_checked": [],
        "accepted": [],
    }


@pytest.mark.parametrize("value", [-1, 0.5, True])
def test_a_bad_number_is_refused(value):
    with pytest.raises(ValueError, match=r"privacy\.spot_check"):
        DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=8, spot_check=value)


def test_the_default_engine_is_looked_at_in_ordinary_fits(tmp_path):
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=10)
    assert isinstance(privacy.clipping_engine, BookKeeping)
    make_trainer(tmp_path, steps=2, privacy=privacy).fit(Regression(), datamodule=Records())
    assert report(tmp_path)["one_in"] == 100
    assert report(tmp_path)["batches"] >= 1
