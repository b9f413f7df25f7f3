import pytest

#: Importing torch and what builds on it takes 10 s of computing: once for each of these folders, not in every worker.
HEAVY = ("ltx2", "wav2lip")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (folder := item.path.parent.name) in HEAVY:
            item.add_marker(pytest.mark.xdist_group(folder))


@pytest.fixture(autouse=True, scope="session")
def _groups_are_kept(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 ignores what xdist 3.8 makes of groups, and says nothing."""
    for item in request.session.items:
        group = item.get_closest_marker("xdist_group")
        if hasattr(request.config, "workerinput") and group is not None:
            assert item.nodeid.endswith(f"@{group.args[0]}"), (
                "xdist takes no notice of groups: another pytest is needed"
            )
