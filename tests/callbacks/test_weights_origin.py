"""What private fits may start from, over chains of starts and resumes."""

import json
import os

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from support import Records, Regression, make_trainer
from torch import Tensor, nn

from lightning_dp.adapters.biases import Biases
from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.public_start import check_fresh, load_weights
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.weights_origin import WeightsOrigin


class _Public(Records):
    public = True


def _private(**options) -> DifferentialPrivacy:
    reasons = {"private-monitor": "_Stop goes by the number of steps"}
    options = {"accept": reasons, **options}
    return DifferentialPrivacy(noise_multiplier=2.0, delta=1e-3, expected_batch_size=10, **options)


class _Stop(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step >= self.after


def _fit(
    folder,
    data: Records,
    *,
    origin: WeightsOrigin | None,
    privacy: DifferentialPrivacy | None = None,
    ckpt_path=None,
    steps: int = 1,
    stop_after: int | None = None,
) -> LightningModule:
    """Train and leave `last.ckpt` where a run's folder has it."""
    module = Regression()
    callbacks: list[Callback] = [origin] if origin is not None else []
    if stop_after is not None:
        callbacks.append(_Stop(stop_after))
    trainer = make_trainer(folder, steps=steps, privacy=privacy, callbacks=callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return module


def _refused(tmp_path, start, *, match: str, data: Records | None = None, **options) -> None:
    ledger = os.environ["LIGHTNING_DP_LEDGER"]
    before = os.stat(ledger).st_size if os.path.exists(ledger) else None
    with pytest.raises(ValueError, match=match):
        _fit(
            tmp_path / "refused",
            data or Records(dataset_id="secret"),
            origin=WeightsOrigin(start_from=str(start), **options),
            privacy=_private(),
        )
    after = os.stat(ledger).st_size if os.path.exists(ledger) else None
    assert after == before  # nothing was charged, so nothing was read


def test_a_private_fit_starts_from_public_weights_and_says_so(tmp_path):
    source = _fit(tmp_path / "public", _Public(dataset_id="open"), origin=WeightsOrigin())
    start = WeightsOrigin(start_from=str(tmp_path / "public"))
    trainer = make_trainer(tmp_path / "next", steps=1, privacy=_private(), callbacks=[start])
    module = Regression()
    start.setup(trainer, module, "fit")  # as the trainer does, before any step moves them
    for found, expected in zip(module.parameters(), source.parameters(), strict=True):
        assert torch.equal(found, expected)
    _fit(tmp_path / "next", Records(dataset_id="secret"), origin=start, privacy=_private())
    report = json.loads((tmp_path / "next" / "weights_origin.json").read_text())
    assert [(o["dataset"], o["public"]) for o in report["origins"]] == [("open", True)]
    state = torch.load(tmp_path / "next" / "checkpoints" / "last.ckpt", weights_only=True)
    origins = state["callbacks"]["WeightsOrigin"]["origins"]
    assert [o["dataset"] for o in origins] == ["open", "secret"]


def test_weights_trained_without_privacy_on_private_data_are_refused(tmp_path):
    """The absence of a privacy state is no evidence of public data."""
    _fit(tmp_path / "leaky", Records(dataset_id="diaries"), origin=WeightsOrigin())
    _refused(tmp_path, tmp_path / "leaky", match="have seen diaries without privacy")


def test_weights_that_nobody_recorded_are_refused_unless_somebody_vouches(tmp_path):
    _fit(tmp_path / "unknown", Records(), origin=None)
    _refused(tmp_path, tmp_path / "unknown", match="data that nobody recorded without privacy")
    vouched = WeightsOrigin(start_from=str(tmp_path / "unknown"), public="drawn from a simulator")
    _fit(tmp_path / "next", Records(dataset_id="secret"), origin=vouched, privacy=_private())
    assert vouched.report()["origins"][0]["statement"] == "drawn from a simulator"


def test_the_own_data_is_refused_whatever_is_said_of_it(tmp_path):
    data = _Public(dataset_id="secret")
    _fit(tmp_path / "same", data, origin=WeightsOrigin())
    _refused(tmp_path, tmp_path / "same", match="have seen secret, the data of this private fit")
    _refused(tmp_path, tmp_path / "same", match="have seen secret", public="it is really public")
    _fit(tmp_path / "paid", Records(dataset_id="secret"), origin=WeightsOrigin(), privacy=_private())
    _refused(tmp_path, tmp_path / "paid", match="have seen secret, the data of this private fit")


def test_private_weights_of_other_data_need_the_ledger_that_paid(tmp_path, monkeypatch):
    _fit(tmp_path / "paid", Records(dataset_id="first"), origin=WeightsOrigin(), privacy=_private())
    start = WeightsOrigin(start_from=str(tmp_path / "paid"))
    _fit(tmp_path / "next", Records(dataset_id="second"), origin=start, privacy=_private())
    (origin,) = start.report()["origins"]
    assert origin["dataset"] == "first"
    assert origin["ledger"][0] > 0

    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "another.sqlite"))
    _fit(tmp_path / "other", Records(dataset_id="third"), origin=WeightsOrigin(), privacy=_private())
    _refused(tmp_path, tmp_path / "paid", match="this ledger has no entry of that run")


