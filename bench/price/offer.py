"""What a row of the price book is: a price, a CPU price, an owner's machines; and who sells them.

Each row checks itself as it is built: a rule that does not hold is one line naming the key and what was expected.
`offer` is what is sold, whatever the day: two rows of one offer are an older and a newer price of the same thing.
"""

from __future__ import annotations

import datetime
import difflib
from dataclasses import dataclass
from typing import ClassVar

from bench import config
from bench.config import require

KINDS = ("hyperscaler", "neocloud", "marketplace", "self_built")
INCLUDES = ("instance", "gpu_only")  # gpu_only: CPU, memory and disk are billed on top; prices no token
LEVELS = {
    "on_demand": "retail",
    "spot": "retail",
    "capacity_block": "retail",  # a list price, no commitment of years
    "reserved_1y": "contract",
    "reserved_3y": "contract",
    "contract": "contract",
    "owned": "owner",
}
ONE_OF_MACHINES = "a range for it or for capex_usd_per_gw, and not both"
ONE_OF_HOUSES = "a range for it or for colocation_usd_per_kw_month, and not both"


def _gpu(key: str) -> None:
    if (config.CONFIGS / config.Gpu.FOLDER / f"{key}.toml").is_file():
        return
    near = difflib.get_close_matches(key, config.keys(config.Gpu), 1)
    hint = f" (nearest: {near[0]})" if near else ""
    require(False, "gpu", f"a key of configs/gpus{hint}, got {key!r}")


def _dated(as_of: datetime.date, source: str) -> None:
    today = datetime.date.today()
    require(as_of <= today, "as_of", f"a date not after today, {today}, got {as_of}")
    require(bool(source.strip()), "source", "the full address of the figure; of a price of your own, what it is")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A figure nobody knows exactly, with its source; `evidence` holds ids of configs/evidence.csv."""

    low: float
    value: float
    high: float
    unit: str
    source: str
    evidence: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        require(0 < self.low <= self.value <= self.high, "value", "0 < low <= value <= high")
        require(self.source.startswith("http"), "source", "the full address of the figure")


@dataclass(frozen=True, kw_only=True)
class Price:
    """One GPU price. `low` and `high` where the source gives a range; `gpu_count` GPUs are sold together."""

    region: str
    sku: str
    gpu: str
    gpu_count: int
    includes: str
    term: str
    usd_per_gpu_hour: float
    low: float | None = None
    high: float | None = None
    as_of: datetime.date
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        price = self.usd_per_gpu_hour
        _gpu(self.gpu)
        require(self.gpu_count >= 1, "gpu_count", f"at least 1, got {self.gpu_count}")
        require(self.includes in INCLUDES, "includes", f"one of {', '.join(INCLUDES)}")
        require(self.term in LEVELS, "term", f"one of {', '.join(LEVELS)}, got {self.term!r}")
        require(price > 0, "usd_per_gpu_hour", f"a positive price, got {price}")
        low = price if self.low is None else self.low
        high = price if self.high is None else self.high
        require(0 < low <= price <= high, "low", "0 < low <= usd_per_gpu_hour <= high")
        _dated(self.as_of, self.source)

    @property
    def level(self) -> str:
        """retail, contract or owner."""
        return LEVELS[self.term]

    @property
    def offer(self) -> tuple[str, ...]:
        """What is sold: a newer price of the same offer takes this one's place."""
        return (self.region, self.sku, self.gpu, self.includes, self.term)


