"""The environment as configuration: what is refused, what is derived, what a laptop is given."""

import hmac
from ipaddress import ip_network
from pathlib import Path

import pytest

from serve_app.settings import ConfigurationError, Settings

PRODUCTION = {
    "API_KEY": "k",
    "SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "DATABASE_URL": "postgres://u:p@db/x",
    "PUBLIC_URL": "https://video.example/",
}
OURS = (
    *PRODUCTION,
    "WEBHOOK_SECRET",
    "WEBHOOK_SIGNING_SECRET",
    "LINK_SECRET",
    "CLUSTER_SECRET",
    "PORT",
    "R2_ENDPOINT",
    "R2_ACCESS_KEY",
    "R2_SECRET_KEY",
    "R2_BUCKET",
    "R2_PUBLIC_URL",
    "REDIS_URL",
    "API_WEBHOOK_URL",
    "CORS_ORIGINS",
    "ALLOW_NETWORKS",
    "MAX_IDLE_SECONDS",
    "LEASE_SECONDS",
    "ENVIRONMENT",
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIDEO_API_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def refusal(environment: str = "local") -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environment)
    return str(caught.value)


# -------------------------------------------------------------------- production


def test_production_runs_with_everything_set(production: pytest.MonkeyPatch) -> None:
    settings = Settings.load("production")
    assert settings.api_key.get_secret_value() == "k"
    assert settings.base_url == "https://video.example"
    assert settings.allow_networks == ()
    assert not settings.data_dir.exists(), "no secret is invented"


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_refuses_without(production: pytest.MonkeyPatch, name: str) -> None:
    for absent in (lambda: production.setenv(name, ""), lambda: production.delenv(name)):
        absent()
        message = refusal("production")
        assert name in message
        assert not any(other in message for other in PRODUCTION if other != name)


def test_production_names_everything_that_is_missing() -> None:
    message = refusal("production")
    assert all(name in message for name in PRODUCTION)
    assert "in production" in message


def test_a_bucket_needs_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ENDPOINT", "https://r2.example")
    monkeypatch.setenv("R2_ACCESS_KEY", "a")
    message = refusal()
    assert "R2_SECRET_KEY" in message
    assert "R2_ACCESS_KEY" not in message


def test_production_with_a_bucket_still_says_why_its_own_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ENDPOINT", "https://r2.example")
    message = refusal("production")
    assert all(name in message for name in (*PRODUCTION, "R2_ACCESS_KEY", "R2_SECRET_KEY"))
    assert "in production" in message
    assert "R2_ENDPOINT" in message


def test_no_secret_is_printed(production: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "SECRET_KEY", "WEBHOOK_SECRET", "LINK_SECRET", "CLUSTER_SECRET", "R2_SECRET_KEY"):
        production.setenv(name, "do-not-print" * 3)
    assert "do-not-print" not in repr(Settings.load("production"))
    production.setenv("PORT", "x")
    assert "do-not-print" not in refusal("production")


# -------------------------------------------------------------------- single variables


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_database_urls_name_our_driver(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p@db:5432/x?sslmode=require")
    assert Settings.load("local").database_url == "postgresql+psycopg://u:p@db:5432/x?sslmode=require"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://u:p@db/x"),
        ("DATABASE_URL", "postgresql+asyncpg://u:p@db/x"),
        ("PORT", "eighty"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("ALLOW_NETWORKS", "10.0.0.0/33"),
        ("ALLOW_NETWORKS", "10.0.0.0/8,home"),
        ("MAX_IDLE_SECONDS", "0"),
        ("LEASE_SECONDS", "1"),
        ("COMPLETED_RETENTION_HOURS", "-1"),
    ],
)
def test_a_malformed_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert f"{name}: " in refusal()


def test_several_malformed_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("ALLOW_NETWORKS", "y")
    message = refusal()
    assert "PORT: " in message
    assert "ALLOW_NETWORKS: " in message


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("ALLOW_NETWORKS", "10.0.0.0/8, fd00::/8")
    settings = Settings.load("local")
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.allow_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_cors_is_open_unless_told_otherwise() -> None:
    assert Settings.load("local").cors_origins == ("*",)


# -------------------------------------------------------------------- local


def test_a_laptop_needs_no_configuration(tmp_path: Path) -> None:
    settings = Settings.load("local")
    assert settings.base_url == "http://127.0.0.1:8000"
    assert ip_network("127.0.0.0/8") in settings.allow_networks
    assert len(settings.api_key.get_secret_value()) > 20
    assert len(settings.worker_secret) > 20
    assert (tmp_path / "data" / "secrets.json").stat().st_mode & 0o077 == 0
    again = Settings.load("local")
    assert (again.api_key, again.secret_key) == (settings.api_key, settings.secret_key)


