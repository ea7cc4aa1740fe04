"""A ledger on a disk that other machines may share is refused, also on kinds of disk that nobody listed."""

from pathlib import Path

import pytest

from lightning_dp.privacy.ledger import LedgerError
from lightning_dp.privacy.ledger.disk import ONE_MACHINE, check_disk, disk_of
from lightning_dp.privacy.ledger.storage import LedgerFile

LOCAL = "/dev/sda1 / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"


def table(folder: Path, *lines: str) -> Path:
    path = folder / "mounts"
    path.write_text(LOCAL + "".join(f"{line} 0 0\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "line",
    [
        "filer:/lab /lab nfs rw",
        "filer:/lab /lab nfs4 rw,vers=4.2",
        "//filer/lab /lab cifs rw",
        "//filer/lab /lab smb3 rw",
        "10.0.0.1@tcp:/scratch /lab lustre rw",
        "home /lab 9p rw,trans=virtio",
        "/dev/gpfs0 /lab gpfs rw",
        "/dev/mapper/shared /lab gfs2 rw",
        "me@host:/lab /lab fuse.sshfs rw",
        "newdrive /lab fuse.somebodys-new-drive rw",
        "/dev/fuse /lab fuse.another rw",
        "cluster-a /lab a_kind_of_2031 rw",
        "/etc/auto.home /lab autofs rw",
    ],
)
def test_what_machines_share_and_what_nobody_knows_is_refused(line, tmp_path):
    mounts = table(tmp_path, line)
    kind = line.split()[2]
    with pytest.raises(LedgerError, match=rf"lies on /lab, a file system of type {kind} .*{ONE_MACHINE}=1"):
        check_disk(Path("/lab/me/ledger.sqlite"), mounts=mounts)
    check_disk(Path("/var/ledger.sqlite"), mounts=mounts)
    check_disk(Path("/homes/ledger.sqlite"), mounts=mounts)  # beside it, not below


@pytest.mark.parametrize(
    "line",
    [
        "/dev/sdb1 /lab xfs rw",
        "overlay /lab overlay rw,lowerdir=/a",
        "pool/lab /lab zfs rw",
        "/dev/sdb2 /lab fuseblk rw",
        "/dev/nvme0n1p9 /lab a_local_kind_of_2031 rw",
    ],
)
def test_a_local_disk_is_taken(line, tmp_path):
    check_disk(Path("/lab/me/ledger.sqlite"), mounts=table(tmp_path, line))


def test_the_deepest_mount_counts_and_of_several_on_one_point_the_last(tmp_path):
    mounts = table(
        tmp_path,
        "filer:/lab /lab nfs rw",
        "/dev/sdb1 /lab/me/local\\040disk ext4 rw",
        "/etc/auto.data /data autofs rw",
        "/dev/sdc1 /data ext4 rw",
    )
    check_disk(Path("/lab/me/local disk/ledger.sqlite"), mounts=mounts)
    check_disk(Path("/data/ledger.sqlite"), mounts=mounts)
    assert disk_of(Path("/lab/me/x"), mounts=mounts) == ("filer:/lab", "/lab", "nfs")


def test_a_ledger_asks_before_it_makes_or_opens_a_file_and_its_owner_may_answer(tmp_path, monkeypatch):
    monkeypatch.delenv(ONE_MACHINE, raising=False)
    path = tmp_path.resolve() / "deep" / "ledger.sqlite"
    mounts = table(tmp_path, f"filer:/x {tmp_path.resolve()} nfs4 rw")
    file = LedgerFile(path, lock_timeout=1.0, mounts=mounts)
    with pytest.raises(LedgerError, match="nfs4"):
        file.connect(create=True)
    assert not path.parent.exists()
    for answer in ("0", "yes"):
        monkeypatch.setenv(ONE_MACHINE, answer)
        with pytest.raises(LedgerError, match="nfs4"):
            file.connect(create=True)
    monkeypatch.setenv(ONE_MACHINE, "1")
    file.connect(create=True).close()
    assert file.read().seq >= 1
    monkeypatch.delenv(ONE_MACHINE)
    with pytest.raises(LedgerError, match="nfs4"):
        file.read()


def test_where_nothing_says_what_is_mounted_nothing_is_checked(tmp_path):
    check_disk(tmp_path / "ledger.sqlite", mounts=tmp_path / "none")
