"""What a newcomer reads agrees with the code."""

import re
from pathlib import Path

from deployments.failure_code import FailureCode
from deployments.media.formats import FORMATS
from deployments.registry import MODELS
from deployments.stage import Stage
from serve_app.api.errors import VideoApiError
from serve_app.api.server import REFUSALS
from serve_app.cli.renting import RentingSettings
from serve_app.cli.weights import weights_variable as weights_of
from serve_app.documentation import with_tables
from serve_app.jobs.conditions import WaitCode
from serve_app.jobs.job import Status
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
#: For whoever changes the code.
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE = (ROOT / ".env.example").read_text()


def variables() -> set[str]:
    """Every environment variable of the service, but what the Serve YAML and the launcher set; and of commands."""
    aliases = {name: str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}
    del aliases["environment"], aliases["ray_redis_address"]
    rented_by = {name.upper() for name in RentingSettings.model_fields}
    weights = {name for model, spec in MODELS.items() for name in (spec.weights_variable, weights_of(model))}
    return {*aliases.values(), *rented_by, *weights}


def test_every_variable_is_in_the_readme_and_the_example() -> None:
    assert {name for name in variables() if f"`{name}`" not in README} == set()
    assert {name for name in variables() if not re.search(rf"^#? ?{name}=", EXAMPLE, re.M)} == set()


def test_every_http_error_is_in_the_readme() -> None:
    kinds, there = [VideoApiError], {(int(each.status), each.code) for each in REFUSALS}
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        there.add((kind.status, kind.code))
    # That of what is no HTTP request has no row of its own: it is an invalid one.
    there -= {(400, "invalid_request")}
    said = set()
    for row in re.findall(r"^\| (\d{3}[\d, ]*) \| (`[^|]+) \|", README, re.M):
        statuses, codes = ([each.strip("` ") for each in cell.split(",")] for cell in row)
        # Several statuses have a code each, in that order.
        statuses = statuses if len(statuses) > 1 else statuses * len(codes)
        said |= {(int(status), code) for status, code in zip(statuses, codes, strict=True)}
    assert said == there


def test_tables_of_codes_are_those_of_the_code() -> None:
    """``make tables`` mends it."""
    assert with_tables(README) == README


def test_pages_name_tests_that_there_are() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    for page in PAGES:
        # A long name may be cut off by an ellipsis.
        for name, end in re.findall(r"\b(test_\w+)(\.py|…)?", page.read_text()):
            if end == ".py":
                assert f"{name}.py" in sources, f"{page.name}: {name}.py"
            else:
                called = re.compile(rf"def {name}{'' if end else chr(92) + 'b'}")
                assert any(called.search(text) for text in sources.values()), f"{page.name}: {name}"


def test_pages_name_files_and_pages_that_there_are() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for path in re.findall(r"`((?:serve_app|deployments|cluster|configs|docs|tests)/[\w./-]*\w\.\w+)`", text):
            # The example's are yet to be made.
            assert (ROOT / path).exists() or path.startswith("deployments/still/"), f"{page.name}: {path}"


def test_what_is_pasted_calls_the_port_that_is_listened_on() -> None:
    examples = (ROOT / "examples").glob("*.py")
    for page in [ROOT / "README.md", *PAGES, *examples]:
        ports = re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)", page.read_text())
        assert set(ports) <= {str(Settings.model_fields["port"].default)}, page.name


def test_decisions_have_one_shape() -> None:
    headings = ("Given", "Decided", "Instead", "Costs", "Measured", "Look again")
    for page in (ROOT / "docs" / "decisions").glob("0*.md"):
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]}: "), page.name
        found = re.findall(r"^## (.*)$", text, re.M)
        # Not for each something else was weighed, or anything measured.
        assert found == [name for name in headings if name in found], page.name
        assert {"Given", "Decided", "Costs", "Look again"} <= set(found), page.name


def test_configuration_names_files_that_there_are() -> None:
    for page in (*(ROOT / "configs").glob("*.yaml"), ROOT / "Dockerfile", ROOT / "railway.toml", ROOT / ".env.example"):
        for path in re.findall(
            r"\b((?:serve_app|deployments|cluster|docs|tests)/[\w./-]*\w\.(?:py|md|json))", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_a_node_can_say_where_each_model_s_weights_are() -> None:
    """``node join`` makes ``X_MODEL_PATH`` of ``X_WEIGHTS``."""
    assert [spec.name for spec in MODELS.values() if not spec.weights_variable.endswith("_MODEL_PATH")] == []


def test_the_page_of_formats_has_all_that_are_taken() -> None:
    page = (ROOT / "docs" / "media.md").read_text()
    for kind, called in (("image", "pictures"), ("video", "videos"), ("audio", "sound")):
        (row,) = re.findall(rf"^\| {called} \| ([^|]+) \|", page, re.M)
        names = {format.name.removeprefix("animated ") for format in FORMATS if format.kind == kind}
        assert {name for name in names if name not in row} == set(), row


def test_every_code_and_stage_is_explained_and_used() -> None:
    product = [path.read_text() for package in ("deployments", "serve_app") for path in (ROOT / package).rglob("*.py")]
    for member in (*FailureCode, *Stage, *WaitCode):
        assert member.meaning.endswith("."), member
        # A stage may also be the end of a job, which is the status.
        kind = type(member).__name__
        used = re.compile(rf"\b{kind}\.{member.name}\b")
        assert member in tuple(Status) or any(used.search(text) for text in product), member
