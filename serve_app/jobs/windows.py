"""How many jobs of each deployment may be in flight on the Serve handle: that is what replicas are started for."""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.demand import demands
from serve_app.jobs.fleet_size import Capacity, machines, window
from serve_app.jobs.outlooks import Outlooks


class Windows:
    """As large as the work is worth where machines are rented for it, else as large as the deployment may become."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._outlooks = Outlooks(engine)

    async def of(self, capacities: Mapping[str, Capacity]) -> Mapping[str, int]:
        """By deployment."""
        outlooks = {name: each for name, each in (await self._outlooks.current()).items() if name in capacities}
        demand = await demands(self._engine, outlooks) if outlooks else {}
        windows = {}
        for name, capacity in capacities.items():
            target = capacity.most
            if (outlook := outlooks.get(name)) is not None:
                target = machines(
                    backlog=demand[name].backlog,
                    run_s=demand[name].run_s,
                    start_s=outlook.start_s,
                    running=capacity.running,
                    most=min(capacity.most, max(demand[name].at_once, 1)),
                )
                if outlook.condition is not None and not capacity.running:
                    # Nothing is rented. One wish is enough for the launcher to see that something should be.
                    target = 1
            windows[name] = window(target, capacity)
        return windows
