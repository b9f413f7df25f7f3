"""Who may ask for what, and that a key sees nothing of another's: for every operation that there is, by the schema."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access.caller import Scope
from serve_app.services import Services
from tests.parts.serve_app.jobs.samples import completed, fetch, running, waiting

WithKey = Callable[..., Awaitable[httpx.AsyncClient]]

#: What strangers may ask for, or ask with something else than a key. A new one is put here on purpose or not at all.
WITHOUT_KEY = {
    *("livez", "health", "metrics", "list_errors", "explain_error"),
    *("read_file", "stat_file", "write_file", "worker_report"),
}
UNKNOWN = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"
#: Bodies that fit, by operation: where a body is checked first, nothing is learnt of who may send it.
BODIES: Mapping[str, Mapping[str, Any]] = {
    "generate": {"model": "ltx2", "image_url": "https://pictures.example/a.png"},
    "presign_upload": {"input_type": "image"},
    "create_key": {"name": "another"},
    "rotate_key": {},
    "create_webhook": {"url": "https://hooks.example/"},
    "change_webhook": {"enabled": True},
    "create_openai_video": {"prompt": "A storm"},
}
#: Ids of nothing, by the path's parameter, where they have another form.
UNKNOWNS = {"endpoint_id": f"whe_{0:032}", "delivery_id": f"msg_{0:032}", "model": "ltx2"}
QUERIES: Mapping[str, Mapping[str, str]] = {"estimate": {"model": "ltx2"}}


@dataclass(frozen=True)
class Operation:
    name: str
    method: str
    path: str
    #: None: it asks for no key.
    scope: Scope | None
    documented: frozenset[str]

    async def ask(self, client: httpx.AsyncClient, ids: str = UNKNOWN) -> httpx.Response:
        path = re.sub(r"\{([a-z_]+)\}", lambda found: UNKNOWNS.get(found[1], ids), self.path)
        return await client.request(self.method, path, json=BODIES.get(self.name), params=QUERIES.get(self.name))


@pytest.fixture
async def operations(anyone: httpx.AsyncClient) -> Sequence[Operation]:
    schema = (await anyone.get("/openapi.json")).json()
    found = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            wanted = [scope for way in operation.get("security", []) for scope in way.get("HTTPBearer", [])]
            assert len(wanted) <= 1, f"{operation['operationId']} wants several scopes"
            scope = Scope(wanted[0]) if wanted else None
            answers = frozenset(operation["responses"])
            found.append(Operation(operation["operationId"], method.upper(), path, scope, answers))
    return found


@pytest.fixture
async def clients(anyone: httpx.AsyncClient, with_key: WithKey) -> Mapping[str, httpx.AsyncClient]:
    """By what they have shown."""
    found = {scope.value: await with_key(scopes=[scope]) for scope in Scope}
    revoked, expired = await with_key(scopes=["admin"]), await with_key(scopes=["admin"], expires_in=0.001)
    answer = await found["admin"].post(f"/api/v1/keys/{revoked.headers['x-key-id']}/revoke")
    assert answer.status_code == 200
    return {**found, "none": anyone, "revoked": revoked, "expired": expired}


def test_scopes_are_those_that_are_known() -> None:
    """The table below says what each opens."""
    assert {scope.value for scope in Scope} == {"generate", "read", "admin"}


async def test_every_operation_says_who_may_ask(operations: Sequence[Operation]) -> None:
    """A new route without a scope fails here."""
    assert {each.name for each in operations if each.scope is None} == WITHOUT_KEY
    for each in operations:
        if each.scope is not None:
            assert {"401", "403", "429"} <= each.documented, each.name


async def test_every_operation_takes_the_scope_that_it_says_and_no_other(
    operations: Sequence[Operation], clients: Mapping[str, httpx.AsyncClient]
) -> None:
    asked = 0
    for each in operations:
        if each.scope is None:
            continue
        for shown, client in clients.items():
            answer = await each.ask(client)
            said = (each.name, shown, answer.status_code)
            asked += 1
            if shown in ("none", "revoked", "expired"):
                assert answer.status_code == 401, said
            elif shown in (each.scope, Scope.ADMIN):
                assert answer.status_code not in (401, 403, 422), said
            else:
                assert answer.status_code == 403, said
                # It says which scope would do.
                assert f"`{each.scope}`" in answer.json()["detail"], said
    assert asked >= 15 * len(clients)


async def test_a_key_opens_nothing_that_is_for_workers(
    operations: Sequence[Operation], clients: Mapping[str, httpx.AsyncClient]
) -> None:
    (report,) = (each for each in operations if each.name == "worker_report")
    for client in clients.values():
        assert (await report.ask(client)).status_code == 401


# -------------------------------------------------------------------- of others


@pytest.fixture
async def ann(with_key: WithKey) -> httpx.AsyncClient:
    return await with_key(name="ann")


@pytest.fixture
async def bob(with_key: WithKey) -> httpx.AsyncClient:
    return await with_key(name="bob")


@pytest.fixture
async def jobs_of_ann(ann: httpx.AsyncClient, services: Services) -> Mapping[str, str]:
    """Her jobs, by what is with them."""
    mine: dict[str, Any] = {"key_id": ann.headers["x-key-id"], "user_id": "her user"}
    opened = await ann.post("/api/v1/presign/upload", json={"input_type": "image"})
    return {
        "completed": await completed(services.store, **mine),
        "processing": (await running(services.store, **mine)).job_id,
        "queued": (await waiting(services.store, **mine)).id,
        "uploading": opened.json()["job_id"],
    }


def without_ids(answer: httpx.Response, job_id: str) -> tuple[int, Any]:
    body = json.loads(answer.text.replace(job_id, "ID")) if answer.content else None
    if isinstance(body, dict):
        body.pop("request_id", None)
    return answer.status_code, body


@pytest.mark.parametrize("state", ["completed", "processing", "queued", "uploading"])
async def test_another_keys_job_is_as_one_that_is_not_there(
    operations: Sequence[Operation],
    jobs_of_ann: Mapping[str, str],
    ann: httpx.AsyncClient,
    bob: httpx.AsyncClient,
    engine: AsyncEngine,
    state: str,
) -> None:
    job_id = jobs_of_ann[state]
    before = await fetch(engine, "SELECT * FROM jobs ORDER BY id")
    ids = ("{job_id}", "{video_id}")
    asked = [
        each for each in operations if any(name in each.path for name in ids) and each.scope not in (None, Scope.ADMIN)
    ]
    assert len(asked) >= 8
    for each in asked:
        answer = without_ids(await each.ask(bob, job_id), job_id)
        assert answer[0] == 404, (each.name, answer)
        assert answer == without_ids(await each.ask(bob, UNKNOWN), UNKNOWN), each.name
    assert await fetch(engine, "SELECT * FROM jobs ORDER BY id") == before
    assert (await ann.get(f"/api/v1/jobs/{job_id}")).status_code == 200


async def test_a_list_has_ones_own_jobs(
    jobs_of_ann: Mapping[str, str], ann: httpx.AsyncClient, bob: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    of_bob = (await bob.post("/api/v1/generate", json=dict(BODIES["generate"]))).json()["job_id"]

    async def listed(who: httpx.AsyncClient, **query: str) -> set[str]:
        return {job["job_id"] for job in (await who.get("/api/v1/jobs", params=query)).json()["data"]}

    assert await listed(ann) == set(jobs_of_ann.values())
    assert await listed(bob) == {of_bob}
    assert await listed(client) == {of_bob, *jobs_of_ann.values()}
    for query in ({"user_id": "her user"}, {"status": "completed"}, {"status": "uploading"}):
        assert await listed(ann, **query)
        assert await listed(bob, **query) == set()
    after = await bob.get("/api/v1/jobs", params={"after": jobs_of_ann["queued"]})
    unknown = await bob.get("/api/v1/jobs", params={"after": UNKNOWN})
    assert without_ids(after, "-") == without_ids(unknown, "-")
    assert after.status_code == 404


async def test_another_keys_upload_is_not_submitted_nor_written_to(
    jobs_of_ann: Mapping[str, str], bob: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    before = await fetch(engine, "SELECT * FROM jobs ORDER BY id")
    for state in jobs_of_ann:
        job_id = jobs_of_ann[state]
        submitted = await bob.post("/api/v1/generate", json={**BODIES["generate"], "job_id": job_id})
        unknown = await bob.post("/api/v1/generate", json={**BODIES["generate"], "job_id": UNKNOWN})
        assert without_ids(submitted, job_id) == without_ids(unknown, UNKNOWN)
        assert submitted.status_code == 404
        # Ids are the client's choice, so this one is taken; it has no link.
        opened = await bob.post("/api/v1/presign/upload", json={"input_type": "image", "job_id": job_id})
        assert (opened.status_code, opened.json()["code"]) == (409, "job_id_used")
        assert "upload_url" not in opened.text
    assert await fetch(engine, "SELECT * FROM jobs ORDER BY id") == before


async def test_an_admin_sees_and_touches_the_jobs_of_all(
    jobs_of_ann: Mapping[str, str], with_key: WithKey, client: httpx.AsyncClient
) -> None:
    for admin in (client, await with_key(scopes=["admin"])):
        for job_id in jobs_of_ann.values():
            assert (await admin.get(f"/api/v1/jobs/{job_id}")).status_code == 200
    assert (await client.post(f"/api/v1/jobs/{jobs_of_ann['queued']}/cancel")).json()["status"] == "cancelled"


async def test_jobs_stay_with_the_key_when_it_is_rotated_and_go_on_when_it_is_revoked(
    jobs_of_ann: Mapping[str, str], ann: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    key_id = ann.headers["x-key-id"]
    rotated = (await client.post(f"/api/v1/keys/{key_id}/rotate", json={})).json()
    assert (await ann.get("/api/v1/jobs")).status_code == 401
    ann.headers["authorization"] = f"Bearer {rotated['secret']}"
    assert {job["job_id"] for job in (await ann.get("/api/v1/jobs")).json()["data"]} == set(jobs_of_ann.values())
    assert (await client.post(f"/api/v1/keys/{key_id}/revoke")).status_code == 200
    assert (await ann.get("/api/v1/jobs")).status_code == 401
    assert (await client.get(f"/api/v1/jobs/{jobs_of_ann['queued']}")).json()["status"] == "queued"
