"""Diagnostics read exactly what clipping does, and change nothing."""

import json

import numpy as np
import pytest
import torch
from follow_steps import sites_of
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from scipy import stats
from support import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.callbacks.conditioning_reference import ConditioningReference
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.gradient_diagnostics import GradientDiagnostics
from lightning_dp.cli import main
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.path import condition_parameters
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat, PerGroup, PerLayer
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.tracking.gradient_ratios import gradient_ratios
from lightning_dp.tracking.gradient_statistics import (
    ecdf,
    hill,
    relative_to_step,
    tail_index,
    unbiased_square,
)

NUM_UNITS = 12
ENGINES = [BookKeeping, Materialised, Loop]


class _Conditioned(nn.Module):
    """x steered by c, with a declared encoder of c."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.modulation = AdaLNZero().build(6, condition_size=4, sublayers=1, gated=True)
        self.body = nn.Linear(6, 6)
        nn.init.normal_(self.modulation.linear.weight, std=0.5)

    def condition_modules(self) -> list[nn.Module]:
        return [self.encoder]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        (steering,) = self.modulation(self.encoder(c))
        y = steering.scale * x[:, None] + steering.shift
        return (x[:, None] + steering.gate * self.body(y))[:, 0]


class _Module(LightningModule):
    """Draws noise in its step, as a diffusion model does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = _Conditioned()
        self.logged = 0

    def losses(self, batch: list[Tensor]) -> Tensor:
        x, c = batch
        return (self.net(x + 0.1 * torch.randn_like(x), c) - x).square().sum(dim=1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("nonprivate/train_loss", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class _Data(LightningDataModule):
    """Two rows a unit; one batch holds all units, in order."""

    dataset_id = "diagnosed"

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(NUM_UNITS, 2, 6, generator=generator)
        x[3] *= 20  # one that is always clipped
        c = torch.randn(NUM_UNITS, 2, 3, generator=generator)

        def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
            return [torch.cat(part) for part in zip(*items, strict=True)]

        return DataLoader(TensorDataset(x, c), batch_size=NUM_UNITS, collate_fn=collate)

    def privacy_unit(self) -> PrivacyUnit:
        return PrivacyUnit(name="user", num_units=NUM_UNITS, rows_per_unit=2, description="two rows")


class _Counting(BookKeeping):
    """Keeps what it handed over."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[dict[str, Tensor]] = []

    def take(self) -> dict[str, Tensor]:
        sums = super().take()
        self.taken.append({name: value.clone() for name, value in sums.items()})
        return sums


def _fit(folder, *callbacks, steps: int = 3, engine: ClippingEngine | None = None) -> _Module:
    """With an engine privately, all units in every batch and next to no noise; without one publicly."""
    privacy = None
    if engine is not None:
        privacy = DifferentialPrivacy(
            noise_multiplier=0.5,
            delta=1e-2,
            expected_batch_size=NUM_UNITS,
            max_grad_norm=2.0,
            clipping_engine=engine,
        )
    module = _Module()
    # Like the command line, which puts privacy last.
    after = [privacy] if privacy else []
    trainer = make_trainer(folder, steps=steps, privacy=None, callbacks=[*callbacks, *after])
    torch.manual_seed(7)
    trainer.fit(module, datamodule=_Data())
    return module


def _report(folder) -> dict:
    return json.loads((folder / "diagnostics.json").read_text())


# the engines


def _observed(
    engine: ClippingEngine, function: ClippingFunction, *, observe: bool = True
) -> tuple[list[UnitNorms], Tensor, dict[str, Tensor]]:
    net = _Module().net
    batch = next(iter(_Data().train_dataloader()))
    weights = torch.ones(NUM_UNITS)
    weights[-1] = 0
    seen: list[UnitNorms] = []

    def losses() -> Tensor:
        return (net(*batch) - batch[0]).square().sum(dim=1)

    engine.know(sites_of(net, losses, units=NUM_UNITS, rows_per_unit=2))
    engine.attach(net, function=function, max_grad_norm=2.0)
    if observe:
        engine.observe(seen.append)
    engine.expect(unit_weights=weights, rows_per_unit=2)
    (net(*batch) - batch[0]).square().sum(dim=1).mean().backward()
    norms, sums = engine.collect(), engine.take()
    engine.detach()
    return seen, norms, sums


def _unit_gradients() -> list[dict[str, Tensor]]:
    """By plain autograd, one unit at a time."""
    net = _Module().net
    x, c = next(iter(_Data().train_dataloader()))
    found = []
    for unit in range(NUM_UNITS):
        rows = slice(2 * unit, 2 * unit + 2)
        net.zero_grad()
        (net(x[rows], c[rows]) - x[rows]).square().sum(dim=1).mean().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [Flat(), PerLayer(), PerGroup(groups={"c": ["encoder", "modulation"]})])
def test_every_engine_shows_the_norms_of_each_parameter_and_unit(engine, function):
    (seen,), norms, sums = _observed(engine(), function)
    gradients = _unit_gradients()
    for name in gradients[0]:
        expected = torch.stack([gradient[name].norm() for gradient in gradients])
        torch.testing.assert_close(seen.norms[name], expected, rtol=1e-5, atol=1e-6)
        clipped = torch.stack([g[name] * f for g, f in zip(gradients, seen.factors[name], strict=True)])
        torch.testing.assert_close(sums[name], clipped[:-1].sum(dim=0), rtol=1e-4, atol=1e-5)
    total = torch.stack([norm.square() for norm in seen.norms.values()]).sum(dim=0).sqrt()
    torch.testing.assert_close(total, norms, rtol=1e-5, atol=0)
    assert seen.weights.tolist() == [1.0] * (NUM_UNITS - 1) + [0.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_observing_changes_no_bit_of_sums_or_norms(engine):
    _, norms, sums = _observed(engine(), Flat())
    _, plain_norms, plain_sums = _observed(engine(), Flat(), observe=False)
    assert torch.equal(norms, plain_norms)
    assert all(torch.equal(sums[name], plain_sums[name]) for name in plain_sums)


# the callback


def test_a_private_step_is_bit_for_bit_the_same(tmp_path):
    with_it, without = _Counting(), _Counting()
    _fit(tmp_path / "a", GradientDiagnostics(bias_every_n_steps=1), steps=1, engine=with_it)
    _fit(tmp_path / "b", steps=1, engine=without)
    for name, value in without.taken[0].items():
        assert torch.equal(with_it.taken[0][name], value)


def test_training_without_privacy_is_bit_for_bit_the_same(tmp_path):
    diagnosed = _fit(tmp_path / "a", GradientDiagnostics(bias_every_n_steps=2), steps=4)
    plain = _fit(tmp_path / "b", steps=4)
    for (name, found), expected in zip(diagnosed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert "forward" not in diagnosed.net.body.__dict__
    assert not hasattr(diagnosed, "_same_draws")
    assert diagnosed.log.__func__ is LightningModule.log


def test_gradients_left_over_from_the_last_step_stay(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append([None if p.grad is None else p.grad.clone() for p in pl_module.parameters()])

    _fit(tmp_path, Look(), GradientDiagnostics(bias_every_n_steps=1), Look(), steps=2)
    before, after = seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class _Gradients(Callback):
    """Unit gradients of the step that is about to be made, by plain autograd."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx) -> None:
        state = torch.get_rng_state()
        assert isinstance(pl_module, _Module)
        per_unit = pl_module.losses(batch).unflatten(0, (NUM_UNITS, 2)).mean(dim=1)
        names, parameters = zip(*pl_module.named_parameters(), strict=True)
        self.found = [
            dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))
            for loss in per_unit
        ]
        torch.set_rng_state(state)


