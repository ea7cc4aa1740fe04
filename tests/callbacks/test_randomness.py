"""Random numbers of a private fit: nobody knows them, whatever was seeded, and seeds rule everything else."""

import pickle
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from support import Records, Regression, make_trainer
from torch.utils.data import DataLoader, Dataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.loading import Reading
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.preflight import CODES
from lightning_dp.privacy.randomness import SecretRandomness

N = 12


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": 2.0, "delta": 1e-2, "expected_batch_size": 4}
    # Preflight may see some of the faults first; here it is the run that has to.
    reasons = {code: "planted, to see what the run does" for code in CODES if code != "nothing-trains"}
    return DifferentialPrivacy(**{**defaults, "accept": reasons, **options})


class NoNoise(GaussianNoise):
    """Adds none, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[torch.Tensor] = []

    def add_to(self, sums, *, scale):
        self.sums.append(sums.detach().clone().flatten())
        return sums


class Draws(Regression):
    """Each row's input is moved by numbers of its own, drawn in the order of the batch."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step([x + 3 * self.draw(x), y], batch_idx)

    def draw(self, x):
        return torch.randn_like(x)


def released(tmp_path, module=Draws, *, data=None, **options) -> torch.Tensor:
    """The first clipped sum of a fit with a published seed, with every unit in the batch."""
    seed_everything(7, verbose=False)
    # Numpy's and Python's draws can't be repeated for one unit, of which the spot check would warn.
    privacy = private(expected_batch_size=N, max_grad_norm=0.3, **{"spot_check": 0, **options})
    privacy._noise = witness = NoNoise()
    built = module()
    trainer = make_trainer(tmp_path, steps=1, privacy=privacy)
    trainer.fit(built, datamodule=data or Records(N))
    return torch.cat(witness.sums)


class NumpyDraws(Draws):
    def draw(self, x):
        return torch.from_numpy(np.random.randn(*x.shape)).float()


class PythonDraws(Draws):
    def draw(self, x):
        return torch.tensor([[random.gauss(0, 1) for _ in range(x.shape[1])] for _ in range(len(x))])


@pytest.mark.parametrize("module", [Draws, NumpyDraws, PythonDraws])
def test_a_published_seed_tells_nothing_of_a_units_draws(tmp_path, module):
    one, other = released(tmp_path, module), released(tmp_path, module)
    assert float((one - other).norm()) > 0.3, "more than a unit may move the sum by"


@pytest.mark.parametrize("module", [Draws, NumpyDraws, PythonDraws])
def test_planted_seeded_draws_repeat(tmp_path, monkeypatch, module):
    """The fault that the test above would catch in us."""
    monkeypatch.setattr(SecretRandomness, "begin", lambda self: None)
    assert torch.equal(released(tmp_path, module), released(tmp_path, module))


class Items(Dataset):
    """Records that are moved by what the data set draws."""

    def __init__(self, n: int = N) -> None:
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.randn(4), torch.tensor(np.random.rand() + random.random()).float()


class Loaded(Records):
    def __init__(self, dataset=None, **options) -> None:
        super().__init__(N)
        self.items, self.options = dataset or Items(), options

    def synthetic_units(self, num_units):
        return [torch.rand(num_units, 4), torch.rand(num_units)]

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=4, **self.options)


def seeds_everything(worker: int) -> None:
    """The recipe of many a page."""
    torch.manual_seed(worker)
    np.random.seed(torch.initial_seed() % 2**32)
    random.seed(worker)


