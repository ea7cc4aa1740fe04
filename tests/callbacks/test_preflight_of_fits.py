"""Preflight of real fits: nothing private is read, nothing is left behind, and findings name their place."""

import json
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.compile import from_compiled
from support import make_trainer
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.known_items import known_items
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.ledger import Ledger

N = 100
READ = "a private row was read"


class Rows(Dataset):
    """Rows that nobody may look at."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        raise AssertionError(READ)


class Data(LightningDataModule):
    def synthetic_units(self, num_units: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(num_units, *shape, generator=generator) for shape in ((4,), ())]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rows(), batch_size=8, shuffle=True)


class MixesByItself(LightningModule):
    """What couples units stands in a function that keeps the module, beside layers that don't."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.row_losses = lambda x, y: (
            (self.net(x).squeeze(1) - y).square() / self.net(x).detach().abs().max()
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.row_losses(*batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x).squeeze(1) - y).square()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.losses(*batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": 10}
    return DifferentialPrivacy(**{**defaults, **options})


def fit(folder, module=None, *, data=None, privacy=None, **options) -> None:
    trainer = make_trainer(folder, steps=2, privacy=privacy or private(), **options)
    trainer.fit(module or Module(), datamodule=data or Data())


def found(folder, module=None, **options) -> str:
    """The message of a fit that preflight refused."""
    with pytest.raises(ValueError, match=r"^\[") as error:
        fit(folder, module, **options)
    assert not (folder / "privacy.json").exists(), "nothing half-written"
    return str(error.value)


def passes(folder, module=None, **options) -> None:
    """The fit goes on to its first private row."""
    with pytest.raises(AssertionError, match=READ):
        fit(folder, module, **options)


# --- planted in a module --------------------------------------------------------------------------------


class Contrastive(Module):
    def training_step(self, batch, batch_idx):
        z = F.normalize(self.net[0](batch[0]), dim=1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))


class Remembers(Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.level += batch[1].mean().detach()
        return super().training_step(batch, batch_idx)


class Sums(Module):
    def training_step(self, batch, batch_idx):
        return {"loss": self.losses(*batch).sum()}


class Guards(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.isfinite() else None


class MixesBeforeTheStep(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return [0.5 * x + 0.5 * x.flip(0), y]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Contrastive, "[coupling] training_step makes"),
        (MixesBeforeTheStep, "[coupling] training_step makes"),
        (Remembers, "[remembers] 'level' depends"),
        (Sums, "[not-a-mean] training_step returns 3 times the mean"),
        (Guards, "[coupling] training_step, test_preflight_of_fits.py:"),
    ],
)
def test_faults_of_a_module_are_named(tmp_path, module, message):
    assert message in found(tmp_path, module())


def test_a_data_module_that_mixes_units(tmp_path):
    class Mixes(Data):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] - batch[0].mean(dim=0), batch[1]]

    assert "[coupling]" in found(tmp_path, data=Mixes())


def test_everything_that_was_found_is_in_one_message(tmp_path):
    stop = EarlyStopping(monitor="train_loss")
    message = found(tmp_path, Remembers(), privacy=private(delta=0.5), callbacks=[stop])
    assert [line.split("]")[0] for line in message.splitlines()[:3]] == [
        "[delta",
        "[remembers",
        "[private-monitor",
    ]
    assert "privacy.accept.delta='…'" in message.splitlines()[3]


def test_accepted_findings_are_in_ledger_and_report(tmp_path, ledger_path):
    data = Data()
    data.train_dataloader = lambda: DataLoader(TensorDataset(*data.synthetic_units(N)), shuffle=True)
    accept = {"coupling": "weights are thrown away afterwards"}
    fit(tmp_path, Contrastive(), data=data, privacy=private(accept=accept))
    (entry,) = [entry for entry in Ledger(ledger_path).entries("Data") if entry.kind == "override"]
    assert "coupling: training_step" in entry.detail["reason"]
    assert "weights are thrown away" in entry.detail["reason"]
    (kept,) = json.loads((tmp_path / "privacy.json").read_text())["accepted_findings"]
    assert kept["reason"] == accept["coupling"]


# --- what a batch leaves behind, in any hook --------------------------------------------------------------


