"""The privacy ledger: what was charged to each data set, written down before any private row is read.

One append-only SQLite file per data owner, kept outside run folders. Every release is a *reservation*
that is on disk before the release may happen, so a process that dies at any moment has been charged
for at least what it did. Rows form a hash chain; checkpoints carry `(seq, hash)` of the ledger, and
a resume is refused where the ledger lacks that entry. Entries hold mechanisms (noise multiplier,
sampling rate, steps), never an ε: ε is computed from all entries when somebody asks.

Guarantee: as long as a caller releases nothing that `Lease.reserve` did not return for, what is
charged to a data set covers what was released, whatever is killed, resumed, forked, rolled back to
an older checkpoint or run at the same time. A lost write-ahead log, an older copy put back or a
damaged row is found before the next reservation, with the help of the *anchor*: a small text file
beside the ledger that repeats `(seq, hash)` of what was committed.

Every transaction signs the chain's end, so entries are known to come from who holds a key; reports and
checkpoints carry that signature, and `verify --against` them finds histories that were dropped, rewritten,
cut or emptied. A data set is known again by keyed marks of its content, whatever it is called.

Out of scope: putting back or deleting ledger, anchor and everything that carries its end together; somebody
who holds the key and all copies of what it signed; content of which every piece was changed; disks that
machines share where nobody says so (on Linux `disk.py` refuses them); the units of one data set, whose
accounts are apart and do not add up into each other: a limit on a coarser unit (user ⊐ window ⊐ record,
event) therefore refuses charges on finer ones unless the owner allows them, while a limit on a finer unit
does not see what is charged to a coarser one.
"""

from lightning_dp.privacy.ledger.budget import Budget
from lightning_dp.privacy.ledger.content import Content
from lightning_dp.privacy.ledger.errors import (
    BudgetExceeded,
    LedgerCorrupt,
    LedgerError,
    LedgerMissing,
    UnclearData,
)
from lightning_dp.privacy.ledger.evidence import Comparison, Evidence
from lightning_dp.privacy.ledger.filter import filter_epsilon
from lightning_dp.privacy.ledger.lease import Lease
from lightning_dp.privacy.ledger.ledger import RELATION, Ledger, identify
from lightning_dp.privacy.ledger.rows import ChargeKind, Entry
from lightning_dp.privacy.ledger.storage import ENVIRONMENT_VARIABLE, default_ledger_path

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "RELATION",
    "Budget",
    "BudgetExceeded",
    "ChargeKind",
    "Comparison",
    "Content",
    "Entry",
    "Evidence",
    "Lease",
    "Ledger",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerMissing",
    "UnclearData",
    "default_ledger_path",
    "filter_epsilon",
    "identify",
]
