"""What leaves this machine of a private fit: the unmodified W&B client, offline, and what is in its file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.tracking.local_loggers import RunMetrics, find_outgoing
from lightning_dp.tracking.shared_rows import share_rows
from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger

SECRET = 0.123456789  # as what is logged of private rows
PUBLIC_FIGURES = {"privacy/steps", "privacy/noise_multiplier", "privacy/epsilon"}


class Own(LightningModule):
    """Logs everywhere, by names that promise nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"rows_counted": 48.5})
        self.net = nn.Linear(3, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("train_loss", SECRET)
        self.log("val_loss_of_training", SECRET)
        self.log("on_epoch", SECRET, on_epoch=True)
        self.log("privacy/of_rows", SECRET)
        self.log("test/mse", SECRET)
        self.log("lr", SECRET)
        return self.net(batch[0]).square().mean()

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("hook_start", SECRET)

    def on_train_epoch_end(self) -> None:
        self.log("hook_epoch_end", SECRET)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log("hook_optimizer", SECRET)
        for logger in self.loggers:
            logger.log_metrics({"by_hand": SECRET, "epoch": SECRET}, step=7)
            if isinstance(logger, DiscreetWandbLogger):
                logger.experiment.log({"by_run": SECRET})
                logger.log_image("rows_as_image", [torch.full((3, 4, 4), SECRET)])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_error", 0.987654)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("error", 0.876543)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Says(Callback):
    """Another callback that overwrites a figure of the fit's own."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.log("privacy/epsilon", SECRET, prog_bar=True)


def run(
    folder: Path,
    *loggers: Logger,
    accept: dict[str, str] | None = None,
    test: bool = False,
    validate_on: slice = slice(40, 48),
) -> Trainer:
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0, delta=1e-3, expected_batch_size=8, dataset="rows", accept=accept
    )
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        devices=1,
        callbacks=[privacy, LearningRateMonitor(logging_interval="step"), Says()],
        logger=loggers,
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    rows = torch.rand(48, 3, generator=torch.Generator().manual_seed(0))
    everything = TensorDataset(rows)
    train, validation, held_out = (
        DataLoader(Subset(everything, range(48)[part]), batch_size=8)
        for part in (slice(40), validate_on, slice(40, 48))
    )
    module = Own()
    try:
        trainer.fit(module, train, validation)
        if test:
            trainer.test(module, held_out, verbose=False)
    finally:
        end_wandb()
    return trainer


def end_wandb() -> None:
    """The file of a run is whole once W&B's own process has ended."""
    wandb.finish()
    wandb.teardown()


def sent(folder: Path) -> bytes:
    """What `wandb sync` would send."""
    return b"".join(path.read_bytes() for path in folder.rglob("*.wandb"))


TRAIN = ["train_loss", "val_loss_of_training", "on_epoch", "privacy/of_rows", "hook_start", "hook_epoch_end"]
TRAIN += ["test/mse", "hook_optimizer", "by_hand", "by_run", "rows_as_image", "lr-SGD"]


def test_nothing_that_a_train_hook_logs_is_sent(tmp_path):
    logger = DiscreetWandbLogger(offline=True, save_dir=tmp_path, project="own")
    trainer = run(tmp_path, logger, test=True)
    content = sent(tmp_path)
    assert content
    for name in TRAIN:
        assert name.encode() not in content, name
    for value in (str(SECRET), str(SECRET)[:6]):
        assert value.encode() not in content  # by whatever name
    assert b"rows_counted" not in content  # hyperparameters that Lightning collected
    for name in (*PUBLIC_FIGURES, "val_error", "error", "epoch", "trainer/global_step"):
        assert name.encode() in content, name
    # The user's own value of ε was not sent, the fit's own was.
    epsilon = float(np.float32(DifferentialPrivacy.of(trainer).plan.epsilon))
    assert str(epsilon).encode() in content
    assert not list(tmp_path.rglob("media"))
    assert b"diff.patch" not in content


def test_a_logger_of_its_own_shows_the_fault(tmp_path):
    """The planted fault: the logger that most people use, on the word of whoever runs it."""
    refused = WandbLogger(offline=True, save_dir=tmp_path, project="own")
    with pytest.raises(ValueError, match=r"trainer\.logger has a WandbLogger, which may send") as error:
        run(tmp_path, refused)
    assert "DiscreetWandbLogger" in str(error.value)
    assert b"train_loss" not in sent(tmp_path)
    run(tmp_path, WandbLogger(offline=True, save_dir=tmp_path), accept={"logger": "no secret rows"})
    assert b"train_loss" in sent(tmp_path)
    assert str(SECRET)[:6].encode() in sent(tmp_path)


def test_what_is_declared_public_is_sent_and_nothing_beside_it(tmp_path):
    public = ["lr-SGD", "rows_as_image"]
    run(tmp_path, DiscreetWandbLogger(offline=True, save_dir=tmp_path, public_metrics=public))
    content = sent(tmp_path)
    assert b"lr-SGD" in content
    assert len(list(tmp_path.rglob("media/images/*.png"))) == 4
    for name in set(TRAIN) - set(public):
        assert name.encode() not in content, name


def test_the_run_folder_keeps_everything_and_says_what_is_private(tmp_path):
    run(tmp_path, RunMetrics(save_dir=tmp_path, name="", version=""), test=True)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {name for row in rows for name, value in row.items() if value}
    kept = {name for name in names if not name.startswith("nonprivate/")}
    assert kept == {*PUBLIC_FIGURES, "val_error", "error", "epoch", "step"}
    of_training = set(TRAIN) - {"by_run", "rows_as_image", "on_epoch"}
    assert {f"nonprivate/{name}" for name in of_training} <= names
    for row in rows:
        assert all(str(SECRET)[:6] not in row[name] for name in kept)


def test_an_evaluation_of_train_rows_stays_here(tmp_path):
    run(tmp_path, DiscreetWandbLogger(offline=True, save_dir=tmp_path), validate_on=slice(36, 44), test=True)
    content = sent(tmp_path)
    assert b"val_error" not in content
    assert b"0.98765" not in content
    assert b"0.87654" in content  # of the test, whose rows are held out


def test_rows_in_common_are_found_however_data_sets_are_put_together():
    rows, others = torch.rand(8, 2), torch.rand(4, 2)
    whole = TensorDataset(rows)
    joined = ConcatDataset([TensorDataset(others), whole])
    assert share_rows(whole, TensorDataset(rows, torch.arange(8)))
    assert share_rows(Subset(joined, [5]), Subset(whole, [1, 2]))
    assert share_rows(Subset(Subset(whole, [6, 7]), [1]), Subset(whole, [7]))
    assert not share_rows(Subset(joined, [0, 3, 4]), Subset(whole, [1, 2]))
    assert not share_rows(Subset(whole, range(4)), Subset(whole, range(4, 8)))
    assert not share_rows(whole, TensorDataset(rows.clone()))  # a copy can't be told


def test_an_experiment_hands_out_nothing_else(tmp_path):
    class Uploads(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.logger.experiment.summary["mean"] = SECRET

    class Configures(Callback):
        def on_train_batch_end(self, trainer, *_):
            assert trainer.logger.experiment.id
            trainer.logger.experiment.config.update({"mean": SECRET})

    for number, callback in enumerate((Uploads(), Configures())):
        folder = tmp_path / str(number)
        folder.mkdir()
        logger = DiscreetWandbLogger(offline=True, save_dir=folder)
        privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=8, dataset="rows")
        trainer = Trainer(
            max_steps=1,
            callbacks=[privacy, callback],
            logger=logger,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        with pytest.raises(RuntimeError, match=r"logger\.experiment\.(summary|config) would send"):
            trainer.fit(Own(), DataLoader(TensorDataset(torch.rand(40, 3)), batch_size=8))
        end_wandb()
        assert str(SECRET)[:6].encode() not in sent(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"log_model": "all"}, r"DiscreetWandbLogger\.log_model is 'all'"),
        ({"sync_tensorboard": True}, r"DiscreetWandbLogger\.sync_tensorboard is True"),
        ({"save_code": True}, r"DiscreetWandbLogger\.save_code is True"),
        ({"public_metrics": ["nonprivate/train_loss"]}, "public_metrics is"),
        ({"public_metrics": "train_loss"}, "public_metrics is 'train_loss'"),
    ],
)
def test_options_that_would_send_more_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        DiscreetWandbLogger(save_dir=tmp_path, **options)


def test_gradients_are_not_watched(tmp_path):
    with pytest.raises(ValueError, match="watch would send gradients"):
        DiscreetWandbLogger(offline=True, save_dir=tmp_path).watch(Own())


def test_a_run_of_other_settings_is_not_taken_over(tmp_path):
    open_already = wandb.init(mode="offline", dir=str(tmp_path), project="other")
    try:
        with pytest.raises(ValueError, match=f"W&B's run {open_already.id} is open already"):
            run(tmp_path / "run", DiscreetWandbLogger(offline=True, save_dir=tmp_path))
    finally:
        wandb.finish()


def test_a_subclass_of_a_local_logger_may_send(tmp_path):
    class Sends(CSVLogger):
        """Of which nobody knows."""

    here = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path), RunMetrics(save_dir=tmp_path)]
    away = [Sends(tmp_path), CSVLogger("memory://elsewhere")]
    assert find_outgoing([*here, *away]) == away
