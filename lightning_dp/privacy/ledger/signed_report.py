"""Reports with a signature, so that a changed byte anywhere in one is found.

What is signed is the one JSON text of all of the report but the signature itself. The key is the one that
signs the ledger: whoever has the report can check that it is whole, and whoever has the ledger that it is
genuine.
"""

import json
from collections.abc import Mapping
from typing import Any

from lightning_dp.privacy.ledger.keys import SigningKey, signature_fits
from lightning_dp.privacy.ledger.rows import canonical
from lightning_dp.privacy.report import json_ready

FIELD = "signature"
NOBODY = "unsigned"
"""Field of a report that nobody signed, which says why."""

OLD = "unsigned (written by an older version)"


class ReportChanged(ValueError):
    """A report is not the one that was signed."""


def with_signature(report: Mapping[str, Any], *, key: SigningKey | None) -> dict[str, Any]:
    """The report as JSON has it, signed anew; where there is no key it says so instead."""
    content: dict[str, Any] = json.loads(json.dumps(json_ready(dict(report)), allow_nan=False))
    content.pop(FIELD, None)
    content.pop(NOBODY, None)
    if key is not None:
        content[FIELD] = {"public_key": key.public, "signature": key.sign(_message(content))}
    else:
        content[NOBODY] = "the key of the run's ledger was not at hand"
    return content


def signer_of(report: Mapping[str, Any]) -> str | None:
    """The public key that signed a report; None where nobody did.

    Raises:
        ReportChanged: the signature is not that of what the report says.
    """
    if FIELD not in report:
        return None
    signature = report[FIELD]
    content = {name: value for name, value in report.items() if name != FIELD}
    if not isinstance(signature, Mapping) or not signature_fits(
        _message(content), public=signature.get("public_key"), signature=signature.get("signature")
    ):
        raise ReportChanged("something in it was changed after it was signed")
    return str(signature["public_key"])


def signature_in_words(report: Mapping[str, Any]) -> str:
    """ "" for a report that is whole and signed, else why it has no signature: every reader asks this first.

    Raises:
        ReportChanged: the signature is not that of what the report says, or was taken away.
    """
    if signer_of(report) is not None:
        return ""
    if "schema" not in report:
        return OLD
    if not isinstance(why := report.get(NOBODY), str):
        raise ReportChanged("its signature is gone, and reports of this form have one or say why not")
    return f"unsigned ({why})"


def _message(content: Mapping[str, Any]) -> str:
    try:
        return f"lightning-dp report\n{canonical(content)}"
    except ValueError as error:  # a NaN, which nobody signs
        raise ReportChanged(f"it holds what no report holds ({error})") from error
