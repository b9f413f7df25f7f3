"""Vast.ai: its market, its contracts and its bill. ``vast_server`` puts it on a port.

A contract's state is a function of its age and of what its machine was told to do with it (:class:`Scenario`), so it
runs on any clock: a real one, or one that a test moves.
"""

import itertools
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from cluster.vast.pacing import SystemClock

#: The account's.
KEY = "account-key-of-the-test"
#: Offers in an answer, whatever limit is asked for.
SEARCH_CAP = 64
LIST_CAP = 25
CHARGES_CAP = 100
#: Seconds between two requests that Vast's documentation wants, by endpoint.
PACING_S = {"search": 1.0, "rent": 4.5, "list": 1.0, "show": 1.0, "destroy": 3.0, "account": 1.0, "charges": 1.0}
_MONTH_S = 730 * 3600
_OPERATORS = {
    **{"eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge},
    **{"lt": operator.lt, "lte": operator.le},
    "in": lambda found, wanted: found in wanted,
    "notin": lambda found, wanted: found not in wanted,
}


class Hosts(Protocol):
    """Machines on which contracts' containers really run."""

    def begin(self, contract: "Contract") -> None: ...

    def end(self, contract: "Contract") -> None: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def now(self) -> datetime: ...


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What becomes of a contract on a machine. Seconds; ``after_s`` counts from when it runs (or would)."""

    pull_s: float = 0.0
    boot_s: float = 0.0
    #: Bytes of the image.
    pull_bytes: float = 0.0
    end: Literal["ok", "stuck_loading", "oci_error", "exits", "offline", "outbid"] = "ok"
    after_s: float = 0.0

    @property
    def ready_s(self) -> float:
        return self.pull_s + self.boot_s

    @property
    def ends_s(self) -> float:
        """When its end comes; what never comes is endless."""
        return self.ready_s + self.after_s if self.end in ("exits", "offline", "outbid") else float("inf")


OK = Scenario()


def offer(number: int, **changes: Any) -> dict[str, Any]:
    """A 4090 in a vetted datacenter; ``changes`` by the wire's names."""
    plain = {
        **{"id": number, "bundle_id": number + 5000, "machine_id": number + 1000, "host_id": number + 2000},
        **{"gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "gpu_total_ram": 24564, "gpu_frac": 0.25},
        **{"gpu_arch": "nvidia", "compute_cap": 890, "cuda_max_good": 13.0, "driver_version": "580.65.06"},
        **{"cpu_arch": "amd64", "cpu_cores": 64, "cpu_cores_effective": 16.0, "cpu_ram": 257000},
        **{"disk_space": 900.0, "disk_bw": 2400.0, "inet_up": 900.0, "inet_down": 1800.0},
        **{"inet_up_cost": 0.005, "inet_down_cost": 0.005, "storage_cost": 0.2, "dph_base": 0.357, "min_bid": 0.15},
        **{"is_bid": False, "reliability": 0.995, "verification": "verified", "hosting_type": 1, "static_ip": True},
        **{"direct_port_count": 200, "public_ipaddr": "192.0.2.7", "geolocation": "Iceland, IS", "score": 500.0},
        **{"duration": 20 * 86400.0, "end_date": 1.8e9, "dlperf": 100.0, "rentable": True, "rented": False},
        **{"vms_enabled": False, "external": False},
    }
    return {**plain, "ask_contract_id": number, **changes}


def a100(number: int, **changes: Any) -> dict[str, Any]:
    """One of 80 GB."""
    large = {"gpu_name": "A100 SXM4", "gpu_ram": 81920, "dph_base": 0.667, "min_bid": 0.4, "compute_cap": 800}
    return offer(number, **{**large, "inet_down": 5000.0, "cpu_ram": 1_000_000, "disk_space": 3000.0, **changes})


class Wrong(Exception):
    """An error as the API has it, before it takes one of its shapes."""

    def __init__(self, status: int, code: str, message: str, **extra: Any) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.extra = status, code, message, extra


@dataclass
class Contract:
    """An instance, from its rent on."""

    id: int
    offer: Mapping[str, Any]
    label: str
    body: Mapping[str, Any]
    scenario: Scenario
    begun: float
    #: The same, as the API shows it: in Unix time.
    start_date: float
    key: str
    is_bid: bool
    #: Dollars per hour for the GPUs, fixed.
    dph_base: float
    #: A bid that was too low.
    never_started: bool = False
    ended: float | None = None
    #: Beside the image's.
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    #: What is charged for it and was not to be expected.
    surcharge_usd: float = 0.0

    def age(self, now: float) -> float:
        return (now if self.ended is None else self.ended) - self.begun

    def state(self, now: float) -> tuple[str | None, str, str]:
        """Actual status, intended status, message."""
        age, plan = self.age(now), self.scenario
        if self.never_started:
            return "stopped", "stopped", ""
        if age < 1:
            return None, "running", ""
        if plan.end == "stuck_loading" or age < plan.pull_s:
            return "loading", "running", "a3ed95caeb02: Pull complete"
        if plan.end == "oci_error":
            message = "Error response from daemon: OCI runtime create failed: runc create failed"
            return "created", "running", message
        if age < plan.ready_s:
            return "loading", "running", "Status: Downloaded newer image"
        if age >= plan.ends_s:
            ends = {"exits": ("exited", "running"), "offline": ("offline", "running"), "outbid": ("stopped", "stopped")}
            return *ends[plan.end], ""
        return "running", "running", "success, running"

    def bill(self, now: float) -> dict[str, float]:
        """Dollars by meter. GPUs cost until nobody can use them; the disk until the contract ends."""
        age, disk = self.age(now), float(self.body["disk"])
        gpu_s = 0.0 if self.never_started else age
        if self.scenario.end in ("offline", "outbid"):
            gpu_s = min(gpu_s, self.scenario.ends_s)
        pulled = min(1.0, age / self.scenario.pull_s) if self.scenario.pull_s else 1.0
        down = self.bytes_down + (0.0 if self.never_started else pulled * self.scenario.pull_bytes)
        traffic = down * self.offer["inet_down_cost"] + self.bytes_up * self.offer["inet_up_cost"]
        return {
            "gpu": self.dph_base * gpu_s / 3600,
            "storage": disk * self.offer["storage_cost"] * age / _MONTH_S,
            "bandwidth": traffic / 1e9,
        }

    def charged(self, now: float) -> dict[str, Any]:
        """As the API shows its bill."""
        names = {"gpu": "gpu", "storage": "disk", "bandwidth": "bwd"}
        items = [
            {"type": names[meter], "source": None, "amount": round(usd, 3), "metadata": {}, "items": []}
            for meter, usd in self.bill(now).items()
        ]
        return {
            **{"start": self.start_date, "end": self.start_date + self.age(now), "type": "instance"},
            **{"source": f"instance-{self.id}", "description": f"Instance {self.id} Charges"},
            **{"amount": round(sum(self.bill(now).values()) + self.surcharge_usd, 3)},
            **{"metadata": {"label": self.label}, "items": items},
        }

    def record(self, now: float) -> dict[str, Any]:
        """As the API shows it."""
        actual, intended, message = self.state(now)
        storage = float(self.body["disk"]) * self.offer["storage_cost"] * 3600 / _MONTH_S
        kept = ("machine_id", "host_id", "gpu_name", "num_gpus", "gpu_ram", "geolocation", "storage_cost", "min_bid")
        return {
            **{name: self.offer[name] for name in kept},
            **{"id": self.id, "label": self.label, "is_bid": self.is_bid, "image_uuid": self.body["image"]},
            **{"actual_status": actual, "intended_status": intended, "cur_state": intended, "next_state": intended},
            **{"status_msg": message, "start_date": self.start_date, "dph_base": self.dph_base},
            **{"dph_total": self.dph_base + storage, "extra_env": [list(pair) for pair in self.body["env"].items()]},
        }


@dataclass(frozen=True)
class Violation:
    """Two requests that came too close to each other."""

    endpoint: str
    gap_s: float


@dataclass
class FakeVast:
    """What the API does; ``offers`` and the settings below are the test's."""

    offers: list[dict[str, Any]] = field(default_factory=list)
    clock: Clock = field(default_factory=SystemClock)
    #: By machine.
    scenarios: dict[int, Scenario] = field(default_factory=dict)
    #: Dollars that the account had at first.
    deposit: float = 25.0
    #: Searches left for today; None: without end.
    searches_left: int | None = None
    #: Seconds for which a fresh instance is in no list, and shown as null.
    list_omits_s: float = 0.0
    show_omits_s: float = 0.0
    #: The price of a bid is overlooked, as when its field has another name.
    overlooks_bids: bool = False
    #: Of the error for an ask that somebody has.
    gone_status: int = 410
    #: None: containers are imagined.
    hosts: Hosts | None = None
    contracts: dict[int, Contract] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    #: Requests by endpoint.
    asked: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(9001)
        self._last: dict[tuple[str, str], float] = {}

    @property
    def alive(self) -> list[Contract]:
        return [each for each in self.contracts.values() if each.ended is None]

    def bill(self) -> dict[int, dict[str, float]]:
        """Dollars by instance and meter, up to now."""
        now = self.clock.monotonic()
        return {number: contract.bill(now) for number, contract in self.contracts.items()}

    def credit(self) -> float:
        return self.deposit - sum(sum(meters.values()) for meters in self.bill().values())

    def arrive(self, endpoint: str, key: str) -> None:
        """A request is here: count it, and look whether it may be."""
        now = self.clock.monotonic()
        gap = now - self._last.get((endpoint, key), float("-inf"))
        self._last[endpoint, key] = now
        self.asked[endpoint] += 1
        # A clock's numbers do not add up to the last digit.
        if gap < PACING_S[endpoint] - 1e-6:
            self.violations.append(Violation(endpoint, gap))

    # ---------------------------------------------------------------- the calls

    def search(self, query: Mapping[str, Any]) -> dict[str, Any]:
        if self.searches_left is not None:
            if self.searches_left == 0:
                raise Wrong(429, "search_quota_exceeded", "daily search quota exceeded")
            self.searches_left -= 1
        conditions = dict(query)
        order = conditions.pop("order", [["score", "desc"]])
        kind = conditions.pop("type", "on-demand")
        limit = min(int(conditions.pop("limit", SEARCH_CAP)), SEARCH_CAP)
        storage = float(conditions.pop("allocated_storage", 5.0))
        found = [_priced(each, kind, storage) for each in self.offers]
        for name, condition in conditions.items():
            found = [each for each in found if _holds(each, name, condition)]
        for name, direction in reversed(order):
            found.sort(key=lambda each, name=name: each[name], reverse=direction == "desc")
        return {"offers": found[:limit]}

    def rent(self, ask: int, body: Mapping[str, Any]) -> dict[str, Any]:
        found = next((each for each in self.offers if each["id"] == ask), None)
        if found is None or found["rented"]:
            raise Wrong(self.gone_status, "no_such_ask", f"no_such_ask Instance type by id {ask} is not available.")
        if fault := _fault(body):
            raise Wrong(400, "invalid_args", fault)
        if self.credit() <= 0:
            raise Wrong(400, "insufficient_credit", "Your account lacks credit; see the billing page.")
        bid = None if self.overlooks_bids else body.get("price")
        number = next(self._numbers)
        contract = self.contracts[number] = Contract(
            id=number,
            offer=found,
            label=body.get("label", ""),
            body=body,
            scenario=self.scenarios.get(found["machine_id"], OK),
            begun=self.clock.monotonic(),
            start_date=self.clock.now().timestamp(),
            key=f"instance-key-{number}",
            is_bid=bid is not None,
            dph_base=found["dph_base"] if bid is None else float(bid),
        )
        found["rented"] = True
        if bid is not None and bid < found["min_bid"]:
            contract.never_started = True
            raise Wrong(400, "invalid_price", "bid is below the minimum", new_contract=number)
        if self.hosts is not None:
            self.hosts.begin(contract)
        return {"success": True, "new_contract": number, "instance_api_key": contract.key}

    def list(self, limit: int, after: int) -> dict[str, Any]:
        now = self.clock.monotonic()
        shown = [each for each in self.alive if now - each.begun >= self.list_omits_s]
        page = [each for each in shown if each.id > after][: min(limit, LIST_CAP)]
        more = bool(page) and page[-1].id < shown[-1].id
        return {
            **{"success": True, "instances": [each.record(now) for each in page], "instances_found": len(page)},
            **{"total_instances": len(shown), "label_counts": dict(Counter(each.label for each in shown))},
            "next_token": str(page[-1].id) if more else None,
        }

    def show(self, number: int) -> dict[str, Any]:
        now = self.clock.monotonic()
        contract = self.contracts.get(number)
        if contract is None:
            raise Wrong(404, "no_such_instance", f"Instance {number} not found.")
        hidden = contract.ended is not None or now - contract.begun < self.show_omits_s
        return {"instances": None if hidden else contract.record(now)}

    def destroy(self, number: int) -> dict[str, Any]:
        contract = self.contracts.get(number)
        if contract is None or contract.ended is not None:
            raise Wrong(404, "no_such_instance", f"Instance {number} not found.")
        contract.ended = self.clock.monotonic()
        contract.offer["rented"] = False
        if self.hosts is not None:
            self.hosts.end(contract)
        return {"success": True}

    def charges(self, filters: Mapping[str, Any], limit: int, after: int) -> dict[str, Any]:
        """A row for each contract: what its meters have counted, in thousandths of dollars. Days are whole ones."""
        day, kinds = filters.get("day", {}), filters.get("type", {}).get("in", ["instance"])
        if day.keys() != {"gte", "lte"} or kinds != ["instance"]:
            raise Wrong(400, "invalid_args", "select_filters: day.gte and day.lte are required")
        now = self.clock.monotonic()
        mine = [each for each in self.contracts.values() if day["gte"] <= each.start_date <= day["lte"]]
        page = [each for each in mine if each.id > after][: min(limit, CHARGES_CAP)]
        more = bool(page) and page[-1].id < mine[-1].id
        return {
            **{"success": True, "count": len(page), "total": len(mine)},
            **{"next_token": str(page[-1].id) if more else None, "results": [each.charged(now) for each in page]},
        }

    def account(self) -> dict[str, Any]:
        return {"id": 7, "email": "me@example.com", "credit": self.credit(), "balance": 0.0, "ssh_key": ""}


def _priced(each: Mapping[str, Any], kind: str, storage_gb: float) -> dict[str, Any]:
    storage = storage_gb * each["storage_cost"] * 3600 / _MONTH_S
    base = each["min_bid"] if kind == "bid" else each["dph_base"]
    prices = {"dph_base": base, "dph_total": base + storage, "storage_total_cost": storage}
    return {**each, **prices, "is_bid": kind == "bid"}


def _holds(each: Mapping[str, Any], name: str, condition: Mapping[str, Any]) -> bool:
    if name == "id":
        return False
    known = {**each, "verified": each["verification"] == "verified", "datacenter": each["hosting_type"] == 1}
    if name not in known or not condition or condition.keys() - _OPERATORS.keys():
        raise Wrong(400, "invalid_args", f"unknown condition on {name}")
    return all(_OPERATORS[word](known[name], value) for word, value in condition.items())


def _fault(body: Mapping[str, Any]) -> str:
    args, env = body.get("args", []), body.get("env", {})
    command = sum(map(len, args)) + len(body.get("onstart", ""))
    checks = {
        "client_id": body.get("client_id") == "me",
        "image": 0 < len(body.get("image", "")) <= 1024,
        "disk": body.get("disk", 0) >= 8,
        "label": len(body.get("label", "")) <= 256,
        "runtype": body.get("runtype") == "args",
        "args": command <= 4096,
        "env": isinstance(env, dict) and all(len(value) <= 256 for value in env.values()),
        "price": 0.001 <= body.get("price", 1) <= 128,
    }
    return ", ".join(name for name, fine in checks.items() if not fine)
