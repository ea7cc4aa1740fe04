"""What others carry of the ledger, compared with it: histories that were dropped, rewritten, cut or emptied.

Somebody who may write the ledger and holds its key can make it say anything, and all of it will fit. Run
folders, checkpoints and logs elsewhere carry the chain's end as it was, signed; they can't be changed along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_dp.privacy.ledger.errors import LedgerMissing
from lightning_dp.privacy.ledger.examination import Examination, examine
from lightning_dp.privacy.ledger.keys import head_message, signature_fits
from lightning_dp.privacy.ledger.storage import LedgerFile


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One entry that the ledger had when something was written.

    Attributes:
        where: what carries it, for people.
        seq, hash: of the entry.
        run: whose entry it is; None for whoever's.
        identity: of the ledger; None where it isn't said.
        proof: the chain's end at that time with its signature; None where nothing was signed.
    """

    where: str
    seq: int
    hash: str
    run: str | None = None
    identity: str | None = None
    proof: Mapping[str, Any] | None = None

    @classmethod
    def of_account(cls, account: Mapping[str, Any], *, where: str) -> "list[Evidence]":
        """What a privacy report or a checkpoint's account carries.

        Raises:
            ValueError: it is no such account.
        """
        seq, digest = account.get("ledger_seq"), account.get("ledger_hash")
        if isinstance(account.get("ledger"), list) and len(account["ledger"]) == 2:
            seq, digest = account["ledger"]
        if seq is None and digest is None:
            return []
        proof = account.get("ledger_proof")
        if not isinstance(seq, int) or not isinstance(digest, str):
            raise ValueError(f"{where} says ledger entry {seq!r}, {digest!r}, which is none")
        if proof is not None and not isinstance(proof, Mapping):
            raise ValueError(f"{where} has no signed end of the ledger but {type(proof).__name__}")
        run, identity = account.get("run"), None if proof is None else proof.get("ledger_id")
        return [
            cls(
                where=where,
                seq=seq,
                hash=digest,
                run=run if isinstance(run, str) else None,
                identity=identity if isinstance(identity, str) else None,
                proof=proof,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of it.

    Attributes:
        examination: of the ledger; None where there is none.
        agree: pieces of evidence that the ledger holds.
        findings: a sentence for each that it doesn't.
    """

    examination: Examination | None
    agree: int
    findings: list[str]


def compare(file: LedgerFile, evidence: Sequence[Evidence]) -> Comparison:
    """Compare a ledger with what others carry of it.

    Raises:
        LedgerCorrupt: the ledger contradicts itself.
    """
    try:
        examination = examine(file)
    except LedgerMissing:
        findings = [
            f"{one.where} was written when the ledger had {one.seq} entries, and there is none at "
            f"{file.path}: it was emptied, moved or deleted."
            for one in evidence
        ]
        return Comparison(examination=None, agree=0, findings=findings)
    wanted = [(one.seq, one.hash) for one in evidence]
    ends = [
        (None, None) if one.proof is None else (one.proof.get("seq"), one.proof.get("hash"))
        for one in evidence
    ]
    held = file.holds([*wanted, *ends])
    findings = []
    for number, one in enumerate(evidence):
        found = _finding(one, examination, held=held[number], end_held=held[len(evidence) + number])
        if found:
            findings.append(f"{one.where} {found}")
    return Comparison(examination=examination, agree=len(evidence) - len(findings), findings=findings)


def _finding(one: Evidence, ledger: Examination, *, held: bool, end_held: bool) -> str:
    proof = one.proof
    vouched = ""
    if proof is not None:
        message = head_message(proof.get("seq"), proof.get("hash"))  # type: ignore[arg-type]
        if not signature_fits(message, public=proof.get("public_key"), signature=proof.get("signature")):
            return "carries a signature of the ledger that does not fit: it was changed after it was written."
        vouched = f", as key {str(proof['public_key'])[:16]}… signed"
        if held and end_held and proof["public_key"] not in ledger.keys:
            return (
                f"carries a signature by key {str(proof['public_key'])[:16]}…, which the ledger does not "
                "know: the entry that named it was dropped."
            )
    if held and (proof is None or end_held):
        return ""
    if one.identity is not None and one.identity != ledger.identity:
        return (
            f"was charged to a ledger that began with {one.identity[:12]}…{vouched}, and this one began with "
            f"{ledger.identity[:12]}…: it is another ledger, or was rewritten or emptied and begun anew."
        )
    if one.run is not None and one.run not in ledger.runs:
        return (
            f"belongs to run {one.run}, charged at entry {one.seq}{vouched}, and the ledger knows no such "
            "run: it was dropped."
        )
    last = one.seq if proof is None or held is False else int(proof["seq"])
    if last > ledger.head[0]:
        return (
            f"was written when the ledger had entry {last}{vouched}, and it ends at {ledger.head[0]}: it was "
            "cut."
        )
    return (
        f"was written when entry {last} of the ledger had the hash {one.hash[:12]}…{vouched}, and now it is "
        "another: this entry, or one before it, was rewritten."
    )
