"""When a job may be done and what it may cost, of what the launcher says and the latest jobs have taken."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import model_of
from deployments.registry import MODELS
from serve_app.jobs.demand import Demand, demands
from serve_app.jobs.fleet_size import Capacity, machines
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.shared import Shared

#: Seconds for which a forecast is shown to others.
FRESH_S = 1.0


@dataclass(frozen=True)
class CostRange:
    """Dollars: from a job among many on the cheapest machine to one for which the dearest is started."""

    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """Of a deployment for which machines are rented."""

    outlook: Outlook
    demand: Demand

    def cost_usd(self, effort: float) -> CostRange | None:
        """From a machine that works anyway to one that is started for it alone, and waits for another job as long as a
        start takes (configs/production.yaml says why). None: the launcher knows no price."""
        said, run_s = self.outlook, self.demand.unit_s * effort
        if said.usd_per_hour_low is None or said.usd_per_hour_high is None or said.start_usd is None:
            return None
        alone = said.start_usd + said.usd_per_hour_high * (run_s + said.start_s) / 3600
        return CostRange(low=said.usd_per_hour_low * run_s / 3600, high=alone)

    def eta_s(self, effort: float, ahead: int, capacity: Capacity | None) -> float | None:
        """Seconds until its video is done, with so many jobs ahead of it. None: nobody can say, e.g. since no machine
        works and none is rented."""
        if capacity is None:
            return None
        own_s = self.demand.unit_s * effort
        before_s = ahead * self.demand.run_s
        if capacity.running:
            return before_s / capacity.running + own_s
        if self.outlook.condition is not None:
            return None
        start_s = self.outlook.start_s
        coming = machines(backlog=ahead + 1, run_s=self.demand.run_s, start_s=start_s, running=0, most=capacity.most)
        return start_s + before_s / coming + own_s


class Forecasts:
    """Of all deployments, made once a second however many ask. For one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._made = Shared(lambda: forecasts(engine), fresh_s=FRESH_S)

    async def of(self, deployment: str) -> Forecast | None:
        """None: no machines are rented for it."""
        return (await self._made.get()).get(deployment)

    async def unit_costs(self) -> Mapping[str, float]:
        """Dollars for a job whose effort is 1 on a machine that works anyway, by deployment; those for which no
        machines are rented are absent. Infinite where no price is known: nobody can say that it is within a budget."""
        costs = {name: forecast.cost_usd(1) for name, forecast in (await self._made.get()).items()}
        return {name: math.inf if cost is None else cost.low for name, cost in costs.items()}


async def forecasts(engine: AsyncEngine) -> Mapping[str, Forecast]:
    """By deployment; those for which no machines are rented are absent."""
    known = await Outlooks(engine).current()
    outlooks = {name: each for name, each in known.items() if model_of(name) in MODELS}
    demand = await demands(engine, outlooks) if outlooks else {}
    return {name: Forecast(outlook, demand[name]) for name, outlook in outlooks.items()}
