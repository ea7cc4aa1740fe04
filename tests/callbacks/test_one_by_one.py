"""Models and batches whose units no operator tells apart, each unit run in a batch of its own."""

import json

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from support import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.clipping.one_by_one import OneByOne
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.units import PrivacyUnit

N, C = 12, 0.4


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


X, Y, TOKENS = normal(N, 4), normal(N), torch.arange(N * 6).view(N, 6) % 5


class Items(Dataset):
    """Item i has i % 3 + 1 nodes, boxes or whatever its collation makes of it."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return X[index].repeat(1 + index % 3, 1), Y[index], TOKENS[index]

    def synthetic_items(self, num_items: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        words = torch.randint(5, (num_items, 6), generator=torch.Generator().manual_seed(1))
        return [(torch.randn(1 + i % 3, 4), torch.randn(()), words[i]) for i in range(num_items)]


class Data(LightningDataModule):
    def __init__(self, collate_fn) -> None:
        super().__init__()
        self.dataset, self.collate_fn = Items(), collate_fn

    def privacy_unit(self) -> PrivacyUnit:
        return PrivacyUnit(name="record", num_units=N, rows_per_unit=1, description="one item")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=4, collate_fn=self.collate_fn)


def graphs(items):
    """One graph of all: nodes of all items, and whose each is."""
    nodes, targets, _ = zip(*items, strict=True)
    owner = torch.arange(len(items)).repeat_interleave(torch.tensor([len(one) for one in nodes]))
    return {"x": torch.cat(nodes), "owner": owner, "y": torch.stack(targets)}


def lists(items):
    nodes, targets, _ = zip(*items, strict=True)
    return list(nodes), [{"y": y} for y in targets]


def tokens(items):
    return torch.stack([words for *_, words in items])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class OfGraphs(Module):
    def training_step(self, batch, batch_idx):
        x = torch.zeros(len(batch["y"]), 4).index_add(0, batch["owner"], batch["x"])
        return (self.net(x).squeeze(1) - batch["y"]).square().mean()


class OfLists(Module):
    def training_step(self, batch, batch_idx):
        losses = [(self.net(x).mean() - one["y"]).square() for x, one in zip(batch[0], batch[1], strict=True)]
        return torch.stack(losses).mean()


class LanguageModel(LightningModule):
    """The mean over all tokens that count, as everybody writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 8), nn.Linear(8, 5)

    def training_step(self, batch, batch_idx):
        logits = self.out(self.table(batch[:, :-1]).cumsum(dim=1))
        labels = batch[:, 1:].masked_fill(batch[:, 1:] == 3, -100)
        return F.cross_entropy(logits.reshape(-1, 5), labels.reshape(-1))

    configure_optimizers = Module.configure_optimizers


class ByTheLargest(Module):
    """Compares units with each other; of one unit there is only its own."""

    def training_step(self, batch, batch_idx):
        losses = OfLists.training_step(self, batch, batch_idx)
        largest = torch.stack([x.abs().max() for x in batch[0]]).max()
        return losses / largest


CASES = {"graphs": (OfGraphs, graphs), "lists": (OfLists, lists), "tokens": (LanguageModel, tokens)}


class NoNoise(GaussianNoise):
    def add_to(self, sums, *, scale):
        return sums


def fit(folder, module, collate_fn, **options) -> None:
    given = {"noise_multiplier": 1.0, "delta": 1e-2, "max_grad_norm": C, "expected_batch_size": N}
    privacy = DifferentialPrivacy(**{**given, "clipping_engine": OneByOne(), "spot_check": 1, **options})
    privacy._noise = NoNoise()
    make_trainer(folder, steps=1, privacy=privacy).fit(module, datamodule=Data(collate_fn))


def alone(module: LightningModule, collate_fn) -> dict[str, Tensor]:
    """Σ clip(g) of one autograd backward per item."""
    named, data = dict(module.named_parameters()), Items()
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for index in range(N):
        loss = module.training_step(collate_fn([data[index]]), 0)
        found = torch.autograd.grad(loss, list(named.values()))
        norm = torch.cat([g.flatten() for g in found]).norm()
        for name, gradient in zip(named, found, strict=True):
            total[name] += gradient * min(1.0, C / float(norm))
    return total


@pytest.mark.parametrize("name", [*CASES, "by the largest"])
def test_the_release_is_the_sum_over_units_alone(tmp_path, name):
    make, collate_fn = CASES.get(name, (ByTheLargest, lists))
    torch.manual_seed(0)
    module = make()
    expected = alone(module, collate_fn)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(tmp_path, module, collate_fn)
    for name, parameter in module.named_parameters():
        released = (before[name] - parameter.detach()) * N  # by SGD of rate 1
        torch.testing.assert_close(released, expected[name], rtol=1e-4, atol=1e-5)
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["spot_check"]["not_checked"] == []


@pytest.mark.parametrize("name", CASES)
def test_other_engines_refuse_it_and_name_this_one(tmp_path, name):
    make, collate_fn = CASES[name]
    with pytest.raises(ValueError, match="OneByOne"):
        fit(tmp_path, make(), collate_fn, clipping_engine=None)


class Remembers(OfLists):
    """A mean over batches of what the last ones had."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.mean.lerp_(batch[0][0].mean(), 0.1)
        return super().training_step(batch, batch_idx) * self.mean.abs()


def test_units_that_meet_from_batch_to_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[remembers\].*mean"):
        fit(tmp_path, Remembers(), lists)


def test_it_takes_batches_of_one_unit_only(tmp_path):
    with pytest.raises(ValueError, match=r"privacy\.physical_batch_size must be 1 or left out, not 4"):
        fit(tmp_path, OfLists(), lists, physical_batch_size=4)
    engine = OneByOne()
    with pytest.raises(ValueError, match="one unit at a time, not 2"):
        engine.expect(unit_weights=torch.ones(2), rows_per_unit=1)


def test_a_check_says_how_parameters_are_clipped():
    engine = OneByOne()
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0, delta=1e-2, expected_batch_size=N, clipping_engine=engine
    )
    report = privacy.check(OfGraphs(), Data(graphs))
    assert report.ok, str(report)
    assert {row.rule for row in report.rows} == {"a batch of its own for each unit"}
    refused = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-2, expected_batch_size=N)
    assert not refused.check(OfGraphs(), Data(graphs)).ok
