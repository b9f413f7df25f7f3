"""Requests as the API's description shows them, sent as they stand: each is answered as it says."""

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

import httpx
import pytest

from deployments.contract import MediaKind
from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.api.examples import EXAMPLES, JOBS
from serve_app.api.schemas import JobView
from tests.parts.serve_app.api.conftest import WORKER_SECRET

#: As the API gives it; another test holds them equal.
DESCRIPTION = json.loads((Path(__file__).parents[4] / "docs" / "openapi.json").read_text())


class Operation(NamedTuple):
    name: str
    method: str
    path: str
    said: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        """What is said of its body, by content type."""
        return self.said.get("requestBody", {}).get("content", {})

    def parameters(self, place: str) -> dict[str, Any]:
        """The first example of each that has any; None of another."""
        found = (each for each in self.said.get("parameters", []) if each["in"] == place)
        return {each["name"]: each["schema"].get("examples", [None])[0] for each in found}

    @property
    def success(self) -> int:
        (status,) = (int(status) for status in self.said["responses"] if "200" <= status < "204")
        return status


OPERATIONS = [
    Operation(said["operationId"], method, path, said)
    for path, methods in DESCRIPTION["paths"].items()
    for method, said in methods.items()
]
BODIES = [
    pytest.param(operation, kind, example["value"], id=f"{operation.name}-{name}-{kind.rpartition('/')[2]}")
    for operation in OPERATIONS
    for kind, content in operation.content.items()
    for name, example in content["examples"].items()
]
QUESTIONS = [
    pytest.param(operation, id=operation.name)
    for operation in OPERATIONS
    if not operation.content and not operation.parameters("path") and operation.method == "get"
]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_shown_as_it_is_sent(name: str) -> None:
    value = JOBS[name]["value"]
    assert JobView.model_validate(value).model_dump(mode="json", exclude_none=True) == value
    assert value["stage"] in tuple(Stage)
    assert value.get("error_code") in (None, *FailureCode)


def test_every_body_is_shown() -> None:
    """A new route that takes one fails here until ``serve_app/api/examples.py`` has requests for it."""
    taken = {(kind, operation.name) for operation in OPERATIONS for kind in operation.content}
    assert {(kind, name) for kind, shown in EXAMPLES.items() for name in shown} == taken
    assert all(examples for shown in EXAMPLES.values() for examples in shown.values())


@pytest.mark.parametrize(("operation", "kind", "body"), BODIES)
async def test_a_body_is_taken(client: httpx.AsyncClient, operation: Operation, kind: str, body: Any) -> None:
    await prepare(client, operation, body)
    path = operation.path.format_map({name: await made(client, name) for name in operation.parameters("path")})
    headers = {"x-webhook-secret": WORKER_SECRET}
    answer = await client.request(operation.method, path, headers=headers, **sent(operation, kind, body))
    assert answer.status_code == operation.success, answer.text


@pytest.mark.parametrize("operation", QUESTIONS)
async def test_a_question_is_answered(client: httpx.AsyncClient, operation: Operation) -> None:
    asked = {name: example for name, example in operation.parameters("query").items() if example is not None}
    answer = await client.get(operation.path, params=asked)
    assert answer.status_code == operation.success, answer.text


def sent(operation: Operation, kind: str, body: Any) -> dict[str, Any]:
    if kind == "application/json":
        return {"json": body}
    files = binary(operation.content[kind]["schema"]) & body.keys()
    assert files, "a form that shows no file could as well be JSON"
    return {
        "data": {name: value for name, value in body.items() if name not in files},
        "files": {name: (body[name], b"a file") for name in files},
    }


def binary(schema: dict[str, Any]) -> set[str]:
    """Fields of a form that are files, of any of its alternatives."""
    if "$ref" in schema:
        return binary(DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    own = {name for name, field in schema.get("properties", {}).items() if field.get("format") == "binary"}
    return own.union(*(binary(each) for way in ("oneOf", "anyOf") for each in schema.get(way, ())))


async def prepare(client: httpx.AsyncClient, operation: Operation, body: Any) -> None:
    """Make what the body names."""
    if operation.name == "presign_upload" or not isinstance(body, dict):
        return
    for source in (value for value in body.values() if str(value).startswith("job:")):
        opened = {"job_id": source.removeprefix("job:"), "input_type": "image"}
        assert (await client.post("/api/v1/presign/upload", json=opened)).status_code == 200
        asked = {"model": "ltx2", "job_id": opened["job_id"], "image_url": None}
        assert (await client.post("/api/v1/generate", json=asked)).status_code == 201
    if "job_id" not in body:
        return
    for kind in get_args(MediaKind):
        ticket = await client.post("/api/v1/presign/upload", json={"job_id": body["job_id"], "input_type": kind})
        said = ticket.json()
        stored = await client.put(
            said["upload_url"], content=b"a file", headers={"content-type": said["content_type"], "authorization": ""}
        )
        assert stored.status_code == 200, stored.text
    if operation.name == "worker_report":
        asked = {"model": body["model"], "job_id": body["job_id"]}
        assert (await client.post("/api/v1/generate", json=asked)).status_code == 201


async def made(client: httpx.AsyncClient, name: str) -> str:
    """Something that a path can name."""
    match name:
        case "key_id":
            answer = await client.post("/api/v1/keys", json={"name": "of a test"})
            return answer.json()["key_id"]
        case "endpoint_id":
            answer = await client.post("/api/v1/webhooks", json={"url": "https://example.com/"})
            return answer.json()["id"]
    pytest.fail(f"say here how one has a {name}")
