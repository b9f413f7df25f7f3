"""Durable jobs. PostgreSQL is the truth; a job's status changes in ``store.py`` and ``ending.py`` and nowhere else.

``job.py`` is the record, ``tables.py`` the schema (``migrations/``), ``database.py`` the way in, ``role.py`` the
service's own role. ``claim.py`` says whose job is next and leases it, ``rows.py`` reads and renews under a lease,
``retry.py`` whether there is another attempt, ``reports.py`` what a worker may say, ``tasks.py`` what it is sent.
``assignment.py`` says which deployment makes one, by ``abilities.py``; ``presence.py`` which are to be had.
``accepting.py`` puts new ones on disk, ``idempotency.py`` once for each key, ``quota.py`` within a key's limits;
``reads.py`` is how clients see one, ``batches.py`` how many are asked for together, ``feed.py`` who watches which.
``dispatcher.py`` runs all loops over ``workers.py``; ``readiness.py`` and ``conditions.py`` know why jobs wait,
``place.py`` behind how many, ``pace.py`` for how long; ``tally.py`` counts. ``fleet_size.py`` says how many machines
the work is worth, ``windows.py`` asks for them, by ``outlooks.py`` (the launcher's word) and ``demand.py``;
``forecast.py`` and ``costs.py`` tell times and dollars. ``owed.py``, ``webhook_event.py``, ``endpoints.py``,
``signing.py``, ``deliveries.py``, ``delivery_queue.py`` and ``delivery_log.py`` are webhooks, ``metrics.py`` and
``fleet_metrics.py`` the counters; ``retention.py`` and ``orphans.py`` delete. The rules in a list: ``docs/jobs.md``.
"""
