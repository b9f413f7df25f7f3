"""When a job may be done and what it may cost, of what the launcher says and the latest jobs have taken."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

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
    """Of a model for which machines are rented."""

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
    """Of all models, made once a second however many ask. For one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._made = Shared(lambda: forecasts(engine, MODELS), fresh_s=FRESH_S)

    async def of(self, model: str) -> Forecast | None:
        """None: no machines are rented for it."""
        return (await self._made.get()).get(model)

    async def unit_costs(self) -> Mapping[str, float]:
        """Dollars for a job whose effort is 1 on a machine that works anyway, by model; those for which no machines
        are rented are absent. Infinite where no price is known: nobody can say that it is within a budget."""
        costs = {model: forecast.cost_usd(1) for model, forecast in (await self._made.get()).items()}
        return {model: math.inf if cost is None else cost.low for model, cost in costs.items()}


async def forecasts(engine: AsyncEngine, models: Collection[str]) -> Mapping[str, Forecast]:
    """By model; those for which no machines are rented are absent."""
    outlooks = {model: each for model, each in (await Outlooks(engine).current()).items() if model in models}
    demand = await demands(engine, outlooks) if outlooks else {}
    return {model: Forecast(outlook, demand[model]) for model, outlook in outlooks.items()}