@pytest.mark.parametrize("private", [False, True])
def test_norms_eta_and_bias_equal_a_direct_computation(tmp_path, private, capsys):
    truth = _Gradients()
    diagnostics = GradientDiagnostics(max_grad_norm=2.0, bias_every_n_steps=1)
    _fit(tmp_path, truth, diagnostics, steps=1, engine=BookKeeping() if private else None)
    report = _report(tmp_path)
    assert report["mode"] == ("private" if private else "public")

    def norm(gradient: dict[str, Tensor], part: str) -> float:
        return float(torch.cat([g.double().flatten() for n, g in gradient.items() if _is(n, part)]).norm())

    cond = {"net.encoder.weight", "net.encoder.bias"} | {
        f"net.modulation.linear.{kind}" for kind in ("weight", "bias")
    }

    def _is(name: str, part: str) -> bool:
        return part == "all" or (name in cond) == (part == "cond")

    for part in ("all", "cond", "other"):
        expected = np.array([norm(g, part) for g in truth.found])
        for level, value in report["partitions"][part]["quantiles"].items():
            assert value == pytest.approx(np.quantile(expected, float(level[1:]) / 100), rel=1e-4)
    norms = np.array([norm(g, "all") for g in truth.found])
    eta = np.minimum(1, 2.0 / norms)
    assert 0 < report["clip_fraction"] == pytest.approx((norms > 2.0).mean())
    assert report["eta"]["mean"] == pytest.approx(eta.mean(), rel=1e-4)
    assert report["eta"]["p50"] == pytest.approx(np.median(eta), rel=1e-4)
    share = np.array([norm(g, "cond") ** 2 for g in truth.found]) / norms**2
    assert report["cond_share"]["clipped"] == pytest.approx(share[norms > 2.0].mean(), rel=1e-3)

    removed = [
        {name: (1 - e) * value for name, value in gradient.items()}
        for gradient, e in zip(truth.found, eta, strict=True)
    ]
    mean = {name: torch.stack([r[name] for r in removed]).mean(dim=0) for name in removed[0]}
    (bias,) = report["bias"]
    for part in ("all", "cond", "other"):
        assert bias[part]["norm"] == pytest.approx(norm(mean, part), rel=1e-3)
    pairs = [
        sum(float((a[name].double() * b[name].double()).sum()) for name in a)
        for i, a in enumerate(removed)
        for j, b in enumerate(removed)
        if i != j
    ]
    assert bias["all"]["unbiased_square"] == pytest.approx(np.mean(pairs), rel=1e-3, abs=1e-4)
    layers = report["layers"]
    assert sum(layer["mean"] for layer in layers.values()) == pytest.approx(1, rel=1e-4)
    paths = report["paths"]
    assert set(paths) == {"encoder", "modulation", "other"}
    assert paths["other"]["mean"] == pytest.approx(1 - share.mean(), rel=1e-3)
    encoder = [sum(float(g[n].double().square().sum()) for n in g if "encoder" in n) for g in truth.found]
    assert paths["encoder"]["mean"] == pytest.approx((np.array(encoder) / norms**2).mean(), rel=1e-3)
    assert paths["encoder"]["parameters"] == 3 * 4 + 4
    assert f"encoder {100 * paths['encoder']['mean']:.1f} %" in capsys.readouterr().out


