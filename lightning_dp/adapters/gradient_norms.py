"""Gradient norms of single units, matrix by matrix, by the engine that clips in training."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.adapters.lora import Matrix
from lightning_dp.adapters.roles import fused_layers
from lightning_dp.adapters.scores.score import Denoiser
from lightning_dp.adapters.unchosen import weight_name
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.follow_rows import follow_rows


def gradient_norms(
    module: Denoiser,
    matrices: Sequence[Matrix],
    batches: Iterable[Any],
    *,
    rows_per_unit: int,
    noise_draws: int,
) -> Tensor:
    """The norm of each unit's gradient of the training loss for each of the pretrained weights.

    Only forwards and backwards: no weight of the module changes.

    Args:
        module: its own losses are differentiated, with its low-rank pairs in place.
        matrices: M weights of `module.net`, with such pairs or without.
        batches: of units, collated as for training, with `rows_per_unit` consecutive rows each.
        rows_per_unit: λ ≥ 1.
        noise_draws: K ≥ 1 timesteps and noises a row; a unit's gradient is the mean over all of its rows.

    Returns:
        (N, M) fp64 on the CPU, in order; a unit whose gradient is not finite has zeros.
    """
    with _frozen(module.net), _drawing(module, noise_draws), _probes(module.net, matrices) as probes:
        names = {id(parameter): name for name, parameter in module.net.named_parameters()}
        order = [names[id(probe)] for probe in probes]
        found = [torch.zeros(0, len(order), dtype=torch.float64)]

        def keep(seen: UnitNorms) -> None:
            unreached = torch.zeros_like(seen.weights)
            norms = [seen.norms.get(name, unreached).detach().cpu().double() for name in order]
            found.append(torch.stack(norms, dim=1))  # (U, M)

        engine = BookKeeping()
        try:
            for number, batch in enumerate(batches):
                units = len(next(tensors(batch))) // rows_per_unit
                if number == 0:
                    engine.know(
                        follow_rows(
                            module,
                            partial(_losses, module),
                            batch,
                            num_units=units,
                            attached=lambda again: again.net,
                        )
                    )
                    engine.attach(module.net, function=Flat(), max_grad_norm=1.0)
                    engine.observe(keep)
                batch = module.transfer_batch_to_device(batch, module.device, 0)
                rows = rows_per_unit * module.rows_per_example  # of the net's layers
                # As in training: a sum, so that no unit's gradient is rounded by how many others there are,
                # and only the forward in the fit's precision.
                engine.expect(
                    unit_weights=torch.zeros(units), rows_per_unit=rows, loss_scale=rows_per_unit * units
                )
                with torch.enable_grad():
                    losses = _losses(module, module, batch)
                losses.float().sum().backward()
                engine.collect()
                engine.take()  # sums that nobody wants
        finally:
            engine.detach()
    norms = torch.cat(found) if found else torch.zeros(0, len(matrices), dtype=torch.float64)
    return torch.where(norms.isfinite().all(dim=1, keepdim=True), norms, 0.0)


def _losses(module: Denoiser, again: Any, batch: Any) -> Tensor:
    """Of the module or of a copy of it, in the precision of the module's fit."""
    with module.forward_precision():
        return again.per_example_losses(batch)


class _Rows(nn.Module):
    """A linear layer as several, one for each of its fused parts: the same function, other parameters."""

    def __init__(self, layer: nn.Linear, *, parts: int) -> None:
        super().__init__()
        weights = layer.weight.detach().chunk(parts)
        biases = [None] * parts if layer.bias is None else layer.bias.detach().chunk(parts)
        self.layers = nn.ModuleList()
        for weight, bias in zip(weights, biases, strict=True):
            rows = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
            rows.weight = nn.Parameter(weight, requires_grad=False)
            rows.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
            self.layers.append(rows)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


@contextmanager
def _probes(net: nn.Module, matrices: Sequence[Matrix]) -> Iterator[list[nn.Parameter]]:
    """Parameters that stand for the matrices' pretrained weights and require a gradient, for a time."""
    fused, names = fused_layers(net), {matrix: weight_name(net, matrix) for matrix in matrices}
    paths = {names[matrix].removesuffix(".weight"): matrix.path for matrix in matrices if matrix.part}
    layers = {path: net.get_submodule(path) for path in paths}
    found: list[nn.Parameter] = []
    try:
        for path, whole in paths.items():
            layer = layers[path]
            assert isinstance(layer, nn.Linear)
            net.set_submodule(path, _Rows(layer, parts=len(fused[whole])))
        for matrix, name in names.items():
            if matrix.part:
                number = list(fused[matrix.path]).index(matrix.part)
                found.append(net.get_parameter(f"{name.removesuffix('weight')}layers.{number}.weight"))
            else:
                found.append(net.get_parameter(name))
            found[-1].requires_grad_(True)
        yield found
    finally:
        for probe in found:
            probe.requires_grad_(False)
        for path, layer in layers.items():
            net.set_submodule(path, layer)


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """No parameter of the net requires a gradient."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _drawing(module: Denoiser, noise_draws: int) -> Iterator[None]:
    before, module.noise_draws = module.noise_draws, noise_draws
    try:
        yield
    finally:
        module.noise_draws = before