@pytest.mark.parametrize("way", ["start", "resume"])
def test_private_data_is_not_washed_off_by_going_on_with_public_data(tmp_path, way):
    _fit(tmp_path / "leaky", Records(dataset_id="diaries"), origin=WeightsOrigin())
    checkpoint = tmp_path / "leaky" / "checkpoints" / "last.ckpt"
    if way == "start":
        start = WeightsOrigin(start_from=str(checkpoint))
        _fit(tmp_path / "washed", _Public(dataset_id="open"), origin=start)
    else:
        _fit(
            tmp_path / "washed",
            _Public(dataset_id="open"),
            origin=WeightsOrigin(),
            ckpt_path=checkpoint,
            steps=2,
        )
    _refused(tmp_path, tmp_path / "washed", match="have seen diaries without privacy")


def test_a_resume_of_unrecorded_weights_stays_unrecorded(tmp_path):
    _fit(tmp_path / "unknown", Records(), origin=None)
    checkpoint = tmp_path / "unknown" / "checkpoints" / "last.ckpt"
    data = _Public(dataset_id="open")
    _fit(tmp_path / "resumed", data, origin=WeightsOrigin(), ckpt_path=checkpoint, steps=2)
    _refused(tmp_path, tmp_path / "resumed", match="data that nobody recorded")


def test_a_private_resume_keeps_its_origins_and_needs_no_source(tmp_path):
    _fit(tmp_path / "public", _Public(dataset_id="open"), origin=WeightsOrigin())
    start = str(tmp_path / "public" / "checkpoints" / "last.ckpt")
    data = Records(dataset_id="secret")
    first = WeightsOrigin(start_from=start)
    _fit(tmp_path / "a", data, origin=first, privacy=_private(), steps=3, stop_after=1)
    os.remove(start)
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="is not a file"):
        _fit(tmp_path / "b", data, origin=WeightsOrigin(start_from=start), privacy=_private())
    again = WeightsOrigin(start_from=start)
    _fit(tmp_path / "a", data, origin=again, privacy=_private(), ckpt_path=checkpoint, steps=3)
    assert [origin["dataset"] for origin in again.state_dict()["origins"]] == ["open", "secret"]


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "file.ckpt"
    if content is None:
        torch.save({"weights": {}}, path)
    else:
        path.write_bytes(content)
    _refused(tmp_path, path, match="no Lightning checkpoint|not a checkpoint of weights")


def test_a_pickle_is_not_run(tmp_path):
    """A checkpoint from elsewhere must not be able to run code."""

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"state_dict": {}, "x": Bomb()}, tmp_path / "bomb.ckpt")
    _refused(tmp_path, tmp_path / "bomb.ckpt", match="not a checkpoint of weights")
    assert not (tmp_path / "exploded").exists()


def test_arguments_without_a_start_are_refused():
    with pytest.raises(ValueError, match="which is not set"):
        WeightsOrigin(public="simulated households")
    with pytest.raises(ValueError, match="say in words"):
        WeightsOrigin(start_from="x", public="yes")


# names and shapes


def _model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach(), b.detach())


@pytest.mark.parametrize("adapted_first", [False, True])
def test_loading_and_lora_come_in_any_order(adapted_first):
    source, target = _model(), _model()
    lora = LoRA(rank=1, targets="2")
    if adapted_first:
        lora.apply(target)
    loaded = load_weights(target, source.state_dict())
    if not adapted_first:
        lora.apply(target)
    assert set(loaded) == set(source.state_dict())
    assert _same(target[2].base_layer.weight, source[2].weight)
    assert _same(target[0].weight, source[0].weight)
    x = torch.randn(5, 3)
    torch.testing.assert_close(target(x), source(x))


def test_fresh_parameters_keep_their_start_and_others_must_fit():
    source, target = _model(), _model()
    target[2] = nn.Linear(4, 7)
    before = target[2].weight.clone()
    with pytest.raises(ValueError, match=r"don't fit 2\.weight \(2, 4\) for \(7, 4\)"):
        load_weights(target, source.state_dict())
    assert not _same(target[0].weight, source[0].weight)  # all or nothing
    load_weights(target, source.state_dict(), fresh=[r"^2\."])
    assert _same(target[0].weight, source[0].weight)
    assert _same(target[2].weight, before)
    with pytest.raises(ValueError, match="'typo' matches no parameter"):
        load_weights(target, source.state_dict(), fresh=[r"^2\.", "typo"])
    deeper = {**source.state_dict(), "3.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"have besides 3\.weight"):
        load_weights(_model(), deeper)
    shallower = {name: value for name, value in source.state_dict().items() if name != "0.bias"}
    with pytest.raises(ValueError, match=r"lack 0\.bias"):
        load_weights(_model(), shallower)


def test_what_is_frozen_is_loaded_too_and_buffers_are_not():
    source, target = _model(), _model()
    for module, value in ((source, 1.0), (target, 2.0)):
        module.register_buffer("statistics", torch.tensor(value))
    Biases().apply(target)
    load_weights(target, source.state_dict())
    assert _same(target[0].weight, source[0].weight)
    assert not target[0].weight.requires_grad
    assert float(target.statistics) == 2.0


def test_weights_that_start_at_random_and_are_frozen_there_are_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_fresh(module, ["^1"])
    module[1].weight.requires_grad_(False)
    check_fresh(module, ["^0"])
    with pytest.raises(ValueError, match=r"1\.weight starts anew .* would never learn"):
        check_fresh(module, ["^1"])