class Keeps(Module):
    """A mean of the data, kept by whichever hook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(4))

    def training_step(self, batch, batch_idx):
        self.last = batch[0].mean(dim=0)
        return super().training_step(batch, batch_idx)

    def keep(self, *_, **__) -> None:
        self.level.lerp_(self.last, 0.5) if hasattr(self, "last") else None


def keeping(hook: str) -> Module:
    def method(self, *arguments, **named):
        if hook == "backward":
            arguments[0].backward()
        self.keep()

    return type("Keeping", (Keeps,), {hook: method})()


@pytest.mark.parametrize(
    "hook",
    [
        "on_before_zero_grad",
        "on_before_backward",
        "backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "configure_gradient_clipping",
        "on_train_batch_end",
        "on_train_epoch_end",
    ],
)
def test_hooks_that_keep_something_of_their_data(tmp_path, hook):
    assert "[remembers] 'level' depends" in found(tmp_path, keeping(hook))


class KeepsInACheckpoint(Module):
    total = 0.0

    def training_step(self, batch, batch_idx):
        self.total += float(batch[1].sum())
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["total"] = self.total


class FeedsItsSchedule(KeepsInACheckpoint):
    on_save_checkpoint = LightningModule.on_save_checkpoint

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1 / (1 + abs(self.total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class HookOfTheOriginal(Module):
    """A closure writes to the module itself, whichever copy runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(4))
        self.net[0].register_forward_hook(lambda m, x, y: self.level.copy_(x[0][0]) and None)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (KeepsInACheckpoint, "[remembers] on_save_checkpoint holds something of the last batch's data"),
        (FeedsItsSchedule, "[remembers] the optimizer's learning rate, or another of its settings,"),
        (HookOfTheOriginal, "[remembers] 'level' was written while only copies ran"),
    ],
)
def test_other_places_that_keep_something(tmp_path, module, message):
    assert message in found(tmp_path, module())


class Callbacks(Callback):
    """Writes into the module from outside."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.level.copy_(batch[0].mean(dim=0))


def test_a_callback_that_keeps_something_in_the_module(tmp_path):
    assert "[remembers] 'level' depends" in found(tmp_path, Keeps(), callbacks=[Callbacks()])


class NeedsAStart(Module):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.elapsed = batch_idx - self.started


def test_hooks_that_can_not_be_tried_are_named(tmp_path):
    message = found(tmp_path, NeedsAStart())
    assert "[unchecked] NeedsAStart.on_train_batch_end fails on a made-up batch" in message


class Later(Module):
    """A term across the batch after a while."""

    def __init__(self, begins) -> None:
        super().__init__()
        self.begins = begins

    def training_step(self, batch, batch_idx):
        losses = self.losses(*batch)
        return (losses * losses.detach().softmax(0)).sum() if self.begins(self) else losses.mean()


@pytest.mark.parametrize(
    "begins", [lambda m: m.global_step >= 1, lambda m: m.current_epoch >= 3, lambda m: m.global_step == 49]
)
def test_couplings_that_begin_later(tmp_path, begins):
    privacy = private()
    trainer = make_trainer(tmp_path, steps=50, privacy=privacy)
    with pytest.raises(ValueError, match=r"\[coupling\] training_step .* at global_step"):
        trainer.fit(Later(begins), datamodule=Data())


# --- no trace -------------------------------------------------------------------------------------------


class Busy(Module):
    """Does in its step what people do there, and notes that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.register_buffer("steps", torch.zeros(()))
        self.net[0].weight.grad = torch.ones(8, 4)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        self.steps += 1
        noise = torch.randn_like(batch[0]) + random.random() + np.random.rand()
        loss = self.losses(batch[0] + noise, batch[1]).mean()
        self.log("train_loss", loss)
        self.log_dict({"rate": self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]})
        self.log("next_rate", self.lr_schedulers().get_last_lr()[0])
        self.logger.experiment.add_image("rows", batch[0])
        self.logger.log_metrics({"loss": float(loss)})
        self.print("stepped")
        self.trainer.should_stop = True
        return loss


class Drawn(Data):
    """Made up anew each time."""

    def synthetic_units(self, num_units: int) -> list[Tensor]:
        return [torch.randn(num_units, 4), torch.from_numpy(np.random.rand(num_units)).float()]


