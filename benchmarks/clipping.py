"""What exact per-unit clipping costs: time and peak memory of a private step over a non-private one.

    python benchmarks/clipping.py --json docs/results/clipping.json
    python benchmarks/clipping.py --device cuda --json docs/results/clipping_cuda.json
    python benchmarks/clipping.py --models ts --engines book_keeping --no-growth

Every step is forward, backward, clipped sum, Gaussian noise and SGD; the non-private one forward,
backward and SGD. Steps of all engines are interleaved; a ratio is the median over rounds of (engine's
step / non-private step of the same round), in CPU time on a CPU and wall time on a GPU. Peak memory is
the growth of a fresh process over its size before the first step (of the CUDA allocator on a GPU).

Peers: Opacus 1.6, hooks and ghost. fastDP's book-keeping joins when it can be imported; it is not on
PyPI, install it by its own instructions.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.follow_rows import follow_rows

CLIP, NOISE, RATE = 1.0, 1.0, 1e-4


class Attention(nn.Module):
    """Self-attention over (B, T, D) by scaled_dot_product_attention."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D/H)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A DiT block, adaLN-Zero (arXiv 2212.09748)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(hidden, heads)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        a, b, g, d, e, h = self.modulation(c)[:, None].chunk(6, dim=-1)  # (B, 1, D)
        x = x + g * self.attention(self.norms[0](x) * (1 + a) + b)
        return x + h * self.mlp(self.norms[1](x) * (1 + d) + e)


class DiT(nn.Module):
    """Diffusion transformer; tokens come from `embed`, the position table is a frozen buffer."""

    def __init__(
        self, embed: nn.Module, *, hidden: int, depth: int, heads: int, tokens: int, out: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.register_buffer("position", torch.randn(1, tokens, hidden) * 0.02)
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.out = nn.Linear(hidden, out)
        self.hidden = hidden

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.embed(x)
        x = (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x) + self.position  # (B, T, D)
        angles = t[:, None] * torch.logspace(0, -4, self.hidden // 2, device=t.device)
        c = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        for block in self.blocks:
            x = block(x, c)
        a, b = self.modulation(c)[:, None].chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + a) + b)


@dataclass(frozen=True)
class Task:
    """A model, its inputs for a batch, and the per-row losses."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    losses: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


def _dit_losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, t, target = batch
    return (model(x, t) - target).square().flatten(1).mean(dim=1)


def series(*, hidden: int = 128, depth: int = 4, heads: int = 4, tokens: int = 96) -> Task:
    """`ts` of the protocol, and its neighbours."""
    return Task(
        lambda: DiT(nn.Linear(2, hidden), hidden=hidden, depth=depth, heads=heads, tokens=tokens, out=1),
        lambda n: (torch.randn(n, tokens, 2), torch.rand(n) * 1000, torch.randn(n, tokens, 1)),
        _dit_losses,
    )


def image() -> Task:
    """`img` of the protocol: 4-channel latents of 16 × 16 in patches of 2."""
    return Task(
        lambda: DiT(nn.Conv2d(4, 256, 2, stride=2), hidden=256, depth=6, heads=8, tokens=64, out=16),
        lambda n: (torch.randn(n, 4, 16, 16), torch.rand(n) * 1000, torch.randn(n, 64, 16)),
        _dit_losses,
    )


def unet_lora() -> Task:
    """A small UNet2DConditionModel with LoRA of rank 8 on its attention."""

    def build() -> nn.Module:
        from diffusers import UNet2DConditionModel
        from peft import LoraConfig

        unet: Any = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 128),
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        unet.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=8, init_lora_weights=False, target_modules=targets))
        return unet

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, t, condition, target = batch
        out = model(x, t, encoder_hidden_states=condition).sample
        return (out - target).square().flatten(1).mean(dim=1)

    def inputs(n: int) -> tuple[Tensor, ...]:
        x = torch.randn(n, 4, 16, 16)
        return x, torch.randint(0, 1000, (n,)), torch.randn(n, 8, 64), torch.randn_like(x)

    return Task(build, inputs, losses)


class Residual(nn.Module):
    """Two 3 × 3 convolutions with GroupNorm and a shortcut (arXiv 1512.03385, 1803.08494)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(hidden + self.shortcut(x))


def resnet() -> Task:
    """ResNet-18's layout at half its width, for images of 32 × 32 in ten classes."""

    def build() -> nn.Module:
        widths = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        widths += [(64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            *(Residual(*width) for width in widths),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(build, lambda n: (torch.randn(n, 3, 32, 32), torch.randint(0, 10, (n,))), losses)


def unet() -> Task:
    """A small UNet2DModel of diffusers, all of it trained, on latents of 4 × 16 × 16."""

    def build() -> nn.Module:
        from diffusers import UNet2DModel

        return UNet2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 128),
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=32,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )

    def losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, t, target = batch
        return (model(x, t).sample - target).square().flatten(1).mean(dim=1)

    def inputs(n: int) -> tuple[Tensor, ...]:
        x = torch.randn(n, 4, 16, 16)
        return x, torch.randint(0, 1000, (n,)), torch.randn_like(x)

    return Task(build, inputs, losses)


