"""Patterns seen in published nets, whose constants can be as long as the batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance_models.case import Batch, Case, noise, per_row, plain

_TIME, _WIDTH = 12, 6


class Base(nn.Module):
    """A linear head over (R, T, D)."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3)


class ScaledTable(Base):
    """x + α · table, as in ESPnet's scaled positional encoding."""

    def __init__(self, *, per_channel: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(_WIDTH if per_channel else ()))
        self.register_buffer("table", torch.randn(_TIME, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.scale * self.table))


class PositionEmbedding(Base):
    """x + Embedding(arange)."""

    def __init__(self, *, padded: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(_TIME + 2, _WIDTH)
        self.first = 2 if padded else 0

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(self.first, self.first + x.shape[1])
        return self.head(torch.tanh(x + self.table(positions)))


class CoordinateBias(Base):
    """An MLP over a table of coordinates, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coordinates", torch.randn(_TIME, 2))
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.net(self.coordinates)))


class RelativeBias(Base):
    """A table read at (i − j) and added to attention scores, as in BEiT, Swin and T5."""

    def __init__(self, *, embedding: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2 * _TIME - 1, 2) if embedding else None
        self.table = None if embedding else nn.Parameter(torch.randn(2 * _TIME - 1, 2))
        self.mix = nn.Linear(_WIDTH, 2 * _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(_TIME)
        index = place[:, None] - place[None] + _TIME - 1  # (T, T)
        bias = self.table[index] if self.embedding is None else self.embedding(index)  # (T, T, H)
        q, k = self.mix(x).unflatten(-1, (2, 2, _WIDTH // 2)).unbind(2)
        scores = torch.einsum("bthd,bshd->bhts", q, k) + bias.permute(2, 0, 1)
        return self.head(torch.einsum("bhts,bsd->btd", scores.softmax(-1), x))


class MaskedConv(nn.Conv2d):
    """PixelCNN's convolution: weight · mask."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, 3, padding=1)
        mask = torch.ones(outs, ins, 3, 3)
        mask[:, :, 1, 2:] = 0
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class FrozenPlusDelta(nn.Module):
    """F.linear(x, frozen + A @ B): low-rank by hand, merged before use."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(12, _WIDTH))
        self.a, self.b = nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(2, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.frozen + self.a @ self.b))


class Adjacency(Base):
    """A learnt graph: softmax of E₁E₂ᵀ times the nodes, as in Graph WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(_TIME, 4))
        self.second = nn.Parameter(torch.randn(4, _TIME))

    def forward(self, x: Tensor) -> Tensor:
        graph = torch.softmax(torch.relu(self.first @ self.second), dim=1)
        return self.head(torch.einsum("nm,bmd->bnd", graph, x))


