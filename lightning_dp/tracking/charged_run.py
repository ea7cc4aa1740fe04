"""Whether a run that is resumed has anything left to train, asked of the ledger before a fit begins."""

from pathlib import Path

from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger import Ledger, LedgerMissing
from lightning_dp.tracking.checkpoint_file import read_checkpoint


def is_all_charged(checkpoint: Path, *, ledger: Ledger, num_steps: int) -> bool:
    """Whether every step of a private run is charged, so that only its test is left.

    That is so of a run that was killed after its last step, and of one that was killed before it with the
    rest reserved: those steps are lost.

    Args:
        checkpoint: that is resumed.
        ledger: of the fit.
        num_steps: of the fit's plan.

    Returns:
        False also where the checkpoint is of no private run of this ledger, which a fit has to refuse.
    """
    saved = read_checkpoint(checkpoint).get("callbacks", {}).get("DifferentialPrivacy")
    if not saved:
        return False
    seq, digest = saved["ledger"]
    try:
        if not ledger.contains(int(seq), str(digest)):
            return False
        events = [
            event
            for dataset in ledger.datasets_of(saved["run"])
            for event in ledger.events(dataset, unit=saved["unit"], run=saved["run"], kind="reserve")
        ]
    except LedgerMissing:
        return False
    return sum(event.steps for event in events if isinstance(event, GaussianEvent)) >= num_steps > 0