class Watches(Regression):
    """Keeps what was read."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.read = batch
        return loss


@pytest.mark.parametrize(
    "options",
    [
        {"generator": torch.Generator().manual_seed(0)},
        {"num_workers": 1, "worker_init_fn": seeds_everything},
        {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 3},
    ],
    ids=["generator", "worker_init_fn", "persistent"],
)
def test_what_the_loader_seeds_is_without_effect(tmp_path, options):
    read = []
    for _ in range(2):
        seed_everything(7, workers=True, verbose=False)
        module = Watches()
        make_trainer(tmp_path, steps=2, privacy=private(expected_batch_size=N)).fit(
            module, datamodule=Loaded(**options)
        )
        assert len(module.read[0]) == N
        read.append(module.read)
    assert not torch.equal(read[0][0], read[1][0])
    assert not torch.equal(read[0][1], read[1][1])


def test_what_workers_are_started_with_can_be_pickled():
    loader = DataLoader(
        Items(), num_workers=1, worker_init_fn=seeds_everything, multiprocessing_context="spawn"
    )
    reading = Reading.of(loader).loader(Items(), batch_size=2)
    assert reading.multiprocessing_context.get_start_method() == "spawn"
    pickle.dumps((reading.dataset, reading.collate_fn, reading.worker_init_fn))


# --- what seeds again is refused ------------------------------------------------------------------------

OUTSIDE = np.random.default_rng(0)


class TorchSeed(Draws):
    def draw(self, x):
        torch.manual_seed(0)
        return super().draw(x)


class FreshSeed(Draws):
    def draw(self, x):
        torch.seed()
        return super().draw(x)


class Forked(Draws):
    def draw(self, x):
        with torch.random.fork_rng([]):
            torch.manual_seed(self.global_step)
            return super().draw(x)


class SetState(Draws):
    def draw(self, x):
        torch.set_rng_state(torch.Generator().manual_seed(1).get_state())
        return super().draw(x)


class Rewinds(Draws):
    """Knows no seed, but has the same draws in every step."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 0:
            self.state = torch.get_rng_state()

    def draw(self, x):
        values = super().draw(x)
        if self.global_step > 0:
            torch.set_rng_state(self.state)
        return values


class NumpySeed(NumpyDraws):
    def draw(self, x):
        np.random.seed(0)
        return super().draw(x)


class NumpySetState(NumpyDraws):
    def draw(self, x):
        np.random.set_state(np.random.RandomState(3).get_state())
        return super().draw(x)


class PythonSeed(PythonDraws):
    def draw(self, x):
        random.seed(0)
        return super().draw(x)


class OwnGenerator(Draws):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, x):
        return torch.randn(x.shape, generator=self.generator)


class GeneratorOfAStep(Draws):
    def draw(self, x):
        return torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(self.global_step))


class OwnNumpyGenerator(Draws):
    def __init__(self):
        super().__init__()
        self.tools = {"draw": [np.random.default_rng(0)]}

    def draw(self, x):
        return torch.from_numpy(self.tools["draw"][0].normal(size=x.shape)).float()


class GeneratorOfTheScript(Draws):
    def draw(self, x):
        return torch.from_numpy(OUTSIDE.normal(size=x.shape)).float()


def hooked(name: str):
    def seed(self, *_):
        torch.manual_seed(0)

    return type(f"Seeds_{name}", (Draws,), {name: seed})


HOOKS = [
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_train_batch_end",
]


@pytest.mark.parametrize(
    "module",
    [
        *(TorchSeed, FreshSeed, Forked, SetState, Rewinds, NumpySeed, NumpySetState, PythonSeed),
        *(OwnGenerator, GeneratorOfAStep, OwnNumpyGenerator, GeneratorOfTheScript),
        *map(hooked, HOOKS),
    ],
)
def test_a_module_that_seeds_is_refused(tmp_path, module):
    privacy = private(expected_batch_size=N)
    privacy._noise = witness = NoNoise()
    with pytest.raises((ValueError, RuntimeError), match=r"generator|random state"):
        make_trainer(tmp_path, steps=6, privacy=privacy).fit(module(), datamodule=Records(N))
    # One step may be out before its own end seeds the next; nothing that was drawn from a seed is.
    steps = len(witness.sums) / len(list(Regression().parameters()))
    assert steps <= (3 if module is Rewinds else 1 if "batch_end" in module.__name__ else 0)


class SeedsItems(Items):
    def __getitem__(self, index):
        torch.manual_seed(index)
        return super().__getitem__(index)


class SeedsNumpyItems(Items):
    def __getitem__(self, index):
        np.random.seed(0)
        return super().__getitem__(index)


class ForkedItems(Items):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        with torch.random.fork_rng([]):
            torch.manual_seed(self.reads)
            return super().__getitem__(index)


class GeneratorOfItems(Items):
    def __init__(self):
        super().__init__()
        self.rng = random.Random(0)

    def __getitem__(self, index):
        return torch.rand(4), torch.tensor(self.rng.random())


def seeded_collation(items):
    torch.manual_seed(0)
    return torch.utils.data.default_collate(items)