def test_rho_of_two_runs_is_the_ratio_of_their_quantiles(tmp_path, capsys):
    lasted = {"vanilla": 1, "bounded": 2}
    for name, steps in lasted.items():
        _fit(tmp_path / name, GradientDiagnostics(bias_every_n_steps=None), steps=steps)
    runs = [str(tmp_path / name) for name in lasted]
    first, second = (_report(tmp_path / name) for name in lasted)
    found = {(r.partition, r.level): r for r in gradient_ratios(first, second)}
    assert {partition for partition, _ in found} == {"all", "cond", "other"}
    for (partition, level), ratio in found.items():
        whole = [report["partitions"][partition]["quantiles"][level] for report in (first, second)]
        assert ratio.pooled == pytest.approx(whole[1] / whole[0])
        assert ratio.steps == 1
        assert ratio.low == ratio.middle == ratio.high == pytest.approx(1)  # of one step, drawn alike
    assert found["all", "p99"].pooled != pytest.approx(1)

    figure = tmp_path / "rho.png"
    capsys.readouterr()
    assert main(["report", *runs, "--gradients", str(figure)]) == 0
    said = capsys.readouterr().out
    for word in ("bounded over vanilla", "ρ_emp", "ρ_cond", f"{found['cond', 'p99'].pooled:.3f}", "encoder"):
        assert word in said
    assert figure.stat().st_size > 20_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report["partitions"]["cond"].update(parameters=7), "two runs of one net"),
        (lambda report: report["steps"].update(step=[5]), "observed no step in common"),
        (lambda report: report.update(paths={}), "has no paths of a condition"),
        (None, "is missing: run the fit with"),
    ],
)
def test_runs_that_can_not_be_compared_are_told_why(tmp_path, capsys, change, message):
    _fit(tmp_path / "a", GradientDiagnostics(bias_every_n_steps=None), steps=1)
    report = _report(tmp_path / "a")
    (tmp_path / "b").mkdir()
    if change is not None:
        change(report)
        (tmp_path / "b" / "diagnostics.json").write_text(json.dumps(report))
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *runs, "--gradients", str(tmp_path / "rho.png")]) == 2
    assert message in capsys.readouterr().err
    assert main(["report", runs[0], "--gradients", str(tmp_path / "rho.png")]) == 2
    assert "compares two run folders" in capsys.readouterr().err


def test_files_are_written_and_steps_counted(tmp_path):
    _fit(tmp_path, GradientDiagnostics(every_n_steps=2, bias_every_n_steps=None), steps=5)
    report = _report(tmp_path)
    assert report["steps"]["step"] == [0, 2, 4]
    assert report["units"] == 3 * NUM_UNITS
    assert report["bias"] == []
    for name in ("ecdf", "ccdf", "quantiles"):
        assert (tmp_path / "plots" / f"gradient_{name}.png").stat().st_size > 10_000


