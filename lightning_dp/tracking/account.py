"""The account of a run folder, as every command reads it: computed again, and compared with what is there.

`privacy.json` is a file that anybody can edit, copy or lose. Its ε is shown only where it is no smaller than
ε of the mechanisms that it records, of those in the checkpoint, of the plan that config.yaml asks for, and
of the ledger's entries, as far as these are at hand. Who edits all of them alike is not found out here, but
by `lightning-dp verify`, which checks signatures as well.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import Event, GaussianEvent, epsilon_pld, releases
from lightning_dp.privacy.claim import (
    TOLERANCE,
    ClaimError,
    check_at_least,
    check_report,
    claimed_epsilon,
    delta_of_report,
    mechanisms_of,
)
from lightning_dp.privacy.ledger import Ledger, LedgerError, default_ledger_path
from lightning_dp.privacy.ledger.keys import key_at_hand
from lightning_dp.privacy.ledger.signed_report import (
    FIELD,
    NOBODY,
    ReportChanged,
    signature_in_words,
    signer_of,
    with_signature,
)
from lightning_dp.privacy.plan import calibrate_noise_multiplier, delta_of
from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report
from lightning_dp.privacy.report.document import check_schema_name
from lightning_dp.tracking.checked_before import CheckedBefore, Passed, key_of, read_report_bytes
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.run_config import read_yaml

UNTRAINED = "lightning_dp_untrained"
"""In checkpoint and privacy report of a public model that no data was shown to, see `commands.public`."""

_AGREES = "agrees"
_ATTEMPTS = 3  # a fit may write between two reads


@dataclass(frozen=True, kw_only=True)
class Account:
    """A privacy report whose ε holds against everything that it was compared with.

    Attributes:
        report: content of privacy.json; {} where there is none.
        checks: what it was compared with (mechanisms, checkpoint, config, ledger, its own signature) →
            "agrees", or why it was not.
        ledger: the one at hand, whose key signs what is made of the run; None where there is none.
    """

    report: dict[str, Any]
    checks: dict[str, str] = field(default_factory=dict)
    ledger: Ledger | None = None

    @property
    def sentence(self) -> str:
        """Which checks were made, for people."""
        made = [name for name, outcome in self.checks.items() if outcome == _AGREES]
        missing = [f"{name}: {outcome}" for name, outcome in self.checks.items() if outcome != _AGREES]
        return (
            f"ε was compared with {', '.join(made) or 'nothing'}"
            + (f" (not with {'; '.join(missing)})" if missing else "")
            + "."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report with its checks, for a copy beside what it speaks of."""
        # A signature is of the report as it was, and no longer of this copy.
        report = {name: value for name, value in self.report.items() if name not in (FIELD, NOBODY)}
        return {**report, "checks": self.checks, NOBODY: "a copy of what the run says of itself"}

    def signed(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report on what was made of the run, signed where the run's ledger is at hand."""
        return with_signature(report, key=None) if self.ledger is None else self.ledger.sign_report(report)


def read_account(folder: Path, *, needs_weights: bool = False) -> Account:
    """The checked account of a run folder.

    Args:
        folder: of the run.
        needs_weights: refuse where there is no checkpoint to speak of.

    Raises:
        ValueError: it claims less than was spent, speaks of other weights, or is damaged; says which.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _read(folder, needs_weights=needs_weights)
        except ClaimError as error:
            if attempt + 1 == _ATTEMPTS:
                raise ClaimError(
                    f"{folder / REPORT_NAME} can't be believed: {error}; put back the report that belongs to "
                    "this run, or resume the run, which writes it anew."
                ) from error
            time.sleep(0.1)
    raise AssertionError


def read_accounts(
    folders: Sequence[Path], *, before: CheckedBefore | None = None
) -> list[Account | Exception]:
    """The checked accounts of many run folders, or why one can't be read or believed.

    Each ledger is read once, after the folders.

    Args:
        folders: of the runs.
        before: folders whose own files passed before are not checked again; None takes the user's own file.
    """
    before = CheckedBefore() if before is None else before
    found: list[Account | Exception] = []
    of_ledger: dict[Path, dict[int, Account]] = defaultdict(dict)
    for number, folder in enumerate(folders):
        try:
            account = _read_files(folder, needs_weights=False, before=before)
        except Exception as error:  # one damaged run of many, whatever it breaks
            found.append(_again(folder) if isinstance(error, ClaimError) else error)
            continue
        found.append(account)
        if account.ledger is not None:
            of_ledger[account.ledger.path][number] = account
    for accounts in of_ledger.values():
        for number, outcome in zip(accounts, _compared(list(accounts.values())), strict=True):
            found[number] = _again(folders[number]) if isinstance(outcome, ClaimError) else outcome
    before.save()
    return found


def _again(folder: Path) -> Account | Exception:
    """The account by itself: a fit may have written while many were read."""
    try:
        return read_account(folder)
    except Exception as error:
        return error


def _compared(accounts: Sequence[Account]) -> list[Account | Exception]:
    """Accounts of one ledger, compared with it."""
    ledger = accounts[0].ledger
    assert ledger is not None
    reports = [account.report for account in accounts]
    try:
        charged = _charges_by_run(ledger, [str(report.get("run")) for report in reports])
        held = ledger.holds([(_seq(report), str(report.get("ledger_hash"))) for report in reports])
        keys = _keys_of(ledger, reports)
    except LedgerError as error:
        return [error] * len(accounts)
    found: list[Account | Exception] = []
    for account, is_held in zip(accounts, held, strict=True):
        events = charged.get(str(account.report.get("run")))
        try:
            outcome = _check_charges(account.report, events=events, is_held=is_held)
            # Last: what is wrong with its figures says more than that somebody changed them.
            signature = _check_signature(account.report, keys=keys if outcome == _AGREES else None)
            own = {"ledger": outcome, "signature": signature}
            found.append(replace(account, checks={**account.checks, **own}))
        except ClaimError as error:
            found.append(error)
    return found


def _read(folder: Path, *, needs_weights: bool) -> Account:
    account = _read_files(folder, needs_weights=needs_weights)
    if account.ledger is None:
        return account
    (compared,) = _compared([account])
    if isinstance(compared, Exception):
        raise compared
    return compared


def _read_files(folder: Path, *, needs_weights: bool, before: CheckedBefore | None = None) -> Account:
    """The account, compared with all but the ledger, which it holds where there is one to compare with."""
    if before is not None:
        content = read_report_bytes(folder)
        key = key_of(folder, report=content)
        passed = before.find(key)
        if passed is not None:
            known = json.loads(content)
            _check_form(known)
            return _with_ledger(known, passed.checks, _at_hand(passed.ledger))
    config = _config(folder)
    named = _named(config)
    checkpoint = _checkpoint(folder / CHECKPOINT, needed=needs_weights)
    report = read_privacy_report(folder)  # last: while a fit runs, it is ahead of the rest
    if not report:
        return Account(report={})
    _check_form(report)
    if checkpoint is not None:
        _check_weights(folder, checkpoint, report)
    if report.get(UNTRAINED) is True:
        if checkpoint is None or checkpoint.get(UNTRAINED) is not True:
            raise ClaimError("it is the report of public weights, and there are none such beside it")
        _check_signature(report)
        return Account(report=report, checks={"checkpoint": _AGREES})
    check_report(report)
    if claimed_epsilon(report) == float("inf"):
        _check_signature(report)
        return Account(report=report, checks={"checkpoint": _AGREES} if checkpoint else {})
    checks = {"mechanisms": _AGREES}
    saved = (checkpoint or {}).get("callbacks", {}).get("DifferentialPrivacy")
    checks["checkpoint"] = "there is none"
    if checkpoint is not None and saved:
        _check_checkpoint(saved, report, global_step=int(checkpoint.get("global_step", 0)))
        checks["checkpoint"] = _AGREES
    checks["config"] = _check_config(config, report)
    # What was read may have been written to since it was hashed.
    if before is not None and read_report_bytes(folder) == content and key_of(folder, report=content) == key:
        before.keep(key, Passed(checks=checks, ledger=named))
    return _with_ledger(report, checks, _at_hand(named))


def _with_ledger(report: dict[str, Any], checks: Mapping[str, str], ledger: Ledger | None) -> Account:
    if ledger is not None:
        return Account(report=report, checks=dict(checks), ledger=ledger)
    own = {"ledger": "not at hand", "signature": _check_signature(report)}
    return Account(report=report, checks={**checks, **own})


def _check_form(report: Mapping[str, Any]) -> None:
    try:
        check_schema_name(report)
    except ValueError as error:
        raise ClaimError(str(error)) from error


def _check_signature(report: Mapping[str, Any], *, keys: Collection[str] | None = None) -> str:
    """That nobody changed a report after it was signed; "agrees", or why there is no signature.

    Args:
        report: as it stands in the folder.
        keys: that sign in the ledger that its run was charged to; None without one.
    """
    try:
        unsigned = signature_in_words(report)
    except ReportChanged as error:
        raise ClaimError(f"it is not the report that was signed: {error}") from error
    signer = None if unsigned else signer_of(report)
    if keys is not None and signer is not None and signer not in keys:
        raise ClaimError(
            f"it was signed by key {signer[:16]}…, which is none of the ledger's that its run was charged to"
        )
    return unsigned or _AGREES


# --- the checkpoint ---------------------------------------------------------------------------------


def _checkpoint(path: Path, *, needed: bool) -> dict[str, Any] | None:
    if not needed and not path.is_file():
        return None
    from lightning_dp.tracking.checkpoint_file import read_checkpoint

    return read_checkpoint(path)


def _check_weights(folder: Path, checkpoint: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Refuse weights that are not those which the report speaks of."""
    saved = checkpoint.get("callbacks", {}).get("DifferentialPrivacy")
    if checkpoint.get(UNTRAINED) is True and report.get(UNTRAINED) is True and not saved:
        return
    private = report.get("epsilon_spent") != "inf"
    if private != bool(saved):
        raise ValueError(
            f"{folder} has weights trained {'with' if saved else 'without'} privacy and a privacy.json that "
            f"says otherwise: one of the two is from another run, so no ε can be stated."
        )
    if saved and (saved["run"] != report.get("run") or saved["ledger"][0] > _seq(report)):
        raise ValueError(
            f"{folder} has weights of run {saved['run']}, ledger entry {saved['ledger'][0]}, and a "
            f"privacy.json of run {report.get('run')}, entry {report.get('ledger_seq')}, which doesn't cover "
            "them: restore the one that belongs to the weights."
        )


def _seq(report: Mapping[str, Any]) -> int:
    seq = report.get("ledger_seq")
    return seq if isinstance(seq, int) else -1


def _check_checkpoint(saved: Mapping[str, Any], report: Mapping[str, Any], *, global_step: int) -> None:
    """The checkpoint's own account: what it says of itself, and what it says of the report."""
    claimed, delta = claimed_epsilon(report), delta_of_report(report)
    released = mechanisms_of(report)
    for name in ("delta", "unit"):
        if saved.get(name, report.get(name)) != report.get(name):
            raise ClaimError(f"{name} is {report.get(name)}, and the checkpoint's is {saved[name]}")
    if _steps(released) < global_step:
        raise ClaimError(
            f"it records {_steps(released)} steps, and the checkpoint holds weights of step {global_step}"
        )
    own = claimed_epsilon({"epsilon_spent": saved.get("epsilon")})
    if claimed < own * (1 - TOLERANCE):
        raise ClaimError(f"it claims ε = {claimed:.6g}, and the checkpoint's own account says {own:.6g}")
    in_checkpoint = _listed(saved)
    if in_checkpoint is None:  # of an older version; it knows at least its steps
        event = _training_event(report, steps=global_step)
        in_checkpoint = (event,) if event.steps else ()
    elif _steps(in_checkpoint) < global_step:
        raise ClaimError(
            f"the checkpoint's account records {_steps(in_checkpoint)} steps, and its weights are of step "
            f"{global_step}"
        )
    check_at_least(own, events=in_checkpoint, delta=delta, what="what the checkpoint records, whose account")
    check_at_least(claimed, events=in_checkpoint, delta=delta, what="what the checkpoint records")


def _listed(saved: Mapping[str, Any]) -> tuple[Event, ...] | None:
    if "mechanisms" not in saved:
        return None
    return mechanisms_of({**_NO_OWN, "mechanisms": saved["mechanisms"]})


_NO_OWN: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_rate": 1.0, "steps_charged": 0}


def _training_event(report: Mapping[str, Any], *, steps: int) -> GaussianEvent:
    return GaussianEvent(
        noise_multiplier=float(report["noise_multiplier"]),
        sampling_rate=float(report["sampling_rate"]),
        steps=steps,
    )


def _steps(events: tuple[Event, ...]) -> int:
    return sum(releases(event)[1] for event in events if isinstance(event, GaussianEvent))


# --- the configuration ------------------------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _check_config(config: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The settings that config.yaml states, against those of the report."""
    if not config:
        return "there is no config.yaml"
    if "privacy" not in config:
        return "config.yaml has no section privacy"
    wanted = config["privacy"]
    if not isinstance(wanted, Mapping):
        raise ClaimError("it is the report of a private run, and config.yaml says privacy: null")
    num_units = report.get("num_units")
    delta = wanted.get("delta")
    if isinstance(delta, str) and isinstance(num_units, int):
        delta = delta_of(delta, num_units=num_units)  # type: ignore[arg-type]
    stated = {
        "delta": delta,
        "noise_multiplier": wanted.get("noise_multiplier"),
        "num_units": wanted.get("num_units"),
        "expected_batch_size": wanted.get("expected_batch_size"),
        "max_grad_norm": wanted.get("max_grad_norm"),
    }
    for name, value in stated.items():
        if value is not None and name in report and not _equal(report[name], value):
            raise ClaimError(f"{name} is {report[name]}, and config.yaml says {value}")
    batch, rate = report.get("expected_batch_size"), report.get("sampling_rate")
    if batch is not None and num_units is not None and not _equal(batch / num_units, rate):
        raise ClaimError(
            f"sampling_rate is {rate}, and {batch} of {num_units} units are {batch / num_units:.6g}"
        )
    target = wanted.get("target_epsilon")
    if target is not None:
        _check_noise(report, target=float(target))
    return _AGREES


def _equal(value: Any, expected: Any) -> bool:
    try:
        return abs(float(value) - float(expected)) <= TOLERANCE * abs(float(expected))
    except (TypeError, ValueError):
        return False


def _check_noise(report: Mapping[str, Any], *, target: float) -> None:
    """σ is the least that meets the target: more noise than that was not what the run drew.

    Checked without a search: at a σ that is a thousandth smaller the plan must miss the target.
    """
    sigma, steps = float(report["noise_multiplier"]), report.get("num_steps")
    if not isinstance(steps, int) or steps < 1:
        raise ClaimError(f"num_steps is {steps!r}, which is no number of steps")
    prior = mechanisms_of({**report, **_NO_OWN, "mechanisms": report.get("prior_releases") or []})
    less = GaussianEvent(
        noise_multiplier=sigma * (1 - 1e-3), sampling_rate=float(report["sampling_rate"]), steps=steps
    )
    if epsilon_pld([*prior, less], delta_of_report(report)) >= target:
        return
    least = calibrate_noise_multiplier(
        target_epsilon=target,
        delta=delta_of_report(report),
        sampling_rate=float(report["sampling_rate"]),
        num_steps=steps,
        prior=prior,
    )
    if sigma > least * (1 + 1e-3):
        raise ClaimError(
            f"noise_multiplier is {sigma}, and target_epsilon {target:g} of config.yaml is met by {least}"
        )


# --- the ledger -------------------------------------------------------------------------------------


def ledger_at_hand(folder: Path, named: str | None) -> Ledger | None:
    """The ledger of this name, else that of a run folder's configuration, else the default one."""
    return Ledger(named) if named is not None else _ledger(_named(_config(folder)))


def _named(config: Mapping[str, Any]) -> str | None:
    """The ledger that a configuration names."""
    privacy = config.get("privacy")
    named = privacy.get("ledger") if isinstance(privacy, Mapping) else None
    return named if isinstance(named, str) else None


def _ledger(named: str | None) -> Ledger | None:
    try:
        return Ledger(Path(named).expanduser() if named is not None else default_ledger_path())
    except RuntimeError:  # nobody knows where this user's home is
        return None


def _at_hand(named: str | None) -> Ledger | None:
    """The ledger that a run's configuration names, if it lies on this machine."""
    ledger = _ledger(named)
    return ledger if ledger is not None and ledger.path.is_file() else None


def _keys_of(ledger: Ledger, reports: Sequence[Mapping[str, Any]]) -> set[str]:
    """Public keys that may have signed these reports: the one at hand, else all of the ledger."""
    own = key_at_hand(ledger.path)  # usually the one, and quickly found
    keys = set() if own is None else {own.public}
    signed = [report[FIELD] for report in reports if isinstance(report.get(FIELD), Mapping)]
    return (
        keys
        if all(str(one.get("public_key")) in keys for one in signed)
        else keys | set(ledger.replay().keys)
    )


def _charges_by_run(ledger: Ledger, runs: Sequence[str]) -> dict[str, tuple[Event, ...]]:
    """Run → everything that it was charged, in all accounts; without runs that were charged nothing."""
    found: dict[str, tuple[Event, ...]] = {}
    for _, by_run in ledger.charges_of(set(runs)).values():
        for run, events in by_run.items():
            found[run] = (*found.get(run, ()), *events)
    return found


def _check_charges(report: Mapping[str, Any], *, events: tuple[Event, ...] | None, is_held: bool) -> str:
    """Compare a report with what its run was charged; "agrees", or why there was nothing to compare."""
    if events is None:
        return "the one at hand knows nothing of this run"
    if not is_held:
        raise ClaimError(
            f"its ledger entry {report.get('ledger_seq')} is not in the ledger, which knows its run "
            f"{report.get('run')}"
        )
    check_at_least(
        claimed_epsilon(report),
        events=events,
        delta=delta_of_report(report),
        what="what the ledger was charged for this run",
    )
    return _AGREES
