"""A stage's part of the plan: lines of a result and its formula, and the totals that go into the last table."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from jobs.capacity.terms import Term, count, digits, measured, share, show_hours, unknown
from jobs.recipe import Recipe

REACHED = share(0.8)
"""Share of a network's nominal speed that large transfers reach, as `train.scaling` assumes too."""
BUSY = 0.5
"""Share of a limit of requests above which the plan warns."""

Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A number of the plan."""

    label: str
    result: str
    formula: str


@dataclass(frozen=True)
class Machines:
    """Of a stage, as terms; none of them is known where the recipe names no machines."""

    title: str
    nodes: Term
    cores: Term
    devices: Term
    """What trains: GPUs, or cores where there are none."""
    bytes_per_s: Term
    """That all nodes together can send, or receive."""
    price_per_hour: float | None
    price_key: str


def machines_of(recipe: Recipe, stage: str) -> Machines:
    """The machines that the recipe gives to a stage."""
    group = {str(name): one for name, one in recipe.capacity.stages.items()}.get(stage)
    if group is None:
        none = unknown(f"machines of {stage}", f"capacity.stages.{stage}, of capacity.node_types")
        return Machines("machines not known", none, none, none, none, None, "")
    spec, nodes = recipe.capacity.node_types[group.node], count(group.nodes, "nodes" if group.nodes > 1 else "node")
    gbit = spec.network_gbit_per_s
    gpus = f"{spec.gpus} GPUs, " if spec.gpus else ""
    price = "no price given" if spec.price_per_hour is None else f"{spec.price_per_hour:g} {recipe.capacity.currency}/h"
    return Machines(
        f"{group.nodes:,} × {group.node} ({spec.cores} cores, {gpus}{gbit:g} Gbit/s, {price})",
        nodes,
        count(spec.cores, "cores") * nodes,
        count(spec.gpus or spec.cores, "GPUs" if spec.gpus else "cores") * nodes,
        Term(gbit * 1e9 / 8, f"{gbit:g} Gbit/s") * REACHED * nodes,
        spec.price_per_hour,
        f"node_types.{group.node}.price_per_hour",
    )


@dataclass(frozen=True)
class Folder:
    """Keys that begin alike, and what the store allows there."""

    name: str
    per_s: float
    """Requests of one kind, for each key range."""
    ranges: int = 1
    """That the requests are spread over."""


@dataclass
class Sheet:
    """One stage."""

    name: str
    recipe: Recipe
    machines: Machines = field(init=False)
    lines: list[Line] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    """What is not known, with what to do about it."""
    warnings: list[str] = field(default_factory=list)
    totals: dict[str, Term] = field(default_factory=dict)
    """`hours`, `node_hours`, `bytes`, `put`, `get`, `egress`, `money`, as far as the stage has them."""
    limit: str = ""
    """What the stage waits for."""
    lacks_costs: bool = False
    """Whether something has no price, or no amount."""

    def __post_init__(self) -> None:
        self.machines = machines_of(self.recipe, self.name)

    def add(self, label: str, term: Term, show: Show, after: str = "") -> Term:
        """A line. Returns its result, for use in further formulas.

        Args:
            label: what it is.
            term: value and formula; where an input is not known, the line says so.
            show: how to write the value.
            after: words behind the formula.
        """
        if term.missing:
            self.lines.append(Line(label, "?", f"not known: {term.missing}"))
            self.unknown[term.missing] = term.next_step
            return term
        text = show(term.value)
        formula = "" if term.form == "number" else f"= {term.text}"
        self.lines.append(Line(label, text, "   ".join(filter(None, (formula, after)))))
        return Term(term.value, text)

    def total(self, name: str, label: str, term: Term, show: Show, after: str = "") -> Term:
        """A line that goes into the last table too."""
        self.totals[name] = self.add(label, term, show, after)
        return self.totals[name]

    def hours(self, label: str, seconds: Term, after: str = "") -> Term:
        """A line of a duration that is calculated in seconds."""
        return self.add(label, seconds.scaled(1 / 3600), show_hours, after)

    def request_hours(self, label: str, requests: Term, folder: Folder) -> Term:
        """How long the store's limit makes these requests take at least."""
        limit = Term(folder.per_s, f"{folder.per_s:,.0f}/s")
        allowed = limit * count(folder.ranges, "key ranges") if folder.ranges > 1 else limit
        return self.hours(label, requests / allowed, f"on {folder.name}")

    def rate(self, label: str, requests: Term, folder: Folder, others: Iterable[Term], advice: str) -> None:
        """How busy a folder is over the time that the stage takes, with a warning above half its limit.

        Args:
            label: of the line.
            requests: to the folder.
            folder: with its limit.
            others: the hours that the stage takes for other reasons.
            advice: what to change; `{needed}` stands for the key ranges that are half busy at full speed.
        """
        hours, limit = self.totals["hours"], folder.per_s * folder.ranges
        per_s = (requests / hours).scaled(1 / 3600)
        used = per_s.value / limit
        ranges = f" × {folder.ranges:,} key ranges" if folder.ranges > 1 else ""
        of_limit = f"{share(used).text} of {folder.per_s:,.0f}/s{ranges} on {folder.name}"
        self.add(label, per_s, lambda value: f"{digits(value)}/s", of_limit)
        if not per_s.missing and used > BUSY:
            slowest_s = 3600 * max(other.value for other in others)
            needed = math.ceil(requests.value / slowest_s / folder.per_s / BUSY) if slowest_s else 0
            self.warnings.append(f"{self.name}: {of_limit}; {advice.format(needed=f'{needed:,}')}")

    def slowest(self, limits: Mapping[str, Term], optional: Mapping[str, Term] | None = None) -> Term:
        """The longest of these hours, of things that go on side by side.

        Args:
            limits: by name; the result is not known where one of them is not.
            optional: further ones, which are left out where they are not known.
        """
        for hours in limits.values():
            if hours.missing:
                return hours
        known = dict(limits) | {name: hours for name, hours in (optional or {}).items() if not hours.missing}
        self.limit = max(known, key=lambda name: known[name].value)
        return known[self.limit]

    def takes(self, hours: Term) -> None:
        """How long the stage takes, and how long its machines are busy."""
        self.total("hours", "takes", hours, show_hours, f"limit: {self.limit}" if self.limit else "")
        self.total("node_hours", "node-hours", self.machines.nodes * self.totals["hours"], digits)

    def costs(self) -> None:
        """The last line: the sum of all that has a price, and what has none."""
        capacity = self.recipe.capacity
        prices, thousand = capacity.prices, count(1000)
        months = measured(capacity.storage_months, "months")
        each = (
            ("node_hours", "node-hours", 1.0, self.machines.price_per_hour, self.machines.price_key),
            ("put", "PUT", 1.0, prices.put_per_1000, "prices.put_per_1000"),
            ("get", "GET", 1.0, prices.get_per_1000, "prices.get_per_1000"),
            ("bytes", "GB of storage", 1e-9, prices.storage_gb_month, "prices.storage_gb_month"),
            ("egress", "GB of egress", 1e-9, prices.egress_per_gb, "prices.egress_per_gb"),
        )
        costs: list[Term] = []
        left_out: list[str] = []
        for name, unit, factor, price, key in each:
            total = self.totals.get(name)
            if total is None:
                continue
            if total.missing:
                left_out.append(f"{unit} (not known)")
            elif price is None:
                left_out.append(f"{unit} (no price)")
                self.unknown[f"price of {unit}"] = f"capacity.{key}"
            elif price and total.value:
                amount = total.value * factor
                cost = Term(amount, f"{digits(amount)} {unit}") * Term(price, f"{price:g}")
                cost = cost * months if name == "bytes" else cost
                costs.append(cost / thousand if name in ("put", "get") else cost)
        self.lacks_costs = bool(left_out)
        money = sum(costs[1:], costs[0]) if costs else unknown(", ".join(left_out)) if left_out else count(0)
        after = f"without {', '.join(left_out)}" if left_out and costs else ""
        self.total("money", "money", money, lambda value: f"{value:,.0f} {capacity.currency}", after)
