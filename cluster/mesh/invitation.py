"""A node's way to its hub before it has anything but a token. The bootstrap has it too: standard library only."""

import base64
import binascii
import hashlib
import hmac
import ssl
from dataclasses import dataclass, field

from cluster.mesh.wire import SECRET_BYTES

#: The hub's name inside its certificate and in TLS's SNI. Nobody checks it: the fingerprint says it all.
HUB_NAME = "video-api-mesh"
_FINGERPRINT_BYTES = 32
_INVITATION = "mesh1-"


class BadInvitation(ValueError):
    """The text is not an invitation. Holds none of it."""


@dataclass(frozen=True)
class Invitation:
    """A one-time token: lets one node join, and tells it which hub to trust. :meth:`HubIdentity.invitation` makes one.

    What is inside the secret is the hub's own business, so the text's version stays when that changes.
    """

    fingerprint: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Invitation":
        """Read what :meth:`token` wrote. Raises :class:`BadInvitation`."""
        head, body = text[: len(_INVITATION)], text[len(_INVITATION) :]
        try:
            data = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            data = b""
        if head != _INVITATION or len(data) != _FINGERPRINT_BYTES + SECRET_BYTES:
            raise BadInvitation("this is not an invitation to a mesh")
        return cls(data[:_FINGERPRINT_BYTES], data[_FINGERPRINT_BYTES:])

    def token(self) -> str:
        """The text to hand to the node. A secret until it is used or expired."""
        return _INVITATION + base64.urlsafe_b64encode(self.fingerprint + self.secret).decode().rstrip("=")


def client_context() -> ssl.SSLContext:
    """TLS 1.3 as a node. Trusts nobody by itself: :func:`is_pinned` has to follow before anything is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_pinned(certificate: bytes | None, fingerprint: bytes) -> bool:
    """Whether a connection's certificate (DER) is the one that is trusted."""
    return certificate is not None and hmac.compare_digest(hashlib.sha256(certificate).digest(), fingerprint)
