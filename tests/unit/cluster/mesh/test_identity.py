"""Certificates, invitations and credentials."""

import hashlib
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cluster.mesh.dialer import HubAddress
from cluster.mesh.identity import Credentials, HubIdentity, new_key
from cluster.mesh.invitation import BadInvitation, Invitation, is_pinned

IDENTITY = HubIdentity.derived(b"a secret of thirty-two bytes....")


def test_fingerprint_is_the_certificates() -> None:
    certificate = ssl.PEM_cert_to_DER_cert(IDENTITY.pem.decode().partition("-----END PRIVATE KEY-----\n")[2])
    assert hashlib.sha256(certificate).digest() == IDENTITY.fingerprint
    assert is_pinned(certificate, IDENTITY.fingerprint)
    assert not is_pinned(certificate + b"x", IDENTITY.fingerprint)
    assert not is_pinned(None, IDENTITY.fingerprint)
    assert x509.load_der_x509_certificate(certificate).issuer.rfc4514_string() == "CN=video-api-mesh"


def test_derived_identity_never_changes() -> None:
    """Nodes hold this fingerprint: another one after an update of a library would lock them all out."""
    assert HubIdentity.derived(b"a secret of thirty-two bytes....") == IDENTITY
    assert IDENTITY.fingerprint.hex() == "735497283abbf98441fd0456a24a27dc9831cdab3433957c47cddbb2cd09d5c0"
    with pytest.raises(ValueError, match="32 bytes"):
        HubIdentity.derived(b"short")
    assert HubIdentity.derived(b"another of thirty-two bytes.....").fingerprint != IDENTITY.fingerprint
    assert "PRIVATE" not in repr(IDENTITY)


def test_server_context_speaks_only_tls_1_3() -> None:
    context = IDENTITY.server_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_invitation_as_text(fingerprint: bytes, secret: bytes) -> None:
    invitation = Invitation(fingerprint, secret)
    assert Invitation.parse(invitation.token()) == invitation
    assert "secret" not in repr(invitation)


@given(st.text() | st.text("abcXYZ019-_=+/", max_size=90).map("mesh1-".__add__))
def test_other_texts_are_no_invitations(text: str) -> None:
    with pytest.raises(BadInvitation):
        Invitation.parse(text)


def test_credentials_are_kept_private(tmp_path: Path) -> None:
    file = tmp_path / "state" / "node.json"
    assert Credentials.load(file) is None
    credentials = Credentials(2, new_key(), bytes(32))
    credentials.save(file)
    assert Credentials.load(file) == credentials
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert credentials.key.hex() not in repr(credentials)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"slot": 0, "key": "", "fingerprint": ""}', '{"slot": 2, "key": "x"}']
)
def test_other_files_are_no_credentials(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expecting value|credentials"):
        Credentials.load(tmp_path / "node.json")


def test_hub_addresses() -> None:
    assert HubAddress.parse("proxy.example:4711") == HubAddress("proxy.example", 4711)
    assert HubAddress.parse("[fd00::1]:1") == HubAddress("fd00::1", 1)
    for text in ("", "host", ":1", "host:", "host:0", "host:65536", "host:x", "host:²"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            HubAddress.parse(text)
