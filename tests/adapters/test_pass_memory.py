"""A pass over private rows before training takes no more memory than a step of training, in its precision."""

import numpy as np
import pytest
import torch
from adapter_support import fit, small_module
from images.image_support import tiny_module
from lightning.pytorch import Callback, Trainer
from torch._C._profiler import _EventType

from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.callbacks.precision import forward_precision
from lightning_dp.images.autoencoder import Pixels
from lightning_dp.nets.unet import CrossAttentionUNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.rows import is_followed

SIZE, UNITS = 16, 2
BATCH = {"images": torch.randn(UNITS, 1, SIZE, SIZE), "labels": torch.arange(UNITS)}


def peak_bytes(action) -> int:
    """The most that `action` holds at a time beside what was there, as torch's CPU allocator counts it."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    nodes, changes = list(profile.kineto_results.experimental_event_tree()), []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.tag == _EventType.Allocation:
            changes.append((node.start_time_ns, node.extra_fields.alloc_size))
    return int(np.cumsum([size for _, size in sorted(changes)]).max())


def module_of(adapter, *, precision: str):
    torch.manual_seed(0)
    net = CrossAttentionUNet(
        in_channels=1,
        size=SIZE,
        num_classes=4,
        norm_groups=8,
        condition_size=32,
        block_out_channels=(32, 64),
        attention=(True, True),
        num_heads=2,
    )
    module = tiny_module(net=net, adapter=adapter, label_dropout=0.0)
    module.trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    return module


def training_step(module) -> None:
    engine = BookKeeping()

    def losses(again, rows):
        with forward_precision(module):
            return again.per_example_losses(rows)

    engine.know(follow_rows(module, losses, BATCH, num_units=UNITS, attached=lambda again: again.net))
    engine.attach(module.net, function=Flat(), max_grad_norm=1.0)
    engine.expect(unit_weights=torch.ones(UNITS), rows_per_unit=1, loss_scale=UNITS)
    losses(module, BATCH).sum().backward()
    engine.collect()
    engine.take()
    engine.detach()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_scores_take_no_more_memory_than_a_step(precision):
    chosen = SaliencyLoRA(ratio=0.5, noise_multiplier=3.0)
    module = module_of(chosen, precision=precision)
    scores = peak_bytes(lambda: chosen.norms(module, [BATCH, BATCH], rows_per_unit=1))
    training = module_of(LoRA(), precision=precision)
    step = peak_bytes(lambda: training_step(training))
    assert scores <= 1.2 * step
    larger = {name: torch.cat([value] * 4) for name, value in BATCH.items()}
    assert peak_bytes(lambda: chosen.norms(module, [larger], rows_per_unit=1)) > 2 * step  # it is seen


class Watched(Pixels):
    """Notes how many images it was given at once, and whether in bf16."""

    def __init__(self) -> None:
        super().__init__(num_channels=1)
        self.seen: list[tuple[int, bool]] = []

    def encode(self, images):
        if not is_followed(images):
            self.seen.append((len(images), torch.is_autocast_enabled("cpu")))
        return images


class BeforeTraining(Callback):
    """Notes the same of the net, from the start of the fit to the start of training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []

    def on_fit_start(self, trainer, pl_module):
        def note(net, args):
            if not is_followed(args[0]):
                self.seen.append((len(args[0]), torch.is_autocast_enabled("cpu")))

        pl_module.autoencoder.seen.clear()  # of the preflight
        self._hook = pl_module.net.register_forward_pre_hook(note)

    def on_train_start(self, trainer, pl_module):
        self._hook.remove()


@pytest.mark.parametrize(
    ("draws", "rows"), [(1, [5, 5, 5, 5, 4]), (2, [4] * 12), (7, [7] * 24)], ids=["1", "2", "7"]
)
def test_every_pass_of_a_fit_obeys_its_physical_batch_and_precision(tmp_path, capsys, draws, rows):
    """24 pictures in physical batches of 5 are encoded, and scored by as many rows as a step has."""
    module = small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=3.0, noise_draws=draws))
    module.autoencoder = Watched()
    scores = BeforeTraining()
    options: dict = {"callbacks": (scores,), "precision": "bf16-mixed", "physical_batch_size": 5}
    fit(module, tmp_path, steps=1, **options)
    assert module.autoencoder.seen[:5] == [(5, True)] * 4 + [(4, True)]
    assert scores.seen == [(count, True) for count in rows]
    said = capsys.readouterr().out
    assert "Saliency: 5 units at once in bf16-mixed, as in a step of training, which keeps about " in said
