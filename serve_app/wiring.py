"""The one place where the parts of a process of the service are put together, from its settings.

``app.py`` says which processes there are; ``cli/head.py`` puts the service and a cluster's head together.
"""

from collections.abc import Sequence
from functools import partial

from deployments.classes import Deployment
from serve_app.intake.inputs import Intake
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.database import CHANGES, connect, listen
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.dispatcher import Dispatcher
from serve_app.jobs.feed import Feed
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.orphans import Orphans
from serve_app.jobs.outlooks import Outlooks
from serve_app.jobs.readiness import Readiness
from serve_app.jobs.reads import JobReads
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from serve_app.jobs.windows import Windows
from serve_app.jobs.workers import Workers
from serve_app.outbound.base import Outbound
from serve_app.services import Services
from serve_app.serving.state import ClusterState
from serve_app.settings import Settings
from serve_app.storage.base import Storage
from serve_app.storage.local import LocalStorage
from serve_app.storage.s3 import S3Storage


def build_services(settings: Settings, cluster: ClusterState) -> Services:
    """What the API needs, and the dispatcher is built on."""
    engine = connect(settings.database_url)
    return Services(
        settings=settings,
        engine=engine,
        store=JobStore(engine, lease_s=settings.lease_seconds, webhook_url=settings.api_webhook_url),
        reads=JobReads(engine),
        watching=JobReads(engine),
        forecasts=Forecasts(engine),
        abilities=Abilities(engine),
        feed=Feed(partial(listen, settings.database_url, CHANGES)),
        storage=build_storage(settings),
        cluster=cluster,
    )


def build_storage(settings: Settings) -> Storage:
    """S3 or R2 when an endpoint is set, else files under the data directory."""
    if settings.r2_endpoint:
        return S3Storage(
            endpoint=settings.r2_endpoint,
            access_key=settings.r2_access_key.get_secret_value(),
            secret_key=settings.r2_secret_key.get_secret_value(),
            bucket=settings.r2_bucket,
            region=settings.r2_region,
            public_base=settings.r2_public_url,
        )
    return LocalStorage(settings.data_dir / "media", settings.base_url, settings.signing_key)


def build_dispatcher(
    settings: Settings, workers: Workers, cluster: ClusterState, outbound: Outbound, served: Sequence[Deployment]
) -> Dispatcher:
    """What runs jobs on ``workers``, of these deployments, and reaches strangers through ``outbound``."""
    services = build_services(settings, cluster)
    return Dispatcher(
        database_url=settings.database_url,
        store=services.store,
        storage=services.storage,
        intake=Intake(services.storage, outbound, settings.data_dir / "intake"),
        workers=workers,
        deliveries=Deliveries(services.engine, outbound, services.signing_secrets, services.result_url),
        retention=Retention(
            services.engine,
            services.storage,
            RetentionPolicy(
                completed_hours=settings.completed_retention_hours,
                completed_count=settings.completed_retention_count,
                failed_hours=settings.failed_retention_hours,
            ),
        ),
        orphans=Orphans(services.engine, services.storage),
        readiness=Readiness(services.conditions),
        windows=Windows(services.engine),
        outlooks=Outlooks(services.engine),
        abilities=services.abilities,
        deployments=served,
        lease_s=settings.lease_seconds,
    )
