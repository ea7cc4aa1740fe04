"""A log of the chain's ends in a second place: who rewrites the ledger would have to rewrite that as well.

Each line is JSON and carries the hash of the line before it. In a git repository each line is a commit, so
that whoever fetches it keeps a copy.
"""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dp.privacy.ledger.errors import LedgerCorrupt
from lightning_dp.privacy.ledger.evidence import Evidence, compare
from lightning_dp.privacy.ledger.rows import canonical
from lightning_dp.privacy.ledger.storage import LedgerFile

LOG_NAME = "ledger-heads.jsonl"


def countersign(file: LedgerFile, *, folder: Path) -> tuple[Path, int]:
    """Append the end of the chain to the log in a folder, and commit it where that is a git repository.

    Returns:
        The log, and the entry that it now ends at.

    Raises:
        LedgerCorrupt: the ledger contradicts itself or what was logged before; nothing was appended.
        ValueError: the folder is missing, or git refuses.
    """
    if not folder.is_dir():
        raise ValueError(f"--to {folder} is no folder; name one, such as a git repository, elsewhere.")
    log = folder / LOG_NAME
    lines = log.read_text().splitlines() if log.exists() else []
    logged = evidence_of_log(log) if lines else []
    compared = compare(file, logged)
    if compared.findings or compared.examination is None:
        raise LedgerCorrupt(" ".join(compared.findings) or f"There is no ledger at {file.path}.", seq=1)
    seq, digest = compared.examination.head
    line = canonical(
        {
            "prev": hashlib.sha256(lines[-1].encode()).hexdigest() if lines else "",
            "ledger_id": compared.examination.identity,
            "seq": seq,
            "hash": digest,
            "proof": file.proof(seq),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    with log.open("a") as out:
        out.write(line + "\n")
    if (folder / ".git").exists():
        for command in (["add", LOG_NAME], ["commit", "-q", "-m", f"Ledger at entry {seq}", "--", LOG_NAME]):
            done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(
                    f"git {command[0]} in {folder} failed: {' '.join(done.stderr.split())[:200]}"
                )
    return log, seq


def evidence_of_log(path: Path) -> list[Evidence]:
    """What a log carries.

    Args:
        path: the log, or the folder that holds it.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = path / LOG_NAME if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--log {path} is missing: lightning-dp ledger countersign --to FOLDER makes one.")
    found, before = [], ""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            one: dict[str, Any] = json.loads(line)
            sound = one["prev"] == before
            evidence = Evidence(
                where=f"Line {number} of {path.name}",
                seq=int(one["seq"]),
                hash=str(one["hash"]),
                identity=str(one["ledger_id"]),
                proof=one["proof"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged in line {number} ({type(error).__name__})") from error
        if not sound:
            raise ValueError(f"{path} is damaged: line {number} does not follow the one before it")
        found.append(evidence)
        before = hashlib.sha256(line.encode()).hexdigest()
    return found
