"""The one entry to a finished run, for commands, notebooks and programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.runs.loaded_run import EvolvedRun, LoadedRun, TrainedRun
from lightning_dp.tracking.account import Account, read_account
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.run_config import read_run_config


def load_run(folder: str | Path, *, trust: bool = False) -> LoadedRun:
    """Open a finished run, of a fit or of a Private Evolution, whatever its module is.

        run = lightning_dp.load_run("runs/eps3")
        run.epsilon                    # the checked account says so
        run.module, run.data           # made when they are first asked for; data has read nothing
        run.sample(batch)              # what the module's `sample` returns

    Guarantee: ε was computed again from what the report records, and no file of the folder, nor the ledger
    where it is at hand, says more than it does. No row of the data is read, and no pickled code is run.

    Args:
        folder: of the run.
        trust: whether its files may choose classes of other packages than this one, torch.optim, diffusers'
            schedulers and Lightning, a module of your own for instance; it runs their code. Commands have
            `--trust` for it.

    Raises:
        ValueError: the folder is incomplete or damaged, or its account claims less than was spent.
    """
    folder = Path(folder)
    config = read_run_config(folder, trust=trust)
    path = folder / "config.yaml"
    _check_there(folder, REPORT_NAME, "the account of its privacy")
    if isinstance(config.get("model"), dict):
        _check_there(folder, str(CHECKPOINT), "its weights")
        unchanged = _guard(folder / CHECKPOINT)
        account = _account(folder, needs_weights=True)
        return TrainedRun(folder, config=config, account=account, trust=trust, unchanged=unchanged)
    if isinstance(config.get("task"), dict):
        return EvolvedRun(folder, config=config, account=_account(folder, needs_weights=False))
    raise ValueError(
        f"{path} names neither a model, as that of a fit does, nor a task, as that of a Private Evolution "
        "does: name the folder of a finished run."
    )


def _account(folder: Path, *, needs_weights: bool) -> Account:
    account = read_account(folder, needs_weights=needs_weights)
    if not account.report:
        raise ValueError(f"{folder / REPORT_NAME} says nothing, so no ε can be stated: put back a copy.")
    return account


def _check_there(folder: Path, name: str, what: str) -> None:
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder} is not a complete run folder: {name}, {what}, is missing; put it back, or name a "
            "folder that 'lightning-dp fit' has finished."
        )


def _guard(path: Path) -> Callable[[], None]:
    """What raises ValueError if the file is another one than now."""

    def stamp() -> Any:
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    first = stamp()

    def unchanged() -> None:
        if stamp() != first:
            raise ValueError(
                f"{path} was written anew while its account was looked at: a fit is running; ask again."
            )

    return unchanged