def test_a_secret_that_is_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "mine")
    assert Settings.load("local").api_key.get_secret_value() == "mine"


# -------------------------------------------------------------------- secrets


def secrets_of(settings: Settings) -> dict[str, str]:
    """All that follow from the root."""
    return {
        "worker": settings.worker_secret,
        "links": settings.signing_key.hex(),
        "webhooks": settings.signing_secret,
        "keys": settings.hashing_key.hex(),
        "mesh": settings.mesh_secret.hex(),
        "ray": settings.ray_token,
    }


def test_every_secret_follows_from_the_root_and_none_from_another(production: pytest.MonkeyPatch) -> None:
    found = secrets_of(Settings.load("production"))
    production.setenv("SECRET_KEY", "another root of thirty-two bytes")
    other = secrets_of(Settings.load("production"))
    assert len({*found.values(), *other.values()}) == 2 * len(found)
    assert not any("another root" in secret for secret in other.values())


def test_what_outside_workers_are_given_opens_nothing_else(production: pytest.MonkeyPatch) -> None:
    """Once it was the root: from it alone one had Ray's token, the mesh's key and a link to every video."""
    before = secrets_of(Settings.load("production"))
    production.setenv("WEBHOOK_SECRET", "known to every worker")
    assert secrets_of(Settings.load("production")) == before | {"worker": "known to every worker"}


@pytest.mark.parametrize(
    ("variable", "value", "changed"),
    [
        ("WEBHOOK_SIGNING_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", {"webhooks"}),
        ("LINK_SECRET", "ab" * 32, {"links"}),
        ("KEY_SECRET", "cd" * 32, {"keys"}),
        ("CLUSTER_SECRET", "c" * 32, {"mesh", "ray"}),
    ],
)
def test_a_secret_that_is_given_replaces_its_own(
    production: pytest.MonkeyPatch, variable: str, value: str, changed: set[str]
) -> None:
    before = secrets_of(Settings.load("production"))
    production.setenv(variable, value)
    after = secrets_of(Settings.load("production"))
    assert {name for name in after if after[name] != before[name]} == changed


def test_without_a_root_the_old_one_holds_for_one_more_version(production: pytest.MonkeyPatch) -> None:
    assert Settings.load("production").deprecations == ()
    production.delenv("SECRET_KEY")
    production.setenv("WEBHOOK_SECRET", "s" * 32)
    settings = Settings.load("production")
    assert "SECRET_KEY" in settings.deprecations[0]
    assert settings.worker_secret == "s" * 32
    # Links and signatures that are out there were made like this.
    assert settings.signing_key == hmac.new(b"s" * 32, b"storage links", "sha256").digest()
    assert settings.ray_token == hmac.new(b"s" * 32, b"ray token", "sha256").hexdigest()


def test_a_root_is_not_short(production: pytest.MonkeyPatch) -> None:
    production.setenv("SECRET_KEY", "short")
    assert "SECRET_KEY: at least 32 characters" in refusal("production")


def test_what_the_head_starts_gets_what_it_needs_and_no_root(production: pytest.MonkeyPatch) -> None:
    given = {
        "REDIS_URL": "redis://:p@r",
        "CLUSTER_SECRET": "c" * 32,
        "VAST_API_KEY": "v",
        "R2_BUCKET": "b",
        "PORT": "1",
    }
    for name, value in given.items():
        production.setenv(name, value)
    settings = Settings.load("production")
    handed = settings.for_service("postgresql://role@db/x")
    assert not {"SECRET_KEY", "REDIS_URL", "CLUSTER_SECRET", "VAST_API_KEY"} & handed.keys()
    for name in (*given, *PRODUCTION):
        production.delenv(name, raising=False)
    for name, value in handed.items():
        production.setenv(name, value)
    service = Settings.load("production")
    assert (service.r2_bucket, service.port, service.base_url) == ("b", 1, settings.base_url)
    assert service.database_url == "postgresql+psycopg://role@db/x"
    shared = ("worker", "links", "webhooks", "keys")
    assert [secrets_of(service)[name] for name in shared] == [secrets_of(settings)[name] for name in shared]
    # What the service does not hold it cannot make, either.
    assert not {secrets_of(service)[name] for name in ("mesh", "ray")} & set(secrets_of(settings).values())
    assert service.deprecations == ()


def test_a_laptop_that_has_secrets_already_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secrets.json").write_text('{"api_key": "local-k", "webhook_secret": "w"}')
    settings = Settings.load("local")
    assert (settings.api_key.get_secret_value(), settings.worker_secret) == ("local-k", "w")
