"""Where the ``type`` of a problem leads, for every code that a client may be shown."""

from collections.abc import Iterator

import httpx
import pytest

from deployments.failure_code import FailureCode
from serve_app.api.errors import VideoApiError
from serve_app.api.server import REFUSALS
from serve_app.jobs.conditions import WaitCode

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def kinds(kind: type[VideoApiError] = VideoApiError) -> Iterator[type[VideoApiError]]:
    for below in kind.__subclasses__():
        yield below
        yield from kinds(below)


CODES = sorted({*(kind.code for kind in kinds()), *(refusal.code for refusal in REFUSALS), *FailureCode, *WaitCode})


@pytest.mark.parametrize("code", CODES)
async def test_every_code_has_a_page(anyone: httpx.AsyncClient, code: str) -> None:
    answer = await anyone.get(f"/errors/{code}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json()
    assert (body["code"], body["type"]) == (code, f"http://127.0.0.1:8000/errors/{code}")
    expected = {("http", kind.status) for kind in kinds() if kind.code == code}
    expected |= {("http", refusal.status) for refusal in REFUSALS if refusal.code == code}
    expected |= {("error_code", None)} if code in tuple(FailureCode) else set()
    expected |= {("wait_code", None)} if code in tuple(WaitCode) else set()
    assert {(meaning["place"], meaning.get("status")) for meaning in body["meanings"]} == expected
    assert all(meaning["detail"].endswith(".") for meaning in body["meanings"])
    page = await anyone.get(f"/errors/{code}", headers={"accept": BROWSER})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1><code>{code}</code></h1>" in page.text


async def test_the_list_has_them_all_once(anyone: httpx.AsyncClient) -> None:
    listed = (await anyone.get("/errors")).json()
    assert sorted(each["code"] for each in listed) == CODES
    page = (await anyone.get("/errors", headers={"accept": BROWSER})).text
    assert [code for code in CODES if f'href="/errors/{code}"' not in page] == []


async def test_the_type_of_a_problem_leads_to_its_page(anyone: httpx.AsyncClient) -> None:
    for refused in (await anyone.get("/api/v1/jobs"), await anyone.get("/nothing")):
        problem = refused.json()
        page = await anyone.get(problem["type"])
        assert page.json()["code"] == problem["code"]


async def test_no_code_is_no_page(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get("/errors/<script>", headers={"accept": BROWSER})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/html;q=0.5, application/json;q=0.1", True),
        ("text/html;q=0.5, application/json", False),
        ("text/html;q=x", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_people_get_html_and_programs_json(anyone: httpx.AsyncClient, accept: str, html: bool) -> None:
    answer = await anyone.get("/errors/not_found", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/html" if html else "application/json")
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert "accept" in answer.headers["vary"].split(", ")


async def test_a_page_needs_nothing_from_elsewhere(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get("/errors", headers={"accept": BROWSER})
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "src=" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
