"""Why a machine does not become a node."""


class Fault(Exception):
    """It can't, and the message, which the head gets, says why. No secret in it."""
