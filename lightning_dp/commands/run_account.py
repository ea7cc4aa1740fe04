"""What commands on a finished run need first: that it is whole, and that its report can be believed."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.tracking.layout import CHECKPOINT

if TYPE_CHECKING:
    from lightning_dp.tracking.account import Account


def read_run(folder: Path) -> "Account":
    """The checked account of a complete run folder.

    Raises:
        ValueError: a file is missing or damaged, or the report claims less than was spent.
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
    # Late: --help, and a folder that can't be right, should not wait for the accountant.
    from lightning_dp.tracking.account import read_account

    return read_account(folder, needs_weights=True)