MODELS: dict[str, Callable[[], Task]] = {
    "ts": series,
    "img": image,
    "unet_lora": unet_lora,
    "resnet": resnet,
    "unet": unet,
}


class Stepper:
    """One engine's training step on a model of its own."""

    def __init__(self, task: Task, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.model = task.build().to(device)
        # adaLN-Zero and LoRA start at zero, which no engine may profit from.
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        self.batch = tuple(t.to(device) for t in task.inputs(batch))
        self.losses, self.size, self.device = task.losses, batch, device
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(self.trained, lr=RATE)

    def forward(self) -> Tensor:
        """Per-row losses, under bf16 autocast on a GPU."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            out = self.losses(self.model, self.batch)
        return out.float()

    def noisy(self, gradient: Tensor) -> Tensor:
        """What a private optimizer steps with."""
        return gradient.add_(torch.randn_like(gradient), alpha=NOISE * CLIP).div_(self.size)

    def step(self) -> None:
        """The non-private step."""
        self.optimizer.zero_grad()
        self.forward().mean().backward()
        self.optimizer.step()


class EngineStepper(Stepper):
    """An engine of this package."""

    engine: type[ClippingEngine] = BookKeeping

    def __init__(self, task: Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        self.clipper = self.engine()
        self.clipper.know(follow_rows(self.model, task.losses, self.batch, num_units=batch))
        self.clipper.attach(self.model, function=Flat(), max_grad_norm=CLIP)
        self.weights = torch.ones(batch, device=device)

    def step(self) -> None:
        self.clipper.expect(unit_weights=self.weights, rows_per_unit=1)
        self.forward().mean().backward()
        self.clipper.collect()
        sums = self.clipper.take()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = self.noisy(sums[name])
        self.optimizer.step()
        self.optimizer.zero_grad()


class MaterialisedStepper(EngineStepper):
    """Opacus's rules under our hooks."""

    engine = Materialised


class OpacusHooks(Stepper):
    """Opacus's GradSampleModule and DPOptimizer."""

    def __init__(self, task: Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.model = GradSampleModule(self.model)
        self.optimizer: Any = DPOptimizer(
            self.optimizer, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=batch
        )


class OpacusGhost(Stepper):
    """Opacus's fast gradient clipping with ghost norms: two backwards."""

    def __init__(self, task: Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        self.model = GradSampleModuleFastGradientClipping(
            self.model, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="mean"
        )
        self.optimizer: Any = DPOptimizerFastGradientClipping(
            self.optimizer, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=batch
        )
        self.wrap = DPTensorFastGradientClipping

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.wrap(self.model, self.optimizer, self.forward(), loss_reduction="mean").backward()
        self.optimizer.step()


class FastDP(Stepper):
    """fastDP's MixOpt book-keeping."""

    def __init__(self, task: Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        from fastDP import PrivacyEngine  # type: ignore[import-not-found]

        engine = PrivacyEngine(
            self.model,
            batch_size=batch,
            sample_size=10**6,
            noise_multiplier=NOISE,
            epochs=1,
            clipping_mode="MixOpt",
            clipping_style="all-layer",
        )
        engine.attach(self.optimizer)


ENGINES: dict[str, type[Stepper]] = {
    "non_private": Stepper,
    "book_keeping": EngineStepper,
    "materialised": MaterialisedStepper,
    "opacus_hooks": OpacusHooks,
    "opacus_ghost": OpacusGhost,
    "fastdp": FastDP,
}


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ratios(task: Task, names: list[str], *, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of the non-private step, and each engine's median ratio to it."""
    steppers: dict[str, Stepper] = {}
    failed: dict[str, str] = {}
    for name in ["non_private", *names]:
        try:
            stepper = ENGINES[name](task, batch, device)
            for _ in range(2):
                stepper.step()
            steppers[name] = stepper
        except Exception as error:  # a peer that can't is a row of the table
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            gc.collect()
            start = _clock(device)
            stepper.step()
            seconds[name].append(_clock(device) - start)
    base = seconds["non_private"]
    found = {
        name: statistics.median(own / plain for own, plain in zip(times, base, strict=True))
        for name, times in seconds.items()
    }
    return {"seconds": statistics.median(base), "ratios": found, "failed": failed}


def peak_memory(model: str, name: str, *, batch: int, device: str, runs: int) -> float | None:
    """Bytes by which a fresh process grows over three steps; median of `runs` processes."""
    command = [sys.executable, __file__, "--child", model, name, "--batch", str(batch), "--device", device]
    found = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not done.stdout.split():
            return None
        found.append(float(done.stdout.split()[-1]))
    return statistics.median(found)


def _resident(field: str) -> int:
    # Not getrusage: its maximum is inherited from the parent across exec.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _child(model: str, name: str, *, batch: int, device: str) -> None:
    stepper = ENGINES[name](MODELS[model](), batch, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = _resident("VmRSS")
    for _ in range(3):
        stepper.step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    print(after - before)


def growth(names: list[str], *, device: str, rounds: int) -> list[dict[str, Any]]:
    """How the ratios move with batch, tokens and width, around a small `ts`."""
    rows = []
    plans: list[tuple[str, int, Task, int]] = [
        *(("batch", n, series(depth=2), n) for n in (16, 32, 64, 128)),
        *(("tokens", n, series(depth=2, tokens=n), 32) for n in (24, 48, 96, 192, 384)),
        *(("width", n, series(depth=2, hidden=n), 32) for n in (64, 128, 256, 512)),
    ]
    for what, value, task, batch in plans:
        measured = ratios(task, names, batch=batch, device=device, rounds=rounds)
        for name in names:
            if name in measured["ratios"]:
                row = {"what": what, "value": value, "engine": name, "time_ratio": measured["ratios"][name]}
                rows.append({**row, "seconds_non_private": measured["seconds"]})
                print(f"{what:7s} {value:4d} {name:14s} {measured['ratios'][name]:.3f}", flush=True)
    return rows


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}"


def plot(report: dict[str, Any], path: Path) -> None:
    """Time and memory of each engine, and how time grows, as one figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in report["rows"] if row["time_ratio"]]
    names = [name for name in ENGINES if any(row["engine"] == name for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    grown = report["growth"]
    figure, axes = pyplot.subplots(1, 5, figsize=(18, 3.6), layout="constrained")
    for axis, key, title in zip(axes, ("time_ratio", "memory_ratio"), ("time", "peak memory"), strict=False):
        for index, name in enumerate(names):
            values = {row["model"]: row[key] or 0 for row in rows if row["engine"] == name}
            at = [m + index / (len(names) + 1) for m in range(len(models))]
            axis.bar(at, [values.get(m, 0) for m in models], 1 / (len(names) + 1), label=name, align="edge")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks([m + 0.4 for m in range(len(models))], models)
        axis.set_title(f"{title} ÷ non-private")
    for axis, what in zip(axes[2:], ("batch", "tokens", "width"), strict=True):
        for index, name in enumerate(names):
            line = [row for row in grown if row["what"] == what and row["engine"] == name]
            if line:
                xs, ys = [row["value"] for row in line], [row["time_ratio"] for row in line]
                axis.plot(xs, ys, marker="o", color=f"C{index}")
        axis.axhline(1, color="black", linewidth=0.8)
        values = sorted({row["value"] for row in grown if row["what"] == what})
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_xlabel(what)
        axis.set_title(f"time ÷ non-private against {what}")
    entries = axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower left", ncols=len(names), fontsize=9, frameon=False)
    figure.savefig(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES)[1:], default=list(ENGINES)[1:])
    parser.add_argument("--batch", type=int, help="64 on a CPU, 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-runs", type=int, default=3, help="fresh processes; 0 for no memory")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    batch = options.batch or (256 if options.device == "cuda" else 64)
    if options.child:
        _child(*options.child, batch=batch, device=options.device)
        return
    rows: list[dict[str, Any]] = []
    for model in options.models:
        measured = ratios(
            MODELS[model](), options.engines, batch=batch, device=options.device, rounds=options.rounds
        )
        how = {"batch": batch, "device": options.device, "runs": options.memory_runs}
        plain = peak_memory(model, "non_private", **how) if options.memory_runs else None
        for name in options.engines:
            row: dict[str, Any] = {"model": model, "engine": name, "device": options.device, "batch": batch}
            row["time_ratio"] = measured["ratios"].get(name)
            row["seconds_non_private"] = measured["seconds"]
            row["failed"] = measured["failed"].get(name)
            own = None
            if plain and row["failed"] is None:
                own = peak_memory(model, name, **how)
            row["memory_ratio"] = own / plain if own and plain else None
            row["bytes_non_private"] = plain
            rows.append(row)
            shown = " ".join(f"{row[k]:.3f}" if row[k] else "-" for k in ("time_ratio", "memory_ratio"))
            print(f"{model:10s} {name:14s} {shown} {row['failed'] or ''}", flush=True)
    grown = []
    if not options.no_growth:
        compared = [n for n in options.engines if n in ("book_keeping", "opacus_hooks", "opacus_ghost")]
        grown = growth(compared, device=options.device, rounds=max(5, options.rounds // 2))
    if options.json:
        report = {
            "command": "python benchmarks/clipping.py " + " ".join(sys.argv[1:]),
            "commit": _commit(),
            "machine": _machine(options.device),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "rows": rows,
            "growth": grown,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        plot(report, options.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
