"""What the ledger says when it refuses, each in one sentence with what to do."""


class LedgerError(RuntimeError):
    """The ledger can't vouch for what was asked; the sentence says why and what to do."""


class LedgerMissing(LedgerError):
    """There is no ledger at this path yet."""


class LedgerCorrupt(LedgerError):
    """The ledger is damaged, incomplete or was put back to an older state.

    Attributes:
        seq: the first entry that can't be trusted.
    """

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class UnclearData(LedgerError):
    """What is to be read is known by another name, or isn't what this name stood for; nothing was charged."""


class BudgetExceeded(LedgerError):
    """The charge would pass the data set's limit; nothing was charged.

    Attributes:
        limit_epsilon: the limit.
        spent_epsilon: the filter's ε of what is charged already.
        needed_epsilon: the filter's ε with the refused charge and the plans of running leases.
        steps_left: how many releases of the refused kind would still fit.
    """

    def __init__(
        self,
        message: str,
        *,
        limit_epsilon: float,
        spent_epsilon: float,
        needed_epsilon: float,
        steps_left: int,
    ) -> None:
        super().__init__(message)
        self.limit_epsilon = limit_epsilon
        self.spent_epsilon = spent_epsilon
        self.needed_epsilon = needed_epsilon
        self.steps_left = steps_left
