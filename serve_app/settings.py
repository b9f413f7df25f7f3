"""Configuration: read once from the environment, checked at start, passed on as one frozen object."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Environment = Literal["local", "production"]

#: Characters of a secret that others follow from.
LEAST_SECRET = 32


class ConfigurationError(Exception):
    """The environment does not make a runnable service; the message names each variable at fault."""


class Settings(BaseSettings):
    """Field names are the environment variables, in lower case."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    environment: Environment = "local"
    data_dir: Path = Field(Path(".data"), validation_alias="VIDEO_API_DATA_DIR")
    port: int = Field(8000, ge=1, le=65535)
    #: How clients and GPU nodes reach this API; used in URLs of the local store.
    public_url: str = ""

    api_key: SecretStr = SecretStr("")
    #: The root that the secrets below follow from where they are not given. Nobody else ever gets to see it.
    secret_key: SecretStr = SecretStr("")
    #: What workers outside the cluster show.
    webhook_secret: SecretStr = SecretStr("")
    #: What receivers verify webhooks with (Standard Webhooks form, ``whsec_…``).
    webhook_signing_secret: SecretStr = SecretStr("")
    #: What the secrets of keys and of webhook endpoints follow from, in hex.
    webhook_root: SecretStr = SecretStr("")
    #: Key of the local store's links.
    link_secret: SecretStr = SecretStr("")
    #: What API keys are hashed with.
    key_secret: SecretStr = SecretStr("")
    #: Ray's token and the mesh's certificate follow from it.
    cluster_secret: SecretStr = SecretStr("")
    database_url: str = ""
    redis_url: str = ""
    #: Where Ray on this head keeps its state, without the password: the launcher tells Ray, and so whoever runs on it.
    ray_redis_address: str = ""

    r2_endpoint: str = ""
    r2_access_key: SecretStr = SecretStr("")
    r2_secret_key: SecretStr = SecretStr("")
    r2_bucket: str = "video-api-storage"
    r2_public_url: str = ""
    #: R2 takes any; AWS wants the bucket's.
    r2_region: str = "auto"

    api_webhook_url: str = ""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)
    #: Networks outside the public internet that inputs and webhooks may come from and go to.
    allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()

    #: In production a model without weights is refused; its videos would be noise. True lets it run, for tests.
    allow_random_weights: bool = False

    #: A replica without work for this long is stopped. Unset: as the Serve YAML has it for its model.
    max_idle_seconds: int | None = Field(None, ge=1)

    completed_retention_hours: float = Field(24, gt=0)
    completed_retention_count: int = Field(1000, ge=1)
    failed_retention_hours: float = Field(24 * 7, gt=0)
    #: In production a worker may be cut off for a minute and must still have its job afterwards.
    lease_seconds: float = Field(
        default_factory=lambda known: 180 if known.get("environment") == "production" else 30, ge=2
    )
    #: The one TCP port of the head that GPU nodes dial.
    mesh_port: int = Field(2222, ge=1, le=65535)

    @field_validator("cors_origins", "allow_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _psycopg(cls, value: str) -> str:
        # Railway and Heroku hand out the short scheme; SQLAlchemy wants the driver named.
        for scheme in ("postgres://", "postgresql://"):
            if value.startswith(scheme):
                return "postgresql+psycopg://" + value.removeprefix(scheme)
        if value and not value.startswith("postgresql+psycopg://"):
            raise ValueError("must be a postgresql:// URL")
        return value

    @field_validator("public_url", "r2_endpoint", "r2_public_url", "api_webhook_url", "redis_url")
    @classmethod
    def _url(cls, value: str, info: ValidationInfo) -> str:
        schemes = ("redis", "rediss") if info.field_name == "redis_url" else ("http", "https")
        parts = urlsplit(value)
        if value and (parts.scheme not in schemes or not parts.hostname):
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        faults = []
        if self.environment == "production":
            required = ["api_key", "database_url", "public_url"]
            # Until the next version WEBHOOK_SECRET may be the root; and what the head starts is given all but the root.
            if not self._is_set("webhook_secret"):
                required.append("secret_key")
            faults += [f"{name.upper()}: required in production" for name in required if not self._is_set(name)]
        if 0 < len(self.secret_key.get_secret_value()) < LEAST_SECRET:
            faults.append(f"SECRET_KEY: at least {LEAST_SECRET} characters, e.g. of `openssl rand -hex 32`")
        if self.r2_endpoint:
            keys = ("r2_access_key", "r2_secret_key")
            faults += [f"{name.upper()}: required with R2_ENDPOINT" for name in keys if not self._is_set(name)]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _is_set(self, name: str) -> bool:
        value = getattr(self, name)
        return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)

    @classmethod
    def load(cls, environment: Environment) -> "Settings":
        """Read the environment. In ``local`` mode what is secret and unset is invented once and kept in ``data_dir``.

        Raises:
            ConfigurationError: naming every variable that is missing or malformed.
        """
        settings = cls.read(environment)
        if environment == "production":
            return settings
        return settings.model_copy(update=_local_defaults(settings))

    @classmethod
    def read(cls, environment: Environment) -> "Settings":
        """The same, inventing and writing nothing: for a command that needs none of the secrets.

        Raises:
            ConfigurationError: naming every variable that is missing or malformed.
        """
        try:
            return cls(environment=environment)
        except ValidationError as error:
            raise ConfigurationError(_explain(error)) from None

    @property
    def deprecations(self) -> tuple[str, ...]:
        """What works for the last time in this version; for whoever starts the service to say."""
        old_root = not self._is_set("secret_key") and not self._is_set("link_secret")
        return ("SECRET_KEY is not set: the next version derives nothing of WEBHOOK_SECRET",) if old_root else ()

    @property
    def base_url(self) -> str:
        return self.public_url.rstrip("/") or f"http://127.0.0.1:{self.port}"

    @property
    def worker_secret(self) -> str:
        """What workers outside the cluster show in ``X-Webhook-Secret``."""
        return self.webhook_secret.get_secret_value() or self._derive("worker secret").hex()

    @property
    def signing_key(self) -> bytes:
        """Key of the local store's links."""
        given = self.link_secret.get_secret_value()
        return bytes.fromhex(given) if given else self._derive("storage links")

    @property
    def hashing_key(self) -> bytes:
        """What API keys are hashed with: with another one, none of them is known any more."""
        given = self.key_secret.get_secret_value()
        return bytes.fromhex(given) if given else self._derive("api keys")

    @property
    def signing_secret(self) -> str:
        """What ``API_WEBHOOK_URL``, and receivers of the jobs of ``API_KEY``, verify webhooks with. Who has it can
        neither pose as a worker nor make another key's."""
        given = self.webhook_signing_secret.get_secret_value()
        return given or "whsec_" + base64.b64encode(self._derive("webhook signatures")).decode()

    @property
    def signing_root(self) -> bytes:
        """What the secrets of single receivers follow from (``jobs/signing.py``). No receiver ever gets to see it."""
        given = self.webhook_root.get_secret_value()
        return bytes.fromhex(given) if given else self._derive("webhook endpoints")

    @property
    def mesh_secret(self) -> bytes:
        """What the mesh's certificate follows from: a head needs no disk to stay the same to its nodes."""
        return self._derive("mesh", self.cluster_secret)

    @property
    def ray_token(self) -> str:
        """What every process of the Ray cluster shows to the others."""
        return self._derive("ray token", self.cluster_secret).hex()

    @property
    def fleet_prefix(self) -> str:
        """What the labels of rented machines begin with: what has it and is nobody's is destroyed, so no other
        deployment may have it, though it may use the same account."""
        return f"va{self._derive('fleet', self.cluster_secret).hex()[:10]}"

    def _derive(self, purpose: str, root: SecretStr | None = None) -> bytes:
        key = (root and root.get_secret_value()) or self.secret_key.get_secret_value()
        # As in the versions without SECRET_KEY: what was handed out then still holds.
        key = key or self.webhook_secret.get_secret_value()
        return hmac.new(key.encode(), purpose.encode(), hashlib.sha256).digest()

    def for_service(self, database_url: str) -> dict[str, str]:
        """The variables that ``Api`` and ``Dispatcher`` need in another process: everything that is set, and of the
        secrets what they use but not what it follows from."""
        kept = {
            name: os.environ[variable]
            for name in type(self).model_fields
            if name not in _OF_THE_LAUNCHER and (variable := _variable(name)) in os.environ
        }
        return {_variable(name): value for name, value in kept.items()} | {
            "DATABASE_URL": database_url,
            "API_KEY": self.api_key.get_secret_value(),
            "WEBHOOK_SECRET": self.worker_secret,
            "WEBHOOK_SIGNING_SECRET": self.signing_secret,
            "WEBHOOK_ROOT": self.signing_root.hex(),
            "LINK_SECRET": self.signing_key.hex(),
            "KEY_SECRET": self.hashing_key.hex(),
        }