@dataclass(frozen=True, kw_only=True)
class CpuPrice:
    """One CPU instance: shows the arithmetic on a machine without a GPU, and is never compared with a GPU."""

    region: str
    sku: str
    vcpus: int
    term: str
    usd_per_hour: float
    as_of: datetime.date
    source: str

    def __post_init__(self) -> None:
        require(self.vcpus >= 1, "vcpus", f"at least 1, got {self.vcpus}")
        require(self.term in LEVELS, "term", f"one of {', '.join(LEVELS)}, got {self.term!r}")
        require(self.usd_per_hour > 0, "usd_per_hour", f"a positive price, got {self.usd_per_hour}")
        _dated(self.as_of, self.source)

    @property
    def usd_per_vcpu_hour(self) -> float:
        """The instance's price shared among its vCPUs."""
        return self.usd_per_hour / self.vcpus

    @property
    def level(self) -> str:
        """retail, contract or owner."""
        return LEVELS[self.term]

    @property
    def offer(self) -> tuple[str, ...]:
        """What is sold."""
        return (self.region, self.sku, self.term)


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What one's own machines take; owned.py turns it into a price per provisioned GPU hour.

    The machines are told per gigawatt (`capex_usd_per_gw`, of which `it_share`) or per GPU (`it_usd_per_gpu`). They
    stand in a building of one's own (the rest of that capex, or `facility_usd_per_kw`) or in `colocation`: rent in
    the place of the building. The rent is without electricity, which is paid either way.
    """

    region: str
    sku: str
    gpu: str
    gpu_count: int
    as_of: datetime.date
    capex_usd_per_gw: Range | None = None
    it_share: Range | None = None  # of capex; the rest is building, power and cooling
    gpus_per_gw: Range | None = None
    it_usd_per_gpu: Range | None = None  # GPU with its share of host and network
    it_life_years: Range
    facility_usd_per_kw: Range | None = None  # of IT power
    facility_life_years: Range | None = None
    colocation_usd_per_kw_month: Range | None = None
    cost_of_capital: Range  # fraction a year
    operations_usd_per_gw_year: Range  # without energy
    power_kw_per_gpu: Range  # GPU with its share of host and network
    pue: Range
    electricity_usd_per_kwh: Range
    owner: str  # whose machines; names the draws of what is `apart`
    apart: tuple[str, ...] = ()  # inputs drawn independently of other owners'; the rest is one market
    modelled: bool = False  # inputs that nobody stated, derived from another machine's
    note: str = ""

    def __post_init__(self) -> None:
        _gpu(self.gpu)
        require(self.gpu_count >= 1, "gpu_count", f"at least 1, got {self.gpu_count}")
        given = self.ranges
        require(("capex_usd_per_gw" in given) != ("it_usd_per_gpu" in given), "it_usd_per_gpu", ONE_OF_MACHINES)
        for name in ("it_share", "gpus_per_gw"):
            require((name in given) == ("capex_usd_per_gw" in given), name, "a range with capex_usd_per_gw alone")
        require(self.it_share is None or self.it_share.high <= 1, "it_share", "a share of capex, at most 1")
        houses = [name for name in ("facility_usd_per_kw", "colocation_usd_per_kw_month") if name in given]
        built = "capex_usd_per_gw" in given and not houses
        require(built or len(houses) == 1, "facility_usd_per_kw", ONE_OF_HOUSES)
        own = "colocation_usd_per_kw_month" not in given
        require(own == ("facility_life_years" in given), "facility_life_years", "a range, and none in colocation")
        for name in self.apart:
            require(name in given, "apart", f"names of ranges given here, got {name!r}")
        _dated(self.as_of, given["capex_usd_per_gw" if "it_share" in given else "it_usd_per_gpu"].source)

    @property
    def ranges(self) -> dict[str, Range]:
        """The inputs that are given, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Range)}

    @property
    def offer(self) -> tuple[str, ...]:
        """What is owned."""
        return (self.owner, self.region, self.sku, self.gpu)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A seller of GPU hours (or a builder of its own)."""

    FOLDER: ClassVar[str] = "providers"
    key: str = ""
    name: str
    kind: str
    price: tuple[Price, ...] = ()
    cpu_price: tuple[CpuPrice, ...] = ()
    owned: tuple[Owned, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}, got {self.kind!r}")
        seen: set[tuple[object, ...]] = set()
        rows: tuple[Price | CpuPrice | Owned, ...] = (*self.price, *self.cpu_price, *self.owned)
        for row in rows:
            dated = (*row.offer, row.as_of)
            require(dated not in seen, "price", f"one price an offer and day; twice: {', '.join(map(str, dated))}")
            seen.add(dated)
