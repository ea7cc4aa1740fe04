"""The secrets beside a ledger: the key that signs its entries, and the one that content is marked with.

Each is a file of its owner alone (0600), made at first use and never overwritten. Public keys stand in the
chain, so that anybody can check signatures; a machine or user with a key of its own adds it there.
"""

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lightning_dp.privacy.ledger.anchor import sync_folder
from lightning_dp.privacy.ledger.errors import LedgerError

KEY_VARIABLE = "LIGHTNING_DP_LEDGER_KEY"
_BYTES = 32


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key (RFC 8032).

    Attributes:
        private: signs.
        public: 64 hex digits, for everybody.
    """

    private: Ed25519PrivateKey
    public: str

    def sign(self, message: str) -> str:
        """128 hex digits."""
        return self.private.sign(message.encode()).hex()


def signature_fits(message: str, *, public: object, signature: object) -> bool:
    """Whether the owner of the public key signed the message; False for anything that is no signature."""
    if not isinstance(public, str) or not isinstance(signature, str):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), message.encode()
        )
    except (ValueError, InvalidSignature):
        return False
    return True


def head_message(seq: int, digest: str) -> str:
    """What is signed of a chain that ends at an entry."""
    return f"lightning-dp ledger head\n{seq} {digest}"


def signing_key(ledger: Path, *, create: bool) -> SigningKey | None:
    """The key that this process signs with: of LIGHTNING_DP_LEDGER_KEY, else the file beside the ledger.

    Args:
        ledger: the ledger's file.
        create: make the key where there is none.

    Returns:
        None where there is none and it isn't made.

    Raises:
        LedgerError: the file can't be read or written, or is no key.
    """
    path = signing_key_path(ledger)
    content = _read(path, create=create, what="signing key", instead=f"set {KEY_VARIABLE} to a file of yours")
    if content is None:
        return None
    private = Ed25519PrivateKey.from_private_bytes(content)
    return SigningKey(private, private.public_key().public_bytes_raw().hex())


def key_at_hand(ledger: Path) -> SigningKey | None:
    """The key that this process signs with, for who only reads; None where it has none or may not read it."""
    try:
        return signing_key(ledger, create=False)
    except LedgerError:
        return None


def signing_key_path(ledger: Path) -> Path:
    """Where the signing key is."""
    named = os.environ.get(KEY_VARIABLE)
    return Path(named).expanduser() if named else ledger.with_name(ledger.name + "-key")


def content_key(ledger: Path) -> bytes:
    """32 bytes that all users of one ledger share, so that content is marked alike; made at first use.

    Raises:
        LedgerError: the file can't be read or written, or is no key.
    """
    path = ledger.with_name(ledger.name + "-content-key")
    content = _read(path, create=True, what="content key", instead="ask its owner for the right to read it")
    assert content is not None
    return content


def key_id(key: bytes) -> str:
    """16 hex digits that tell content keys apart and nothing about them."""
    return hashlib.blake2b(b"lightning-dp content key", key=key, digest_size=8).hexdigest()


def _read(path: Path, *, create: bool, what: str, instead: str) -> bytes | None:
    try:
        if create and not path.exists():
            _make(path)
        content = path.read_bytes()
    except FileNotFoundError:
        if create:
            raise
        return None
    except PermissionError as error:
        if not path.exists():
            raise  # the folder may not be written, which is said in other words
        raise LedgerError(
            f"The ledger's {what} {path} can't be read, permission denied ({error.strerror}): {instead}. "
            "Nothing was charged."
        ) from error
    if len(content) != _BYTES:
        raise LedgerError(
            f"The ledger's {what} {path} holds {len(content)} bytes and not the {_BYTES} of a key: put back "
            "the one that was there. Nothing was charged."
        )
    return content


def _make(path: Path) -> None:
    """A new secret, whole or not at all, and never in place of another one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
