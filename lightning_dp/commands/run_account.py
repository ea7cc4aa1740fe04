"""What commands on a finished run need first: that it is whole, and that its report speaks of its weights."""

import json
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.tracking.layout import CHECKPOINT

UNTRAINED = "lightning_dp_untrained"
"""In checkpoint and privacy report of a public model that no data was shown to, see `commands.public`."""


def read_run(folder: Path) -> dict[str, Any]:
    """The privacy report of a complete run folder.

    Raises:
        ValueError: a file is missing.
    """
    for name, what in (
        ("config.yaml", "its configuration"),
        (REPORT_NAME, "the account of its privacy"),
        (str(CHECKPOINT), "its weights"),
    ):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not a complete run folder: {name}, {what}, is missing; name a folder that "
                "'lightning-dp fit' has finished."
            )
    return json.loads((folder / REPORT_NAME).read_text())


def check_account(folder: Path, *, report: dict[str, Any]) -> None:
    """Refuse weights that are not those which the privacy report speaks of.

    Raises:
        ValueError: they are of another run, or of a later time.
    """
    import torch

    checkpoint = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    saved = checkpoint.get("callbacks", {}).get("DifferentialPrivacy")
    if checkpoint.get(UNTRAINED) is True and report.get(UNTRAINED) is True and not saved:
        return
    private = report.get("epsilon_spent") != "inf"
    if private != bool(saved):
        raise ValueError(
            f"{folder} has weights trained {'with' if saved else 'without'} privacy and a privacy.json that "
            f"says otherwise: one of the two is from another run, so no ε can be stated."
        )
    if saved and (saved["run"] != report.get("run") or saved["ledger"][0] > report.get("ledger_seq", -1)):
        raise ValueError(
            f"{folder} has weights of run {saved['run']}, ledger entry {saved['ledger'][0]}, and a "
            f"privacy.json of run {report.get('run')}, entry {report.get('ledger_seq')}, which doesn't cover "
            "them: restore the one that belongs to the weights."
        )
