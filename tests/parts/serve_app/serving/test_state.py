"""What Serve says about a deployment, brought down to what anybody may read."""

import pytest

from serve_app.serving.state import reason_of

#: As Serve 2.60 said it: Ray wraps the exception in its own, with colours.
SERVE = """\
The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or initial health \
check failing. See controller logs for details. Error:
\x1b[36mray::ServeReplica:video-api:ltx2.initialize_and_get_metadata()\x1b[39m (pid=5255, ip=192.0.2.2, actor_id=09c9)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
  File "/srv/.venv/lib/python3.11/site-packages/ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/srv/.venv/lib/python3.11/site-packages/ray/serve/_private/replica.py", line 4008, in _call_func_or_gen
    result = callable(*args, **kwargs)
             ^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/deployments/replica.py", line 15, in __init__
    self._engine = MODELS[model].load_engine()
"""


def test_the_exception_is_told_without_its_traceback() -> None:
    said = SERVE + "FileNotFoundError: [Errno 2] No such file or directory: '/nonexistent/weights'"
    assert reason_of(said) == "FileNotFoundError: [Errno 2] No such file or directory: '/nonexistent/weights'"


def test_an_exception_of_several_lines_is_one_line() -> None:
    said = SERVE + (
        'RuntimeError: Error(s) in loading state_dict for LTX2:\n\tMissing key(s) in state_dict: "a.b".\n'
        "  size mismatch\n"
    )
    assert reason_of(said) == (
        'RuntimeError: Error(s) in loading state_dict for LTX2: Missing key(s) in state_dict: "a.b". size mismatch'
    )


def test_a_long_one_is_cut() -> None:
    reason = reason_of(SERVE + "ValueError: " + "x" * 5000)
    assert len(reason) == 300
    assert reason.endswith("x…")


def test_the_first_failure_is_told_too() -> None:
    said = "A replica failed to start with exception. Retrying 2 more time(s). Error:\nRuntimeError: no"
    assert reason_of(said) == "RuntimeError: no"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Upscaling from 0 to 1 replicas.",
        "A replica's health check failed. This deployment will be UNHEALTHY until the replica recovers.",
        "Deployment 'big' has 1 replicas that have taken more than 30s to be scheduled.",
    ],
)
def test_anything_else_is_no_reason(said: str) -> None:
    assert reason_of(said) is None