#: Fields that nobody but the launcher of a head has a use for.
_OF_THE_LAUNCHER = frozenset({"environment", "secret_key", "cluster_secret", "redis_url", "mesh_port"})


def _variable(field: str) -> str:
    return str(Settings.model_fields[field].validation_alias or field).upper()


def _local_defaults(settings: Settings) -> dict[str, object]:
    """A laptop needs no configuration: secrets are made up, loopback is allowed."""
    update: dict[str, object] = {}
    if not settings.allow_networks:
        update["allow_networks"] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    unset = [name for name in ("api_key", "secret_key") if not getattr(settings, name).get_secret_value()]
    if unset:
        invented = _invented_secrets(settings.data_dir)
        update |= {name: SecretStr(invented[name]) for name in unset if name in invented}
        if "secret_key" not in invented and not settings.webhook_secret.get_secret_value():
            # Written by an earlier version.
            update["webhook_secret"] = SecretStr(invented["webhook_secret"])
    return update


def _invented_secrets(data_dir: Path) -> dict[str, str]:
    """Made once and shared by every process of the local service."""
    path = data_dir / "secrets.json"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        draft = data_dir / f"secrets.{os.getpid()}.{secrets.token_hex(4)}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump({"api_key": "local-" + secrets.token_urlsafe(24), "secret_key": secrets.token_hex(32)}, out)
        # link() fails where another process was first; theirs counts then.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    with open(path) as saved:
        loaded: dict[str, str] = json.load(saved)
    return loaded


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        if item["type"] == "default_factory_not_called":
            # Only says that another variable is at fault.
            continue
        name = str(item["loc"][0]).upper() if item["loc"] else ""
        lines.append(f"{name}: {item['msg']}" if name else str(item["msg"]).removeprefix("Value error, "))
    return "configuration: " + "; ".join(lines)
