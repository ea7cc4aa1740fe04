"""What kind of disk a ledger lies on: SQLite's locks and its write-ahead log hold on a local one only.

On a file system that several machines mount, two of them can each believe that they hold the write lock, and
charges get lost. So a ledger there is refused unless its owner says that one machine alone uses it. What is
not known to be local is taken for shared, unless it is made from a block device of this machine.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lightning_dp.privacy.ledger.errors import LedgerError

ONE_MACHINE = "LIGHTNING_DP_LEDGER_ONE_MACHINE"
"""Environment variable; 1 says that no other machine uses the ledger, whatever disk it lies on."""

MOUNTS = Path("/proc/self/mounts")
"""What Linux has mounted. Where there is no such file, on macOS and Windows, nothing is checked."""

_LOCAL = re.compile(
    "apfs|aufs|bcachefs|btrfs|devtmpfs|ecryptfs|erofs|exfat|ext[234]|f2fs|fuseblk|hfs|hfsplus|jfs|msdos|nilfs2|"
    "ntfs3?|overlay|ramfs|reiserfs|rootfs|squashfs|tmpfs|udf|ufs|vfat|xfs|zfs"
)
_SHARED_DEVICES = re.compile("gfs2?|gpfs|lustre|ocfs2")  # of several machines, though in /dev
_OCTAL = re.compile(r"\\([0-7]{3})")


def check_disk(path: Path, *, mounts: Path = MOUNTS) -> None:
    """Raise LedgerError where a ledger would lie on a disk that other machines may write to.

    Args:
        path: of the ledger, resolved; it need not be there yet.
        mounts: table of what is mounted.
    """
    if os.environ.get(ONE_MACHINE) == "1":
        return
    found = disk_of(path, mounts=mounts)
    if found is None:
        return
    device, place, kind = found
    if _LOCAL.fullmatch(kind) or _is_block_device(device, kind):
        return
    raise LedgerError(
        f"The ledger {path} lies on {place}, a file system of type {kind} that other machines may share, "
        "where SQLite's locks don't hold and charges can get lost: keep it on a local disk "
        "(LIGHTNING_DP_LEDGER or --ledger), or, if processes of one machine alone ever use it, say so by "
        f"{ONE_MACHINE}=1."
    )


def disk_of(path: Path, *, mounts: Path = MOUNTS) -> tuple[str, str, str] | None:
    """Device, mount point and type of the file system that a path lies on; None where nobody knows.

    Of several mounts on one point the last one is seen.
    """
    best: tuple[str, str, str] | None = None
    for device, place, kind in _mounted(mounts):
        if path.is_relative_to(place) and (best is None or len(place) >= len(best[1])):
            best = device, place, kind
    return best


def _mounted(mounts: Path) -> Iterator[tuple[str, str, str]]:
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        fields = [_OCTAL.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split(" ")]
        if len(fields) >= 3:
            yield fields[0], fields[1], fields[2]


def _is_block_device(device: str, kind: str) -> bool:
    """Whether a file system of a kind that is not listed is made from a disk of this machine."""
    listed = kind.startswith("fuse") or _SHARED_DEVICES.fullmatch(kind)
    return device.startswith("/dev/") and not listed
