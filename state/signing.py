"""The key that signs heads (Ed25519): made, read, written, used. `cryptography` is imported when it is first needed.

Keys are kept as PEM files, PKCS 8 and SubjectPublicKeyInfo, as openssl writes them; everywhere else a key is its 32
public bytes in hexadecimal. Invariant: a private key is never written where others can read it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from state.errors import ConfigurationError, UserError, in_one_line
from state.failpoints import failpoint
from state.files import sync
from state.heads import Head, message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

EVERYONE = 0o007          # permission bits that a private key's file must not have


class SigningKey:
    """A private key and its public half."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    def head(self, row: int, hash: str, time: str) -> Head:
        return Head(row, hash, time, self.public, self._private.sign(message(row, hash, time)).hex())


def genuine(head: Head) -> bool:
    """Whether a head was signed with the key that it names."""
    from cryptography.exceptions import InvalidSignature

    try:
        key = _public_key(head.key)
        key.verify(bytes.fromhex(head.signature), message(head.row, head.hash, head.time))
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


@lru_cache(maxsize=16)
def _public_key(public: str) -> Ed25519PublicKey:
    """Raises ValueError for what is no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))


def make_key(path: Path) -> SigningKey:
    """A new key in a file that only its owner can read. Raises StateError where it cannot be written.

    Nobody else makes one meanwhile: the caller holds the state folder's lock and found no file.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        failpoint("signing.made.before")
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        raise in_one_line("write the signing key", path, error) from error
    failpoint("signing.made.after")
    return SigningKey(private)


def read_key(path: Path) -> SigningKey | None:
    """The private key of a file; None where there is no file. Raises ConfigurationError for what is no such key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        if path.stat().st_mode & EVERYONE:
            raise ConfigurationError(f"{path} can be read or written by everyone: chmod 600 it")
        private = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read the signing key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} is not a private key in PEM without a password") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key: openssl genpkey -algorithm ed25519 makes one")
    return SigningKey(private)


def write_public(path: Path, public: str) -> None:
    """Put the public key of the one who signs into a file that may be copied away."""
    from cryptography.hazmat.primitives import serialization

    text = _public_key(public).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(text)
        partial.chmod(0o644)
        sync(partial)
        failpoint("signing.public.before")
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise in_one_line("write the public key", path, error) from error
    failpoint("signing.public.after")


def read_public(path: Path) -> str | None:
    """The public key of a file; None where there is no file. Raises UserError for what is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public: object | Ed25519PublicKey = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise in_one_line("read the public key", path, error) from error
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise UserError(f"{path} is not an Ed25519 public key in PEM")
    return public.public_bytes_raw().hex()