class TableTimesWeight(Base):
    """table @ W, then added to the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(_TIME, 5))
        self.weight = nn.Parameter(torch.randn(5, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.table @ self.weight))


class Chosen(Base):
    """torch.where(constant mask, parameter, x) and lerp: a learnt mask token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(_WIDTH))
        self.share = nn.Parameter(torch.rand(_TIME, 1))
        self.register_buffer("hidden", (torch.arange(_TIME) % 3 == 0)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(self.hidden, self.token, x)
        return self.head(torch.tanh(torch.lerp(x, x.flip(-1), self.share)))


class TokenMixing(Base):
    """W @ x over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(_TIME, _TIME))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.weight @ x))


class TimeFirstLinear(Base):
    """Linear layers and bare parameters on (T, R, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(_WIDTH, _WIDTH)
        self.gain = nn.Parameter(torch.ones(_WIDTH))
        self.positions = nn.Parameter(torch.randn(_TIME, 1, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.gain * self.first(x.transpose(0, 1)) + self.positions)
        return self.head(hidden).transpose(0, 1)


class Einsum(Base):
    """Weights in einsum with the rows second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(_WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.einsum("tbd,od->bto", x.transpose(0, 1), self.weight)))


class Tied(nn.Module):
    """A head with the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(12, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.head = nn.Linear(_WIDTH, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.table(x))))


class ClassToken(Base):
    """A class token and positions that are expanded over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, _WIDTH))
        self.positions = nn.Parameter(torch.randn(1, _TIME + 1, _WIDTH))
        self.mix = nn.Linear(_TIME + 1, _TIME + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(torch.tanh(self.mix(x.transpose(1, 2)).transpose(1, 2)))


class Queries(Base):
    """Learnt queries repeated along the second dimension, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(4, _WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(_WIDTH, 2, 8, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.weight.unsqueeze(1).repeat(1, len(x), 1)  # (Q, R, D)
        found = []
        for layer in self.layers:
            q = layer(q.transpose(0, 1), x).transpose(0, 1)
            found.append(self.norm(q))
        return self.head(torch.stack(found)).permute(2, 0, 1, 3)  # (layers, Q, R, 3) → rows first


class Experts(nn.Module):
    """Each row goes to one of two experts: layers on a selection of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(_WIDTH, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3)
        first = x[:, 0] > 0
        for chosen, expert in zip((first, ~first), self.experts, strict=True):
            out[chosen] = expert(x[chosen])
        return out


class Sorted(nn.Module):
    """Rows are sorted before a layer and put back after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(descending=True)
        hidden = torch.tanh(self.first(x[order]))
        return self.second(hidden[order.argsort()])


class Views(nn.Module):
    """Two views of each row as one batch of 2 R rows, the loss a mean over both."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(_WIDTH, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        both = self.net(torch.cat([x, x + 0.1]))
        return torch.cat(both.chunk(2), dim=1)


class LossWeights(nn.Module):
    """log σ² of two tasks, used outside the net's forward (Kendall et al.)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(_WIDTH, 8), nn.Tanh(), nn.Linear(8, 4))
        self.log_variances = nn.Parameter(torch.zeros(2))


def _weighted(model: nn.Module, batch: Batch) -> Tensor:
    out = model.net(batch["x"])
    tasks = torch.stack([per_row(out[:, :2]), per_row(out[:, 2:])], dim=1)
    return (tasks * torch.exp(-model.log_variances) + model.log_variances).sum(dim=1)


class Contrast(nn.Module):
    """A net and a child's weight used functionally in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(_WIDTH, 8), nn.Linear(8, 3)


def _functional(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(F.linear(torch.tanh(model.first(batch["x"])), model.second.weight, model.second.bias))


def _scalar(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch["x"]), batch["x"][..., :3])


class StackedSteps(nn.Module):
    """A cell's weights used at each of T steps, outputs stacked time first."""

    def __init__(self) -> None:
        super().__init__()
        self.wx, self.wh = nn.Linear(_WIDTH, 8), nn.Linear(8, 8, bias=False)
        self.start = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, states = self.start.expand(len(x), -1), []
        for step in x.unbind(1):
            state = torch.tanh(self.wx(step) + self.wh(state))
            states.append(state)
        return self.head(torch.stack(states)).transpose(0, 1)


class GatedChannels(nn.Module):
    """Squeeze-and-excitation, a learnt gain per channel, and C channels at batch C."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(16, 1, 1))
        self.down, self.up = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * self.conv(x)
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean(dim=(2, 3))))))
        return (x * gate[:, :, None, None]).mean(dim=(2, 3))


class Fourier(Base):
    """Learnt frequencies over a constant grid, concatenated to every row."""

    def __init__(self) -> None:
        super().__init__(_WIDTH + 4)
        self.frequencies = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, x.shape[1])[:, None]
        code = torch.sin(grid @ self.frequencies)
        return self.head(torch.cat([x, code.expand(len(x), -1, -1)], dim=-1))


def _net(build: Callable[[], nn.Module], *shape: int, step=plain) -> Case:
    return Case("pattern", build, noise(*(shape or (_TIME, _WIDTH))), step)


PATTERNS: dict[str, Case] = {
    "scale × position table": _net(ScaledTable),
    "gain per channel × position table": _net(lambda: ScaledTable(per_channel=True)),
    "scale × position table, own scalar loss": _net(ScaledTable, step=_scalar),
    "Embedding(arange)": _net(PositionEmbedding),
    "Embedding(arange) after padding rows": _net(lambda: PositionEmbedding(padded=True)),
    "MLP over coordinates": _net(CoordinateBias),
    "relative bias, table[index]": _net(lambda: RelativeBias(embedding=False)),
    "relative bias, Embedding(index)": _net(lambda: RelativeBias(embedding=True)),
    "masked convolution, 16 channels": _net(
        lambda: nn.Sequential(MaskedConv(1, 16), nn.ReLU(), MaskedConv(16, 16), nn.Conv2d(16, 1, 1)), 1, 5, 5
    ),
    "masked convolution, 64 channels": _net(
        lambda: nn.Sequential(MaskedConv(1, 64), nn.ReLU(), MaskedConv(64, 64), nn.Conv2d(64, 1, 1)), 1, 4, 4
    ),
    "frozen weight + A B": _net(FrozenPlusDelta),
    "learnt adjacency": _net(Adjacency),
    "table @ W": _net(TableTimesWeight),
    "where and lerp with constants": _net(Chosen),
    "W @ x over tokens": _net(TokenMixing),
    "layers on (T, R, D)": _net(TimeFirstLinear),
    "einsum with rows second": _net(Einsum),
    "tied embeddings": Case("pattern", Tied, lambda rows: {"x": torch.randint(0, 12, (rows, 7))}, plain),
    "class token and positions": _net(ClassToken),
    "DETR queries along the second dimension": _net(Queries),
    "experts on selected rows": _net(Experts, _WIDTH),
    "rows sorted and put back": _net(Sorted, _WIDTH),
    "two views by cat": _net(Views, _WIDTH),
    "uncertainty weights in the step": _net(LossWeights, _WIDTH, step=_weighted),
    "a child's weight used in the step": _net(Contrast, _WIDTH, step=_functional),
    "recurrent cell by hand": _net(StackedSteps),
    "channel gates": _net(GatedChannels, 2, 5, 5),
    "learnt frequencies over a grid": _net(Fourier),
}