class Silent(CSVLogger):
    def log_metrics(self, metrics, step=None):
        raise AssertionError("something was logged")


def test_nothing_is_left_behind(tmp_path, capsys):
    module = Busy()
    module.net[1].eval()

    def state() -> list:
        numbers = np.random.get_state()
        return [
            [(name, value.tolist()) for name, value in module.state_dict().items()],
            [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
            [(name, set(vars(child)), child.training) for name, child in module.named_modules()],
            [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()],
            (torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2], random.getstate()),
            len(module.seen),
        ]

    after = []

    class Looks(DifferentialPrivacy):
        def setup(self, trainer, pl_module, stage):
            before = state()
            super().setup(trainer, pl_module, stage)
            after.append((before, state(), trainer.should_stop, list(trainer.loggers)))

    logger = Silent(save_dir=tmp_path)
    accept = {
        "private-monitor": "it stops whatever the data",
        "logger": "it would raise before it sent anything",
    }
    privacy = Looks(noise_multiplier=1.0, delta=1e-3, expected_batch_size=10, accept=accept)
    passes(tmp_path, module, data=Drawn(), privacy=privacy, logger=logger)
    ((before, now, should_stop, loggers),) = after
    assert now == before
    assert not should_stop
    assert loggers == [logger]
    assert "stepped" not in capsys.readouterr().out


# --- modules that are not finished when a callback is set up ---------------------------------------------


class BuiltLate(Module):
    def __init__(self) -> None:
        super().__init__()
        del self.net

    def setup(self, stage):
        self.scale = 2.0 / self.trainer.estimated_stepping_batches

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = nn.Linear(4, 1)

    def losses(self, x, y):
        return super().losses(x, y) * self.scale


def test_modules_that_are_built_late_pass(tmp_path):
    module, data = BuiltLate(), Data()
    data.train_dataloader = lambda: DataLoader(TensorDataset(*data.synthetic_units(N)), shuffle=True)
    sizes = []
    module.on_train_batch_start = lambda batch, batch_idx: sizes.append(len(batch[0]))
    fit(tmp_path, module, data=data, max_epochs=9)
    assert set(sizes) != {1}, "batches are Poisson, although setup asked for their number"


def test_compiled_modules_are_tried_as_they_are_written(tmp_path):
    assert "[remembers] 'level'" in found(tmp_path, from_compiled(torch.compile(Remembers())))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_passes(tmp_path, precision):
    passes(tmp_path, precision=precision)


def test_double_precision_passes(tmp_path):
    passes(tmp_path, privacy=private(clipping_engine=Materialised()), precision="64-true")


def test_modules_that_can_not_be_copied_are_said_to_be_unchecked(tmp_path):
    module = Module()
    module.rows = (row for row in range(3))
    assert "[unchecked] Module can't be copied" in found(tmp_path, module)


# --- where made-up units come from -----------------------------------------------------------------------


