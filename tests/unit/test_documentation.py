"""What a newcomer reads agrees with the code."""

import re
from pathlib import Path

from deployments.registry import MODELS
from serve_app.errors import VideoApiError
from serve_app.jobs import conditions
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()


def variables() -> set[str]:
    """Every environment variable of the service; ``environment`` itself is set by the Serve YAML."""
    aliases = {name: str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}
    del aliases["environment"]
    return {*aliases.values(), *(spec.weights_variable for spec in MODELS.values())}


def test_every_variable_is_in_the_readme_and_the_example() -> None:
    assert {name for name in variables() if f"`{name}`" not in README} == set()
    assert {name for name in variables() if not re.search(rf"^#? ?{name}=", EXAMPLE, re.M)} == set()


def test_every_http_error_is_in_the_readme() -> None:
    kinds, codes = [VideoApiError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        codes.add(kind.code)
    assert {code for code in codes if f"`{code}`" not in README} == set()


def test_every_reason_to_wait_is_in_the_readme() -> None:
    codes = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str) and value}
    assert len(codes) == 4
    assert {code for code in codes if f"`{code}`" not in README} == set()


def test_every_code_that_fails_a_job_is_in_the_readme() -> None:
    sources = [*(ROOT / "deployments").rglob("*.py"), *(ROOT / "serve_app").rglob("*.py")]
    raised = re.compile(r"(?:Fault|IntakeError)\(\s*\"([a-z_]+)\"|code=\"([a-z_]+)\"")
    codes = {a or b for path in sources for a, b in raised.findall(path.read_text())}
    assert len(codes) > 10
    assert {code for code in codes if f"`{code}`" not in README} == set()