def test_an_interrupted_fit_leaves_what_was_seen(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        _fit(tmp_path, GradientDiagnostics(), Interrupt(), steps=5)
    assert _report(tmp_path)["steps"]["step"] == [0, 1]


def test_diagnostics_after_privacy_are_refused(tmp_path):
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-2, expected_batch_size=4)
    trainer = make_trainer(tmp_path, steps=1, privacy=privacy, callbacks=[GradientDiagnostics()])
    with pytest.raises(ValueError, match="put it before"):
        trainer.fit(_Module(), datamodule=_Data())


def test_the_reference_of_tightness(tmp_path):
    _fit(tmp_path, ConditioningReference(data_is_public=True, quantile=0.9, last_steps=1), steps=1)
    lines = dict(
        line.split(": ")
        for line in (tmp_path / "conditioning_reference.yaml").read_text().splitlines()
        if not line.startswith("#")
    )
    module = _Module()  # the weights of the only step
    c = next(iter(_Data().train_dataloader()))[1]
    steered = module.net.modulation.activation(module.net.encoder(c)).detach()
    assert float(lines["c_max"]) == pytest.approx(float(steered.norm(dim=1).quantile(0.9)), abs=1e-3)
    raw = module.net.modulation.linear(steered).detach().abs().unflatten(1, (3, 6))
    for number, name in enumerate(("gamma_max", "beta_max", "alpha_max")):
        assert float(lines[name]) == pytest.approx(float(raw[:, number].quantile(0.9)), abs=1e-3)


def test_the_reference_is_refused_on_private_data(tmp_path):
    with pytest.raises(ValueError, match="would be a release"):
        _fit(tmp_path, ConditioningReference(data_is_public=True), engine=BookKeeping())
    with pytest.raises(ValueError, match="data_is_public is false"):
        ConditioningReference(data_is_public=False)


def test_the_condition_path_is_found_by_type_and_declaration():
    assert condition_parameters(_Module()) == {
        f"net.{part}.{kind}" for part in ("encoder", "modulation.linear") for kind in ("weight", "bias")
    }


# the statistics


def test_hill_is_the_maximum_likelihood_of_the_tail():
    values = stats.lomax.rvs(2.5, size=3_000, random_state=0)
    k = 150
    tail = np.sort(values)[::-1]
    shape, _, _ = stats.pareto.fit(tail[:k] / tail[k], floc=0, fscale=1)
    assert hill(values, k=k) == pytest.approx(shape, rel=1e-6)
    counts = np.random.default_rng(0).integers(0, 4, len(values))
    assert hill(values, k=k, weights=counts) == pytest.approx(hill(np.repeat(values, counts), k=k), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 50])
def test_the_interval_of_the_tail_index_holds_the_truth_as_often_as_it_says(steps):
    held = 0
    for seed in range(60):
        values = stats.pareto.rvs(1.7, size=1_000, random_state=seed)
        found = tail_index(values, steps=np.arange(1_000) % steps, resamples=60)
        held += found["low"] <= 1.7 <= found["high"]
    assert 51 <= held <= 60  # 57 expected of a 95 % interval


def test_drift_of_the_norms_is_not_taken_for_a_tail():
    rng = np.random.default_rng(0)
    steps = np.repeat(np.arange(40), 100)
    values = np.exp(rng.normal(0, 0.1, 4_000)) * np.exp(-steps / 8)
    raw = tail_index(values, steps=steps)
    within = tail_index(relative_to_step(values, steps=steps), steps=steps)
    assert raw["alpha"] < 8 < 15 < within["alpha"]


def test_chance_alone_is_no_bias():
    rng = np.random.default_rng(0)
    measured, corrected = [], []
    for _ in range(200):
        removed = rng.normal(0, 1, (50, 30))
        norm = float(np.linalg.norm(removed.mean(axis=0)))
        measured.append(norm**2)
        corrected.append(unbiased_square(norm, unit_squares=(removed**2).sum(axis=1)))
    assert np.mean(measured) == pytest.approx(30 / 50, rel=0.1)
    assert abs(np.mean(corrected)) < 0.05 * np.mean(measured)


def test_the_distribution_function_reaches_into_the_tail():
    values = np.arange(1, 10_001) / 10_000
    found = ecdf(values)
    np.testing.assert_allclose(found["norm"], found["share"], atol=2e-4)
    assert found["share"][-1] == pytest.approx(1 - 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"bias_every_n_steps": 0}, "bias_every_n_steps is 0"),
        ({"max_units": 10}, "max_units is 10"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradientDiagnostics(**options)