class Untold(LightningDataModule):
    """Says nothing about its rows."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.dataset = dataset

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=8, shuffle=True)


class Transformed(TensorDataset):
    def __getitem__(self, index):
        raise AssertionError(READ)


def test_shapes_of_a_tensor_dataset_are_enough_and_its_values_are_not_read(tmp_path):
    # Any value that was used would spoil the step's gradient.
    dataset = TensorDataset(torch.full((2 * N, 4), torch.nan), torch.full((2 * N,), torch.nan))
    steps = []

    class Notes(Module):
        def on_train_start(self):
            steps.append("started")

    fit(tmp_path, Notes(), data=Untold(Subset(dataset, range(N))))
    assert steps == ["started"]


def test_labels_and_images_of_a_tensor_dataset(tmp_path):
    class Classifier(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))

        def losses(self, x, y):
            return F.cross_entropy(self.net(x), y, reduction="none")

    images = TensorDataset(torch.zeros(N, 1, 8, 8), torch.zeros(N, dtype=torch.int64))
    fit(tmp_path, Classifier(), data=Untold(images))
    assert json.loads((tmp_path / "privacy.json").read_text())["accepted_findings"] == []


@pytest.mark.parametrize("dataset", [Rows(), Transformed(torch.zeros(N, 4), torch.zeros(N))])
def test_other_data_sets_have_to_say_what_their_rows_look_like(tmp_path, dataset):
    message = found(tmp_path, data=Untold(dataset))
    assert "[unchecked] Untold gives no made-up units" in message
    assert "synthetic_units(num_units)" in message
    passes(tmp_path, data=Untold(Rows()), privacy=private(accept={"unchecked": "looked at by hand"}))


def test_made_up_units_that_are_not_as_many_as_asked_for(tmp_path):
    class Short(Data):
        def synthetic_units(self, num_units):
            return super().synthetic_units(num_units - 1)

    assert "nothing with 13 rows first" in found(tmp_path, data=Short())


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def standardised(items):
    x, y = (torch.stack(column) for column in zip(*items, strict=True))
    return [x - x.mean(dim=0), y]


def longest(items):
    return [
        nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True),
        torch.stack([y for _, y in items]),
    ]


class OfAnyLength(Module):
    """Sees padding, as its mean counts it."""

    def losses(self, x, y):
        return (self.net(x[..., None].expand(*x.shape, 4)).mean(dim=(1, 2)) - y).square()


def items(num_items: int) -> list[Pair]:
    made = torch.Generator().manual_seed(4)
    return [Pair(torch.randn(4, generator=made), torch.randn((), generator=made)) for _ in range(num_items)]


@pytest.mark.parametrize(
    ("collate", "module", "made"),
    [
        (standardised, Module, items),
        (
            longest,
            OfAnyLength,
            lambda n: [Pair(torch.ones(2 + i % 5), torch.tensor(1.0 * i)) for i in range(n)],
        ),
    ],
)
def test_a_collation_that_mixes_units(tmp_path, collate, module, made):
    data = Untold(Rows())
    data.train_dataloader = lambda: DataLoader(Rows(), batch_size=8, shuffle=True, collate_fn=collate)
    message = found(tmp_path, module(), data=data, privacy=private(synthetic_items=made))
    assert "[coupling] collate_fn makes" in message


def test_a_collation_of_ones_own_needs_items(tmp_path):
    data = Data()
    data.train_dataloader = lambda: DataLoader(Rows(), shuffle=True, collate_fn=lambda rows: list(rows))
    # It makes no such batches of entries of them, and of no items that Rows tells of.
    assert "[unchecked] collate_fn" in found(tmp_path, data=data)
    data = Untold(Rows())
    passes(tmp_path, data=data, privacy=private(synthetic_items=items))
    passes(tmp_path, data=data, privacy=private(synthetic_units=Data().synthetic_units))


@pytest.mark.parametrize(
    "dataset",
    [
        ConcatDataset([TensorDataset(torch.zeros(N, 4), torch.zeros(N)) for _ in range(2)]),
        [(torch.zeros(4), 0.0) for _ in range(N)],
        [Pair(torch.zeros(4), torch.zeros(())) for _ in range(N)],
    ],
)
def test_data_sets_that_tell_what_their_items_look_like(dataset):
    made = known_items(dataset, num_items=3)
    assert made is not None
    assert made[0][0].shape == (4,)
    assert not torch.equal(made[0][0], made[1][0])
    assert type(made[0]) is (Pair if isinstance(dataset, list) and isinstance(dataset[0], Pair) else tuple)


def classifier(loss) -> Module:
    class Classifier(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 10)

        def training_step(self, batch, batch_idx):
            return loss(self.net(batch[0]), batch[1])

    return Classifier()


RARE = torch.ones(10).index_fill(0, torch.tensor(9), 100.0)


@pytest.mark.parametrize("loss", [lambda z, y: F.cross_entropy(z, y, weight=RARE)])
def test_labels_that_are_rare(tmp_path, loss):
    labelled = Untold(TensorDataset(torch.zeros(N, 4), torch.zeros(N, dtype=torch.int64)))
    assert "[coupling] training_step" in found(tmp_path, classifier(loss), data=labelled)


def test_tokens_that_do_not_count(tmp_path):
    class Tokens(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())

    tokens = torch.zeros(N, 6, dtype=torch.int64)
    message = found(tmp_path, Tokens(), data=Untold(TensorDataset(tokens, tokens)))
    assert "where whole numbers are -100" in message


# --- who is fed by what ----------------------------------------------------------------------------------


class Validated(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("val_of_train", loss)
        return loss


class Public(Data):
    validation_is_public = True


@pytest.mark.parametrize(
    ("callback", "place"),
    [
        (EarlyStopping(monitor="val_loss"), "EarlyStopping.monitor is 'val_loss'"),
        (EarlyStopping(monitor="nonprivate/train_loss"), "EarlyStopping.monitor"),
        (ModelCheckpoint(monitor="val_loss", save_top_k=2), "'val_loss' to keep 2"),
        (ModelCheckpoint(filename="{epoch}-{val_loss:.2f}"), "publishes 'val_loss'"),
    ],
)
def test_choices_by_a_private_metric_are_named(tmp_path, callback, place):
    message = found(tmp_path, callbacks=[callback], enable_checkpointing=True)
    assert "[private-monitor] trainer.callbacks: " in message
    assert place in message
    if "train" not in place and "train" not in str(callback.monitor):
        passes(tmp_path, data=Public(), callbacks=[callback], enable_checkpointing=True)


def test_a_training_metric_is_private_whatever_it_is_called(tmp_path):
    stop = EarlyStopping(monitor="val_of_train_epoch")
    assert "[private-monitor]" in found(tmp_path, Validated(), data=Public(), callbacks=[stop])


def test_counters_and_spent_privacy_are_public(tmp_path):
    keep = [
        ModelCheckpoint(monitor="step", mode="max", filename="{epoch}-{step}"),
        EarlyStopping(monitor="privacy/epsilon", stopping_threshold=3.0),
    ]
    passes(tmp_path, callbacks=keep, enable_checkpointing=True)


class Plateau(Module):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def test_a_schedule_that_is_fed_by_a_private_metric(tmp_path):
    assert "ReduceLROnPlateau feeds 'val_loss'" in found(tmp_path, Plateau())
    passes(tmp_path, Plateau(), data=Public())


def test_callbacks_that_train_before_the_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="LearningRateFinder can't be used with privacy"):
        fit(tmp_path, callbacks=[LearningRateFinder()])


def test_a_function_that_keeps_the_module_is_copied_with_it(tmp_path):
    assert "[coupling] training_step" in found(tmp_path, MixesByItself())


def _columns(rows) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _standardised(rows) -> list[Tensor]:
    x, y = _columns(rows)
    return [(x - x.mean(dim=0)) / (x.std(dim=0) + 1), y]


def test_a_collation_is_tried_on_what_made_up_batches_are_made_of(tmp_path):
    """`synthetic_units` gives batches; their entries are items to a collation that makes the like of them."""
    data = Data()
    data.train_dataloader = lambda: DataLoader(Rows(), batch_size=8, shuffle=True, collate_fn=_columns)
    passes(tmp_path, data=data)
    data.train_dataloader = lambda: DataLoader(Rows(), batch_size=8, shuffle=True, collate_fn=_standardised)
    assert "[coupling] collate_fn makes" in found(tmp_path / "mixed", data=data)


def test_a_collation_is_tried_on_items_that_the_data_set_tells_of(tmp_path):
    class Named(Data):
        def synthetic_units(self, num_units: int) -> Any:
            x, y = super().synthetic_units(num_units)
            return {"x": x, "y": y}

    class OfNames(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.losses(batch["x"], batch["y"]).mean()

    data = Named()
    rows = TensorDataset(torch.full((N, 4), torch.nan), torch.zeros(N))

    def loader(collate) -> None:
        data.train_dataloader = lambda: DataLoader(rows, batch_size=8, collate_fn=collate)

    loader(lambda items: dict(zip("xy", _standardised(items), strict=True)))
    assert "[coupling] collate_fn makes" in found(tmp_path, OfNames(), data=data)
    loader(lambda items: dict(zip("xy", _columns(items), strict=True)))
    fit(tmp_path, OfNames(), data=data)


def test_entries_that_could_be_anything_leave_a_collation_unchecked(tmp_path):
    data, rows = Data(), [object() for _ in range(N)]
    data.train_dataloader = lambda: DataLoader(rows, batch_size=8, collate_fn=lambda items: list(items))
    assert "[unchecked] collate_fn" in found(tmp_path, data=data)
