"""DyLoRA: each step's rank is public and one for all its units, and nothing outside of its block moves."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from adapter_support import fit, small_module
from follow_steps import sites_of
from images.image_support import CLASSES, pictures, tiny_net
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.dylora import DyLoRA, use_rank
from lightning_dp.adapters.output_head import OutputHead
from lightning_dp.adapters.several import Several
from lightning_dp.cli import main
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop

RANK = 8
PHYSICAL = {"expected_batch_size": 12, "physical_batch_size": 4}


def _low_seed(steps: int) -> int:
    """A seed whose first steps draw different ranks, and leave the last rows out."""
    for seed in range(1000):
        drawn = [DyLoRA(rank=RANK, seed=seed).rank_of(step) for step in range(steps)]
        if max(drawn) <= 5 and len(set(drawn)) == steps:
            return seed
    raise AssertionError


def test_the_first_rows_and_columns_make_the_output():
    net = nn.Sequential(nn.Linear(5, 6))
    adapter = DyLoRA(rank=4, scale=6.0, targets=".*")
    adapter.apply(net)
    layer, x = net[0], torch.randn(3, 5)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b)

    def expected(rank: int) -> Tensor:
        return layer.base_layer(x) + 6.0 / rank * (x @ a[:rank].T @ b[:, :rank].T)

    torch.testing.assert_close(net(x), expected(4))
    adapter.begin_step(7)
    torch.testing.assert_close(net(x), expected(adapter.rank_of(7)))
    net.eval()
    torch.testing.assert_close(net(x), expected(4))
    for rank in (1, 3):
        use_rank(Several(adapters=[adapter, OutputHead()]), rank)
        torch.testing.assert_close(net(x), expected(rank))


def test_ranks_are_drawn_by_the_step_and_the_seed_alone():
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    uniform, geometric = DyLoRA(rank=4, seed=3), DyLoRA(rank=4, seed=3, geometric=0.5)
    drawn = [uniform.rank_of(step) for step in range(4000)]
    assert drawn == [DyLoRA(rank=4, seed=3).rank_of(step) for step in range(4000)]
    assert drawn != [DyLoRA(rank=4, seed=4).rank_of(step) for step in range(4000)]
    counts = Counter(drawn)
    assert all(abs(counts[rank] / 4000 - 0.25) < 0.03 for rank in (1, 2, 3, 4))
    counts = Counter(geometric.rank_of(step) for step in range(4000))
    for rank, share in enumerate((8 / 15, 4 / 15, 2 / 15, 1 / 15), start=1):
        assert abs(counts[rank] / 4000 - share) < 0.03
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))


def _collected(engine, net: nn.Module, losses) -> tuple[Tensor, dict[str, Tensor]]:
    engine.know(sites_of(net, losses, units=6, rows_per_unit=1))
    engine.attach(net, function=Flat(), max_grad_norm=0.05)
    try:
        engine.expect(unit_weights=torch.ones(6), rows_per_unit=1)
        losses().mean().backward()
        return engine.collect(), engine.take()
    finally:
        engine.detach()


def test_a_step_is_clipped_exactly_and_has_no_gradient_outside_of_its_block():
    torch.manual_seed(0)
    net = tiny_net(depth=1)
    adapter = DyLoRA(rank=4, seed=next(s for s in range(99) if DyLoRA(rank=4, seed=s).rank_of(0) == 2))
    adapter.apply(net)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    noisy, labels = torch.randn(6, net.in_channels, net.size, net.size), torch.arange(6) % net.num_classes
    timesteps = torch.arange(6) * 90

    def losses() -> Tensor:
        return net(noisy, timesteps, labels=labels).square().flatten(1).sum(dim=1)

    adapter.begin_step(0)
    norms, sums = _collected(Loop(), net, losses)
    found_norms, found = _collected(BookKeeping(), net, losses)
    torch.testing.assert_close(found_norms, norms, rtol=1e-4, atol=0)
    for name, value in sums.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)
        used, unused = (value[:2], value[2:]) if "lora_A" in name else (value[:, :2], value[:, 2:])
        assert used.abs().max() > 0
        assert unused.abs().max() == 0
        assert (found[name][2:] if "lora_A" in name else found[name][:, 2:]).abs().max() == 0


class _Seen(Callback):
    """The rank of each physical batch, by step."""

    def __init__(self) -> None:
        self.ranks: dict[int, list[int]] = {}

    def on_before_backward(self, trainer, pl_module, loss):
        layer = pl_module.net.blocks[0].attention.qkv.lora_A["q"]
        self.ranks.setdefault(trainer.global_step, []).append(layer.rank)


@pytest.mark.parametrize("planted", [False, True])
def test_all_batches_of_a_step_share_a_rank_and_noise_moves_nothing_outside(tmp_path, monkeypatch, planted):
    if planted:  # noise stays where the step had no use for the pair
        monkeypatch.setattr(DyLoRA, "mask_gradients", lambda self: None)
    adapter = DyLoRA(rank=RANK, seed=_low_seed(3))
    module = small_module(Several(adapters=[adapter, OutputHead()]))
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    seen = _Seen()
    fit(module, tmp_path, steps=3, callbacks=(seen,), **PHYSICAL)
    drawn = [adapter.rank_of(step) for step in range(3)]
    assert {step: set(ranks) for step, ranks in seen.ranks.items()} == {
        step: {rank} for step, rank in enumerate(drawn)
    }
    assert max(len(ranks) for ranks in seen.ranks.values()) > 1  # several physical batches
    moved = {name: (p - before[name]).abs() for name, p in module.named_parameters() if "lora_" in name}
    for name, change in moved.items():
        rows = change if "lora_A" in name else change.T  # (R, …)
        assert rows[: max(drawn)].amax(dim=1).min() > 0
        assert bool(rows[max(drawn) :].amax() > 0) == planted


def test_a_run_is_sampled_and_judged_at_any_of_its_ranks(tmp_path, capsys):
    for split, count in (("train", 16), ("test", 6)):
        images, labels = pictures(count, size=8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    source = f"{{class_path: NPZ, init_args: {{path: {tmp_path}, class_names: {CLASSES}}}}}"
    net = (
        "{class_path: ImageDiT, init_args: {conditioning: AdaLNZero, in_channels: 1, size: 8, num_classes: 3"
    )
    options = [
        f"--data={{class_path: ImageData, init_args: {{source: {source}, size: 8, mode: grey}}}}",
        f"--model={{class_path: LatentDiffusion, init_args: {{net: {net}, hidden_size: 16, depth: 1}}}}}}}}",
        "--model.init_args.adapter={class_path: DyLoRA, init_args: {rank: 2, targets: .*}}",
        "--model.init_args.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 0.3}}",
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--run.test=false",
        "--run.wandb=disabled",
        "--privacy.noise_multiplier=2",
        "--privacy.delta=1e-2",
        "--privacy.expected_batch_size=6",
    ]
    run = tmp_path / "run"
    assert main(["fit", *options, f"--run.dir={run}"]) == 0
    sample = ["sample", str(run), "--num=3", "--steps=2", "--seed=0", "--format=npz"]
    images = {}
    for rank in (1, 2):
        out = tmp_path / f"rank{rank}"
        assert main([*sample, f"--rank={rank}", f"--output={out}"]) == 0
        assert json.loads((out / "about.json").read_text())["rank"] == rank
        images[rank] = np.load(out / "train.npz")["images"]
    assert main([*sample, f"--output={tmp_path / 'largest'}"]) == 0
    assert np.array_equal(np.load(tmp_path / "largest" / "train.npz")["images"], images[2])
    assert not np.array_equal(images[1], images[2])
    assert main([*sample, "--rank=3", f"--output={tmp_path / 'none'}"]) == 2
    assert "rank is 3, but this DyLoRA has ranks from 1 to 2" in capsys.readouterr().err


def test_what_can_not_be_is_refused():
    with pytest.raises(ValueError, match=r"geometric is 1\.0"):
        DyLoRA(geometric=1.0)
    with pytest.raises(ValueError, match="seed is -1"):
        DyLoRA(seed=-1)
    with pytest.raises(ValueError, match=r"LoRA\.rank is 0"):
        DyLoRA(rank=0)
    for adapter, name in ((None, "no adapter"), (Attention(), "Attention")):
        with pytest.raises(ValueError, match=f"trained by {name}, and only"):
            use_rank(adapter, 1)
