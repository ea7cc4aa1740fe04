"""torch's own layers, each in a small net, in the ways that they are called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from conformance_models.case import Batch, Case, noise, per_row, plain

_TIME, _WIDTH = 5, 8


def _case(build: Callable[[], nn.Module], *shape: int, step: Any = plain) -> Case:
    return Case("torch", build, noise(*(shape or (_TIME, _WIDTH))), step)


class Recurrent(nn.Module):
    """A recurrent net over (R, T, D), batch or time first, and a head."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool = True, **config: Any) -> None:
        super().__init__()
        self.net = kind(_WIDTH, 6, batch_first=batch_first, **config)
        self.head = nn.Linear(6 * (2 if config.get("bidirectional") else 1), 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x if self.batch_first else x.transpose(0, 1))[0]
        return self.head(out if self.batch_first else out.transpose(0, 1))


class Packed(nn.Module):
    """An LSTM over packed sequences of 2 to 5 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.LSTM(_WIDTH, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.net(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(out)


def _packed(rows: int) -> Batch:
    return {"x": torch.randn(rows, _TIME, _WIDTH), "lengths": torch.randint(2, _TIME + 1, (rows,))}


class Cell(nn.Module):
    """A cell called once per step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(_WIDTH, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class TimeFirst(nn.Module):
    """(R, T, D) → (T, R, D) → net → (R, T, D)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(0, 1)).transpose(0, 1)


def _encoder(*, batch_first: bool, norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        _WIDTH, 2, 16, batch_first=batch_first, dropout=0.0, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return encoder if batch_first else TimeFirst(encoder)


class MaskedEncoder(nn.Module):
    """An encoder with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = _encoder(batch_first=True), nn.Linear(_WIDTH, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        out = self.encoder(x, src_key_padding_mask=padding)
        return self.head(out.masked_fill(padding[..., None], 0.0).sum(dim=1))


class Translator(nn.Module):
    """nn.Transformer with a causal target."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.net = nn.Transformer(_WIDTH, 2, 1, 1, 16, dropout=0.0, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        source, target = (x, x[:, 1:]) if self.batch_first else (x.transpose(0, 1), x.transpose(0, 1)[1:])
        mask = nn.Transformer.generate_square_subsequent_mask(_TIME - 1)
        out = self.net(source, target, tgt_mask=mask)
        return out if self.batch_first else out.transpose(0, 1)


class Attention(nn.Module):
    """nn.MultiheadAttention in one of its variants."""

    def __init__(
        self, *, batch_first: bool = True, causal: bool = False, other: int = _WIDTH, **config: Any
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(_WIDTH, 2, batch_first=batch_first, **config)
        self.other = None if other == _WIDTH else nn.Linear(_WIDTH, other)
        self.head = nn.Linear(_WIDTH, 3)
        self.batch_first, self.causal = batch_first, causal

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        keys = x if self.other is None else self.other(x)
        mask = torch.ones(_TIME, _TIME).triu(1).bool() if self.causal else None
        out, weights = self.attention(x, keys, keys, attn_mask=mask, need_weights=self.causal)
        out = self.head(torch.tanh(out))
        if weights is not None:
            out = out + (weights.sum(-1, keepdim=True) if self.batch_first else 0)
        return out if self.batch_first else out.transpose(0, 1)


def _images(*layers: Callable[[], nn.Module], size: int = 8, dims: int = 2, channels: int = 4) -> Case:
    return _case(lambda: nn.Sequential(*(layer() for layer in layers)), channels, *(size,) * dims)


class Bags(nn.Module):
    """nn.EmbeddingBag over (R, 4) or over one list of words with offsets."""

    def __init__(self, mode: str, *, offsets: bool = False) -> None:
        super().__init__()
        self.bag, self.head, self.offsets = nn.EmbeddingBag(12, 6, mode=mode), nn.Linear(6, 3), offsets

    def forward(self, x: Tensor) -> Tensor:
        if self.offsets:
            return self.head(self.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1])))
        return self.head(self.bag(x))


def _words(count: int, table: int = 12) -> Callable[[int], Batch]:
    return lambda rows: {"x": torch.randint(0, table, (rows, count))}


class Words(nn.Module):
    """An embedding and a net over it."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, _WIDTH, **config), nn.Linear(_WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x)))


class Pairs(nn.Module):
    """nn.Bilinear of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair = nn.Linear(_WIDTH, 6), nn.Bilinear(6, _WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(torch.tanh(self.first(x)), x)


def _normed_net(norm: Callable[[nn.Module], nn.Module], kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if kind == "linear":
            return nn.Sequential(norm(nn.Linear(_WIDTH, 6)), nn.Tanh(), norm(nn.Linear(6, 3)))
        return nn.Sequential(norm(nn.Conv2d(4, 6, 3)), nn.Tanh(), nn.Flatten(), norm(nn.Linear(6 * 36, 3)))

    return build


def _mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(_WIDTH, 6), *between, nn.Linear(6, 3))


class Folded(nn.Module):
    """A linear map of (R·T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(_WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x.reshape(-1, x.shape[-1]))).view(*x.shape[:2], -1)


LAYERS: dict[str, Case] = {
    "torch LSTM": _case(lambda: Recurrent(nn.LSTM)),
    "torch LSTM, two layers, both ways": _case(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True)),
    "torch LSTM, time first": _case(lambda: Recurrent(nn.LSTM, batch_first=False)),
    "torch LSTM, packed": Case(
        "torch", Packed, _packed, lambda model, batch: per_row(model(batch["x"], batch["lengths"]))
    ),
    "torch GRU": _case(lambda: Recurrent(nn.GRU)),
    "torch RNN": _case(lambda: Recurrent(nn.RNN)),
    "torch LSTMCell": _case(lambda: Cell(nn.LSTMCell)),
    "torch GRUCell": _case(lambda: Cell(nn.GRUCell)),
    "torch TransformerEncoder": _case(lambda: _encoder(batch_first=True)),
    "torch TransformerEncoder, norm first": _case(lambda: _encoder(batch_first=True, norm_first=True)),
    "torch TransformerEncoder, time first": _case(lambda: _encoder(batch_first=False)),
    "torch TransformerEncoder, padding mask": Case(
        "torch", MaskedEncoder, _packed, lambda model, batch: per_row(model(batch["x"], batch["lengths"]))
    ),
    "torch Transformer": _case(lambda: Translator(batch_first=True)),
    "torch Transformer, time first": _case(lambda: Translator(batch_first=False)),
    "torch MultiheadAttention": _case(Attention),
    "torch MultiheadAttention, time first, causal": _case(lambda: Attention(batch_first=False, causal=True)),
    "torch MultiheadAttention, bias_kv": _case(lambda: Attention(add_bias_kv=True, add_zero_attn=True)),
    "torch MultiheadAttention, kdim": _case(lambda: Attention(kdim=6, vdim=6, other=6)),
    "torch EmbeddingBag": Case("torch", lambda: Bags("mean"), _words(4), plain),
    "torch EmbeddingBag with offsets": Case("torch", lambda: Bags("sum", offsets=True), _words(4), plain),
    "torch Embedding(padding_idx)": Case("torch", lambda: Words(padding_idx=0), _words(5), plain),
    "torch Bilinear": _case(Pairs, _WIDTH),
    "torch PReLU": _case(lambda: _mlp(nn.PReLU(6), nn.Linear(6, 6), nn.PReLU()), _WIDTH),
    "torch Linear on folded rows": _case(lambda: nn.Sequential(Folded(), nn.Flatten(), nn.Linear(30, 3))),
    "torch Conv1d": _images(
        lambda: nn.Conv1d(4, 6, 3, padding=1), nn.Tanh, lambda: nn.Conv1d(6, 6, 3, groups=6), dims=1
    ),
    "torch Conv2d, stride, dilation, groups": _images(
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2),
        nn.Tanh,
        lambda: nn.Conv2d(6, 8, 3, groups=2, padding="same", padding_mode="reflect"),
    ),
    "torch Conv3d": _images(
        lambda: nn.Conv3d(2, 4, 3, padding=1), nn.Tanh, lambda: nn.Conv3d(4, 2, 2), dims=3, size=4, channels=2
    ),
    "torch ConvTranspose1d": _images(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), dims=1),
    "torch ConvTranspose2d": _images(
        lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    ),
    "torch GroupNorm": _images(lambda: nn.Conv2d(4, 6, 3), lambda: nn.GroupNorm(3, 6), nn.Tanh),
    "torch InstanceNorm": _images(
        lambda: nn.Conv2d(4, 6, 3), lambda: nn.InstanceNorm2d(6, affine=True), nn.Tanh
    ),
    "torch LayerNorm over images": _images(lambda: nn.Conv2d(4, 6, 3), lambda: nn.LayerNorm([6, 6, 6])),
    "torch RMSNorm": _case(lambda: _mlp(nn.RMSNorm(6), nn.Tanh())),
    "torch spectral_norm": _case(_normed_net(parametrizations.spectral_norm, "linear"), _WIDTH),
    "torch spectral_norm, convolution": _case(
        _normed_net(parametrizations.spectral_norm, "convolution"), 4, 8, 8
    ),
    "torch weight_norm": _case(_normed_net(parametrizations.weight_norm, "linear"), _WIDTH),
    "torch weight_norm, convolution": _case(
        _normed_net(parametrizations.weight_norm, "convolution"), 4, 8, 8
    ),
    "torch orthogonal": _case(_normed_net(parametrizations.orthogonal, "linear"), _WIDTH),
}
