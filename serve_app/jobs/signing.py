"""The secrets that webhooks are signed with. None is stored: each follows from the deployment's root and from whose it
is, so that who has one can make no other.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SigningSecrets:
    """In the form of Standard Webhooks: ``whsec_…``."""

    #: Of ``API_WEBHOOK_URL``, and of the ``webhook_url`` of jobs that ``API_KEY`` has asked for.
    operator: str = field(repr=False)
    #: What all others follow from.
    root: bytes = field(repr=False)

    def of_key(self, key_id: str) -> str:
        """Of the ``webhook_url`` of the key's jobs."""
        return self._derived(f"key {key_id}") if key_id else self.operator

    def of_endpoint(self, endpoint_id: str, generation: int) -> str:
        """``generation`` counts how often it was made anew."""
        return self._derived(f"endpoint {endpoint_id} {generation}")

    def _derived(self, purpose: str) -> str:
        secret = hmac.new(self.root, purpose.encode(), hashlib.sha256).digest()
        return "whsec_" + base64.b64encode(secret).decode()
