"""Secrets of receivers: each its own, and the same whenever it is asked for."""

from standardwebhooks import Webhook

from serve_app.jobs.signing import SigningSecrets

OPERATOR = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
SECRETS = SigningSecrets(OPERATOR, b"r" * 32)


def test_every_receiver_has_a_secret_of_its_own() -> None:
    found = [
        SECRETS.of_key(""),
        SECRETS.of_key("key_a"),
        SECRETS.of_key("key_b"),
        SECRETS.of_endpoint("whe_a", 1),
        SECRETS.of_endpoint("whe_a", 2),
        SECRETS.of_endpoint("whe_b", 1),
    ]
    assert len(set(found)) == len(found)
    assert found == [
        SECRETS.of_key(""),
        SECRETS.of_key("key_a"),
        SECRETS.of_key("key_b"),
        *(
            SigningSecrets("whsec_other", b"r" * 32).of_endpoint(*of)
            for of in (("whe_a", 1), ("whe_a", 2), ("whe_b", 1))
        ),
    ]
    for secret in found:
        Webhook(secret)


def test_the_environments_key_has_the_one_it_always_had() -> None:
    assert SECRETS.of_key("") == OPERATOR


def test_another_root_makes_others() -> None:
    other = SigningSecrets(OPERATOR, b"s" * 32)
    assert other.of_key("key_a") != SECRETS.of_key("key_a")
    assert other.of_endpoint("whe_a", 1) != SECRETS.of_endpoint("whe_a", 1)


def test_it_is_not_shown_by_accident() -> None:
    assert "whsec_" not in repr(SECRETS)
    assert "rrr" not in repr(SECRETS)
