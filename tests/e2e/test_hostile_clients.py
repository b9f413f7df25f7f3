"""What hostile clients can do to the real service: nothing that others notice. ``make bench-hostile`` has figures."""

import psutil

from tests.fakes.hostile_client import held, send_body
from tests.stack import Stack

MEGABYTE = 10**6


def api_process(stack: Stack) -> psutil.Process:
    (replica,) = stack.replicas("api")
    return psutil.Process(replica["pid"])


def test_a_hundred_megabytes_without_a_key_are_refused_unread(stack: Stack) -> None:
    api = api_process(stack)
    stack.http.get("/health").raise_for_status()
    before = api.memory_info().rss
    url = str(stack.http.base_url)
    for path in ("/api/v1/generate", "/webhook/complete"):
        refused = send_body(url, path, 100 * MEGABYTE)
        assert refused.status == 401
        assert refused.sent < 10 * MEGABYTE
        assert api.memory_info().rss - before < 10 * MEGABYTE
    # With a key it is too large, and as little of it is read.
    key = f"authorization: {stack.http.headers['authorization']}"
    assert send_body(url, "/api/v1/generate", 100 * MEGABYTE, [key]).status == 413
    assert api.memory_info().rss - before < 10 * MEGABYTE
    stack.http.get("/health").raise_for_status()


def test_two_thousand_half_sent_requests_are_nobody_s_business(stack: Stack) -> None:
    key = stack.http.headers["authorization"].removeprefix("Bearer ")
    with held(str(stack.http.base_url), 2000, 500, key):
        for _ in range(20):
            assert stack.http.get("/livez").status_code == 200
            answer = stack.http.get("/api/v1/jobs")
            assert answer.status_code == 200, answer.text
        job_id = stack.submit(prompt="in spite of all")
        assert stack.wait(job_id)["status"] == "completed"


def test_endless_headers_leave_the_service_alone(stack: Stack) -> None:
    pid = api_process(stack).pid
    for _ in range(3):
        refused = send_body(str(stack.http.base_url), "/health", 0, ["a: " + "x" * 10 * MEGABYTE])
        assert refused.status == 431
    assert stack.http.get("/livez").status_code == 200
    assert api_process(stack).pid == pid