def collation_of_its_own(generator=np.random.default_rng(0)):  # noqa: B008
    def collate(items):
        x, y = torch.utils.data.default_collate(items)
        return [x + torch.from_numpy(generator.normal(size=x.shape)).float(), y]

    return collate


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        {"dataset": SeedsItems()},
        {"dataset": SeedsNumpyItems()},
        {"dataset": ForkedItems()},
        {"dataset": GeneratorOfItems()},
        {"collate_fn": seeded_collation},
        {"collate_fn": collation_of_its_own()},
    ],
    ids=["getitem", "numpy", "forked", "kept", "collate", "collate-kept"],
)
def test_data_that_seeds_are_refused(tmp_path, data, workers):
    privacy = private(expected_batch_size=N)
    privacy._noise = witness = NoNoise()
    with pytest.raises((ValueError, RuntimeError), match="generator"):
        make_trainer(tmp_path, steps=2, privacy=privacy).fit(
            Regression(), datamodule=Loaded(num_workers=workers, **data)
        )
    assert witness.sums == []


class PublicNoise(Callback):
    """A callback that seeds is no better."""

    def on_train_batch_start(self, *_):
        random.seed(0)


def test_a_callback_that_seeds_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, privacy=private(), callbacks=[PublicNoise()])
    with pytest.raises(RuntimeError, match=r"seeded or set random generators \(Python's\)"):
        trainer.fit(Regression(), datamodule=Records(N))


# --- what seeds stay in charge of -----------------------------------------------------------------------


class Evaluated(Draws):
    """Validates and tests on random numbers, after seeds of its own where it is told to."""

    def __init__(self, *, reseeds: bool = False) -> None:
        super().__init__()
        self.reseeds = reseeds
        self.validated: list[float] = []
        self.tested: list[float] = []

    def on_validation_start(self):
        if self.reseeds:
            seed_everything(3, verbose=False)

    def validation_step(self, batch, batch_idx):
        self.validated += [float(torch.rand(())), np.random.rand(), random.random()]

    def test_step(self, batch, batch_idx):
        self.tested += [float(torch.rand(())), np.random.rand(), random.random()]


class WithMore(Records):
    def val_dataloader(self):
        return DataLoader(torch.zeros(2, 4))

    def test_dataloader(self):
        return DataLoader(torch.zeros(2, 4))


@pytest.mark.parametrize("reseeds", [False, True])
def test_weights_validation_and_test_go_by_the_seed(tmp_path, reseeds):
    found = []
    for _ in range(2):
        seed_everything(5, verbose=False)
        module = Evaluated(reseeds=reseeds)
        start = torch.cat([p.detach().flatten() for p in module.parameters()])
        trainer = make_trainer(
            tmp_path, steps=3, privacy=private(), val_check_interval=2, check_val_every_n_epoch=None
        )
        trainer.fit(module, datamodule=WithMore(N))
        end = torch.cat([p.detach().flatten() for p in module.parameters()])
        trainer.test(module, datamodule=WithMore(N), verbose=False)
        found.append((start, module.validated, module.tested, end))
    (start, validated, tested, end), (again, valid_again, tested_again, end_again) = found
    assert torch.equal(start, again)
    assert validated == valid_again
    assert tested == tested_again
    assert not torch.equal(end, end_again)


class Fails(Draws):
    def training_step(self, batch, batch_idx):
        if self.global_step == 1:
            raise ArithmeticError("as planned")
        return super().training_step(batch, batch_idx)


def test_generators_are_put_back_after_a_fit_that_failed(tmp_path):
    seed_everything(5, verbose=False)
    privacy = private()
    trainer = make_trainer(tmp_path, steps=3, privacy=privacy)
    with pytest.raises(ArithmeticError):
        trainer.fit(Fails(), datamodule=Records(N))
    assert torch.initial_seed() == 5
    assert privacy._randomness is None


class Saves(Regression):
    """Leaves a checkpoint of the middle of a fit, and what may not be in it."""

    def on_train_batch_end(self, *_):
        self.trainer.save_checkpoint(self.path)
        self.secret = torch.initial_seed(), torch.get_rng_state(), np.random.get_state()[1]


def test_secret_states_are_in_no_checkpoint_and_a_resume_has_others(tmp_path):
    seeds = []
    path = None
    for steps in (2, 4):
        module = Saves()
        module.path = tmp_path / f"{steps}.ckpt"
        trainer = make_trainer(tmp_path, steps=steps, privacy=private())
        trainer.fit(module, datamodule=Records(N), ckpt_path=path, weights_only=False)
        path = module.path
        seed, state, words = module.secret
        content = path.read_bytes()
        for secret in (seed.to_bytes(8, "little"), state[24:40].numpy().tobytes(), words[:4].tobytes()):
            assert secret not in content
        assert str(seed).encode() not in content
        seeds.append(seed)
    assert seeds[0] != seeds[1]
