"""``video-api webhooks …`` against the real API over HTTP, and a real receiver."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from standardwebhooks import Webhook

from serve_app.jobs.deliveries import Deliveries
from serve_app.outbound.client import SafeClient
from tests.fakes.http_peer import HttpPeer
from tests.parts.serve_app.cli.invocation import Run, parsed
from tests.parts.serve_app.cli.live_service import LiveService
from tests.parts.serve_app.jobs.samples import execute


@pytest.fixture
def receiver() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


def deliver(service: LiveService) -> None:
    """Send all that is due, as the dispatcher would."""

    async def send() -> None:
        services = service.services
        async with SafeClient((ip_network("127.0.0.0/8"),)) as outbound:
            sender = Deliveries(services.engine, outbound, services.signing_secrets, services.result_url)
            for due in await sender.claim():
                await sender.send(due)

    service.do(send())


def test_a_webhook_is_made_tested_and_looked_into(run: Run, service: LiveService, receiver: HttpPeer) -> None:
    url = f"{receiver.url}/hook"
    made = parsed(run("webhooks", "create", url, "--event", "job.failed", "--event", "job.started", "--json"))
    assert (made["url"], made["events"]) == (url, ["job.started", "job.failed"])

    listed = run("webhooks", "list")
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[1].split() == [made["id"], "enabled", "started", "failed", url]

    sent = run("webhooks", "test", made["id"]).stdout.strip()
    deliver(service)
    posted = receiver.posted.get(timeout=30)
    assert Webhook(made["secret"]).verify(posted.body.decode(), posted.headers)["type"] == "test"

    (line, attempt) = run("webhooks", "deliveries", "--webhook", made["id"]).stdout.splitlines()
    assert line.split() == [sent, "delivered", "test", "-", url]
    assert " 204 " in attempt
    # What a receiver says is no order to a terminal.
    service.do(execute(service.services.engine, "UPDATE delivery_attempts SET answer = :said", said="a\x1b[2Jb\nc"))
    assert run("webhooks", "deliveries").stdout.splitlines()[1].endswith("ms  a [2Jb c")
    (found,) = parsed(run("webhooks", "deliveries", "--json"))
    assert (found["id"], found["attempts"][0]["status"]) == (sent, 204)

    again = run("webhooks", "redeliver", sent)
    assert again.stdout == f"{sent} is pending\n"
    deliver(service)
    assert receiver.posted.get(timeout=30).headers["webhook-id"] == sent


def test_a_webhook_is_changed_rotated_and_deleted(run: Run) -> None:
    made = parsed(run("webhooks", "create", "https://hooks.example/a", "--json"))
    assert made["secret"] in run("webhooks", "show", made["id"]).stdout
    changed = parsed(run("webhooks", "change", made["id"], "--to", "https://hooks.example/b", "--disable", "--json"))
    assert (changed["url"], changed["enabled"], changed["events"]) == ("https://hooks.example/b", False, made["events"])
    assert "disabled" in run("webhooks", "list").stdout
    assert parsed(run("webhooks", "change", made["id"], "--enable", "--json"))["enabled"]
    secrets = {made["secret"]}
    for words, span in ((("--overlap", "60"), timedelta(minutes=1)), (("--overlap", "2d"), timedelta(days=2))):
        rotated = parsed(run("webhooks", "rotate", made["id"], *words, "--json"))
        left = datetime.fromisoformat(rotated["previous_secret_until"]) - datetime.now(UTC)
        assert span / 2 < left <= span
        secrets.add(rotated["secret"])
    assert len(secrets) == 3
    assert run("webhooks", "delete", made["id"]).stdout == f"webhook {made['id']} is deleted\n"
    assert parsed(run("webhooks", "list", "--json")) == []


def test_the_secret_of_the_key_s_own_urls(run: Run, service: LiveService) -> None:
    assert run("webhooks", "secret").stdout.strip() == service.services.settings.signing_secret


def test_what_cannot_be_is_refused(run: Run) -> None:
    made = parsed(run("webhooks", "create", "https://hooks.example/a", "--json"))
    assert run("webhooks", "change", made["id"]).exit_code == 2
    unknown = run("webhooks", "show", f"whe_{0:032}")
    assert (unknown.exit_code, "webhook_not_found" in unknown.stderr) == (4, True)
    assert run("webhooks", "create", "ftp://x").exit_code == 4


def test_as_many_as_there_are_take_several_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.client.PAGE", 2)
    made = [parsed(run("webhooks", "create", f"https://h{n}.example/", "--json"))["id"] for n in range(5)]
    found = parsed(run("webhooks", "list", "--json"))
    assert [each["id"] for each in found] == made[::-1]
    assert len(parsed(run("webhooks", "list", "--limit", "3", "--json"))) == 3
