"""Who is who: the hub's certificate and the nodes' keys.

A node trusts exactly one certificate, by its SHA-256 fingerprint; the hub trusts exactly the keys whose hashes the
registry holds. Secrets have 128 random bits or more, so a plain SHA-256 of one can be stored. None of them shows in a
``repr``.
"""

import hashlib
import hmac
import json
import os
import secrets
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from cluster.mesh.invitation import HUB_NAME, Invitation
from cluster.mesh.plan import slot
from cluster.mesh.wire import SECRET_BYTES

#: Fixed dates, so that a key always gives the same certificate. Nobody checks these either; revoking is by key.
_FROM, _UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class HubIdentity:
    """The hub's certificate with its private key. As secret as a key."""

    pem: bytes = field(repr=False)
    #: SHA-256 of the certificate.
    fingerprint: bytes
    #: Marks the secrets of invitations as this hub's.
    _marker: bytes = field(repr=False)

    @classmethod
    def derived(cls, secret: bytes) -> Self:
        """The identity that follows from a secret of at least 32 bytes: a head needs no disk for it."""
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the mesh's secret needs at least {SECRET_BYTES} bytes")
        seed = hmac.digest(secret, b"video-api mesh hub v1", "sha256")
        key = Ed25519PrivateKey.from_private_bytes(seed)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HUB_NAME)])
        # Ed25519 signs deterministically: with nothing random in the certificate, the key alone fixes its bytes.
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(_FROM)
            .not_valid_after(_UNTIL)
            .sign(key, None)
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(
            private + certificate.public_bytes(serialization.Encoding.PEM),
            hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest(),
            hmac.digest(key.private_bytes_raw(), b"video-api mesh invitations v1", "sha256"),
        )

    def invitation(self) -> Invitation:
        """A new one. Its secret is half random, half a MAC of that: what :meth:`has_made` knows again."""
        nonce = secrets.token_bytes(SECRET_BYTES // 2)
        return Invitation(self.fingerprint, nonce + self._mark(nonce))

    def has_made(self, secret: bytes) -> bool:
        """Whether the secret is from an :meth:`invitation` of this hub, used up or not. Costs no look at any list."""
        nonce, mark = secret[: SECRET_BYTES // 2], secret[SECRET_BYTES // 2 :]
        return hmac.compare_digest(mark, self._mark(nonce))

    def _mark(self, nonce: bytes) -> bytes:
        return hmac.digest(self._marker, nonce, "sha256")[: SECRET_BYTES // 2]

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 as the hub. OpenSSL reads keys from files only, so one exists for a moment."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Sessions are never resumed: tickets would only be bytes that nobody asked for.
        context.num_tickets = 0
        descriptor = os.memfd_create("hub", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


@dataclass(frozen=True)
class Credentials:
    """What a node needs to come back: its slot, its key, and the hub that it trusts."""

    slot: int
    key: bytes = field(repr=False)
    fingerprint: bytes

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What :meth:`save` wrote; None if there is none. Raises ValueError if the file is something else."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        try:
            loaded = cls(int(values["slot"]), bytes.fromhex(values["key"]), bytes.fromhex(values["fingerprint"]))
            slot(loaded.slot)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} does not hold a node's credentials") from None
        return loaded

    def save(self, path: Path) -> None:
        """Write the file, mode 0600, whole or not at all."""
        values = {"slot": self.slot, "key": self.key.hex(), "fingerprint": self.fingerprint.hex()}
        save_private(path, json.dumps(values).encode())


def new_key() -> bytes:
    """A node's key. Made on the node: the hub sees its hash first."""
    return secrets.token_bytes(SECRET_BYTES)


def digest(secret: bytes) -> bytes:
    """What is stored of a key or a token's secret."""
    return hashlib.sha256(secret).digest()


def save_private(path: Path, content: bytes) -> None:
    """Write a secret to a file, mode 0600, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
