"""What ``/metrics`` says of rented machines, under the service's own role."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.jobs import fleet_metrics
from serve_app.jobs.conditions import EVERY_MODEL, Condition, Conditions
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.role import provide_role
from tests.parts.serve_app.jobs.samples import execute
from tests.parts.serve_app.jobs.test_schema import exposed

pytestmark = pytest.mark.own_database


@pytest.fixture
def service_url(database_url: str) -> Iterator[str]:
    url = provide_role(database_url, "a5" * 32)
    yield url
    with psycopg.connect(database_url.replace("+psycopg", "", 1), autocommit=True) as db:
        db.execute(f"DROP OWNED BY {make_url(url).username}")
        db.execute(f"DROP ROLE {make_url(url).username}")


async def test_the_service_may_see_sums_and_tells_them(service_url: str, engine: AsyncEngine) -> None:
    await execute(
        engine,
        """
        INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, stretch_at, begun_at,
                             instance, worked_at, ended_at, why)
        VALUES ('a', 'slot-1', 'gpu_a100', 'ended', now(), now(), '', 'host', now(), now(), '1',
                now() + interval '300 s', now(), 'dismissed'),
               ('b', 'slot-2', 'gpu_a100', 'ended', now(), now(), '', 'host', now(), now(), '2', NULL, now(), 'stuck'),
               ('c', 'slot-3', 'gpu_a100', 'idle', now(), now(), '', 'host', now(), now(), '3',
                now() + interval '100 s', NULL, NULL)
        """,
    )
    await execute(
        engine,
        """
        INSERT INTO node_costs VALUES
            ('a', now(), now() + interval '300 s', 'gpu_a100', 'loading', 0.1, 0.01, 0.2),
            ('a', now() + interval '300 s', now() + interval '900 s', 'gpu_a100', 'busy', 0.4, 0.04, 0),
            ('b', now(), now() + interval '100 s', 'gpu_a100', 'loading', 0.5, 0, 0)
        """,
    )
    await execute(
        engine,
        """
        INSERT INTO runs VALUES ('1', 1, now(), 'ltx2', 'slot-1', 1, now(), 300, 'retried'),
                                ('1', 2, now(), 'ltx2', 'slot-1', 1, now(), 100, 'completed'),
                                ('2', 1, now(), 'ltx2', 'slot-1', 1, now(), 100, 'failed')
        """,
    )
    service = create_async_engine(service_url)
    async with service.connect() as db:
        samples = exposed(list(await fleet_metrics.totals(db)))
    await service.dispose()
    a100 = ("node_type", "gpu_a100")
    assert samples["video_node_cost_usd_total", ("kind", "gpu"), a100] == pytest.approx(1.0)
    assert samples["video_node_cost_usd_total", ("kind", "storage"), a100] == pytest.approx(0.05)
    assert samples["video_node_cost_usd_total", ("kind", "bandwidth"), a100] == pytest.approx(0.2)
    assert samples["video_gpu_seconds_total", a100, ("state", "loading")] == 400
    assert samples["video_gpu_seconds_total", a100, ("state", "busy")] == 600
    assert samples["video_cold_start_seconds_sum", a100] == 400
    assert samples["video_cold_start_seconds_count", a100] == 2
    assert samples["video_job_cost_usd_total", ("model", "ltx2"), ("status", "completed")] == pytest.approx(0.6)
    assert samples["video_job_cost_usd_total", ("model", "ltx2"), ("status", "failed")] == pytest.approx(0.15)
    assert samples["video_unattributed_usd", a100] == pytest.approx(0.5)


async def test_what_stands_in_the_way_and_what_is_expected(service_url: str, engine: AsyncEngine) -> None:
    await Outlooks(engine).note("ltx2", Outlook(start_s=300, code="cap_reached", message="x", credit_usd=7.5))
    await Outlooks(engine).note("wav2lip", Outlook(start_s=90, usd_per_hour_low=0.2, usd_per_hour_high=0.4))
    await Conditions(engine).note(EVERY_MODEL, Condition("storage_unavailable", "full"))
    service = create_async_engine(service_url)
    async with service.connect() as db:
        samples = exposed(list(await fleet_metrics.collect(db)))
    await service.dispose()
    assert samples == {
        ("video_waits", ("code", "cap_reached"), ("model", "ltx2")): 1,
        ("video_waits", ("code", "storage_unavailable"), ("model", "")): 1,
        ("video_start_seconds", ("model", "ltx2")): 300,
        ("video_start_seconds", ("model", "wav2lip")): 90,
        ("video_usd_per_hour", ("bound", "low"), ("model", "wav2lip")): 0.2,
        ("video_usd_per_hour", ("bound", "high"), ("model", "wav2lip")): 0.4,
        ("video_credit_usd",): 7.5,
    }
