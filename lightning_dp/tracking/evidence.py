"""What run folders carry of the ledger: the entries that their reports and checkpoints were written after."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_dp.privacy.ledger import Evidence
from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report
from lightning_dp.tracking.layout import CHECKPOINT


def evidence_of_runs(folders: Sequence[Path]) -> list[Evidence]:
    """What these run folders, and those below them, carry.

    Raises:
        ValueError: none of them carries anything, or one is damaged.
    """
    found = [one for folder in folders for run in _runs(folder) for one in evidence_of_run(run)]
    if not found:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no {REPORT_NAME} or checkpoint there names an entry of a "
            "ledger; give folders of private runs."
        )
    return found


def evidence_of_run(folder: Path) -> list[Evidence]:
    """What the report and the checkpoint of one run carry."""
    found = Evidence.of_account(read_privacy_report(folder), where=str(folder / REPORT_NAME))
    path = folder / CHECKPOINT
    if path.is_file():
        from lightning_dp.tracking.checkpoint_file import read_checkpoint

        saved = read_checkpoint(path).get("callbacks", {}).get("DifferentialPrivacy") or {}
        found += Evidence.of_account(saved, where=str(path))
    return found


def _runs(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give folders of runs.")
    reports = {path.parent for path in folder.rglob(REPORT_NAME)}
    weights = {path.parents[len(CHECKPOINT.parts) - 1] for path in folder.rglob(str(CHECKPOINT))}
    yield from sorted(reports | weights)
