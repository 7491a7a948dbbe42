"""The stand-in for a payments company: simulates card payments and fraud into a lake and a stream.

The method is that of chapter 3 of Le Borgne et al., *Reproducible Machine Learning for Credit Card
Fraud Detection*. Customers and terminals lie on a square of 100 x 100. A customer pays at terminals
within a radius of 5, about at noon, with amounts and a frequency of their own. Fraud has three
scenarios; on a smaller world fewer terminals and customers are compromised, in proportion:

1. every payment above 220 is fraud;
2. each day 2 of 10,000 terminals are compromised: for 28 days all their payments are fraud;
3. each day 3 of 5,000 customers are compromised: for 14 days a third of their payments is fraud,
   of five times the amount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.demo.events import fill_topic
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from orchestration.settings import Settings

    Integers = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

SIDE, RADIUS = 100.0, 5.0
DAY_SECONDS = 86_400
LARGE_AMOUNT = 220
"""Scenario 1: a payment above it is fraud."""
TERMINALS_PER_DAY, TERMINAL_DAYS = 2 / 10_000, 28
"""Scenario 2: the share of terminals that is compromised each day, and for how many days."""
CUSTOMERS_PER_DAY, CUSTOMER_DAYS = 3 / 5_000, 14
"""Scenario 3: the same of customers."""
TIMES_THE_AMOUNT = 5
STREAMED_DAYS = 14
"""So many of the last days are in the stream; those before them are in the lake."""
LABEL_DELAY = timedelta(days=7)
FILE = "simulated.parquet"
"""What a file in the lake is called, by which what came from it is told from a company's own."""
_NEAR_AT_ONCE = 200


@dataclass(frozen=True)
class World:
    """What is simulated; another seed is another world.

    Attributes:
        customers: how many; each makes about 2 payments a day.
        terminals: how many.
        first_date: the first day.
        days: how many days.
        seed: of every random number.
    """

    customers: int = 1_000
    terminals: int = 2_000
    first_date: date = date(2018, 4, 23)
    days: int = 100
    seed: int = 2018

    @property
    def streamed_from(self) -> date:
        """The first day whose payments are in the stream."""
        return self.first_date + timedelta(days=self.days - STREAMED_DAYS)

    @property
    def ends(self) -> date:
        """The day after the last."""
        return self.first_date + timedelta(days=self.days)


def simulate(world: World) -> pa.Table:
    """The payments of a world, in the order of their time; two calls give the same.

    Returns:
        transaction_id (int64, from 0), transaction_at (timestamp[us], naive UTC, whole seconds),
        customer_id, terminal_id (int64, from 0), amount (decimal(12, 2)), is_fraud (bool),
        fraud_scenario (int8: 0 is no fraud; the highest where several apply).
    """
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(world.seed)
    mean_amount = random.uniform(5, 100, world.customers)
    payments_per_day = random.uniform(0, 4, world.customers)
    near, begins = _terminals_near(random, world)

    # A row per payment; customer by customer, and of each day by day.
    counts = random.poisson(payments_per_day[:, None], (world.customers, world.days))
    counts[begins[1:] == begins[:-1]] = 0  # who has no terminal near cannot pay
    place = np.repeat(np.arange(counts.size), counts.ravel())
    seconds = np.floor(random.normal(DAY_SECONDS / 2, 20_000, len(place))).astype(np.int64)
    of_the_day = (seconds >= 0) & (seconds < DAY_SECONDS)
    place, seconds = place[of_the_day], seconds[of_the_day]
    customer, day = np.divmod(place, world.days)
    mean = mean_amount[customer]
    amount = random.normal(mean, mean / 2)
    amount = np.where(amount < 0, random.uniform(0, 2 * mean), amount)
    cents = np.rint(amount * 100).astype(np.int64)
    choices = begins[customer + 1] - begins[customer]
    terminal = near[begins[customer] + (random.random(len(place)) * choices).astype(np.int64)]

    scenario = np.where(cents > LARGE_AMOUNT * 100, 1, 0).astype(np.int8)
    compromised = np.zeros((world.terminals, world.days), bool)
    for which, since in _compromised(random, world.terminals, TERMINALS_PER_DAY, world.days):
        compromised[which, since : since + TERMINAL_DAYS] = True
    scenario[compromised[terminal, day]] = 2
    stolen = np.zeros(len(place), bool)
    for which, since in _compromised(random, world.customers, CUSTOMERS_PER_DAY, world.days):
        until = min(since + CUSTOMER_DAYS, world.days)
        first, end = np.searchsorted(place, which * world.days + np.array([since, until]))
        stolen[first + random.choice(end - first, (end - first) // 3, replace=False)] = True
    scenario[stolen] = 3
    cents[stolen] *= TIMES_THE_AMOUNT

    since_start = day * DAY_SECONDS + seconds
    order = np.argsort(since_start, kind="stable")
    started = np.datetime64(world.first_date, "us")
    return pa.table(
        {
            "transaction_id": np.arange(len(order)),
            "transaction_at": started + since_start[order] * np.timedelta64(1_000_000, "us"),
            "customer_id": customer[order],
            "terminal_id": terminal[order],
            "amount": _decimals(cents[order]),
            "is_fraud": scenario[order] > 0,
            "fraud_scenario": scenario[order],
        }
    )


def fill(
    lake: Path,
    stream: Path,
    world: World | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, int]:
    """Fill a folder with Parquet files and the topics of an embedded log, unless they are filled.

    The lake has a file per month, with labels. The stream has the last days, without labels; these
    follow in `fraud_reports`, each a week after its payment, as far as the world's time has come.
    What a crash left out is added the next time; a file or an event that is there is left alone.

    Args:
        lake: the folder of files.
        stream: the folder of topics.
        world: what is simulated; None is the demo's.
        progress: told once per file and thousands of events.

    Returns:
        `lake`, `payments` and `fraud_reports` to the number of payments or events that were added.

    Raises:
        MendableError: the folders cannot be written.
    """
    world = world or World()
    try:
        payments = simulate(world)
        split = payments["transaction_at"].to_numpy().searchsorted(_moment(world.streamed_from))
        added = {"lake": _fill_lake(lake, payments.slice(0, split), progress)}
        streamed = payments.slice(split)
        for topic, (events, keys, times) in {
            "payments": _payment_events(streamed),
            "fraud_reports": _report_events(streamed, world.ends),
        }.items():
            added[topic] = fill_topic(stream, topic, events, keys, times, progress)
        return added
    except OSError as error:
        raise MendableError(
            f"the demo's card payments in {lake} and {stream}",
            expected="folders this user can write, and 50 MB of room",
            arrived=f"{type(error).__name__}: {error}",
            mend="make room, or set WATERSHED_DATA_DIR to another folder in .env; then run again",
        ) from None


def require_unmixed(settings: Settings) -> None:
    """Refuse to land a company's own lake beside simulated payments, whose numbers would be taken for its own.

    Raises:
        MendableError: the warehouse has simulated payments, and the lake is not the demo's.
    """
    from orchestration.warehouse.connect import connect

    own = Path(settings.payments_lake_url) != settings.data_dir / "demo" / "payments_lake"
    embedded = settings.catalog_file
    if not own or (embedded is not None and not embedded.exists()):
        return
    with connect(settings, read_only=embedded is not None) as connection:  # a server's may be new
        simulated = (
            connection.execute(
                "select 1 from duckdb_tables() where database_name = current_database()"
                " and schema_name = 'landing' and table_name = 'positions'"
            ).fetchall()
            and connection.execute(
                "select 1 from landing.positions"
                " where table_name = 'payments_lake__payments' and contains(source_position, ?)",
                [f"/{FILE}"],
            ).fetchall()
        )
    if simulated:
        raise MendableError(
            "setting WATERSHED_PAYMENTS_LAKE_URL",
            expected="a warehouse without the demo's card payments, which would mix with your own",
            arrived=f"the warehouse in {settings.data_dir}, where the demo has landed them",
            mend="set WATERSHED_DATA_DIR to another folder and build there, or make clean first",
        )


def _terminals_near(random: np.random.Generator, world: World) -> tuple[Integers, Integers]:
    """The terminals that each customer may use, customer by customer, and where each one's begin."""
    import numpy as np

    customers = random.uniform(0, SIDE, (world.customers, 2))
    terminals = random.uniform(0, SIDE, (world.terminals, 2))
    near, counts = [], []
    for first in range(0, world.customers, _NEAR_AT_ONCE):
        apart = customers[first : first + _NEAR_AT_ONCE, None] - terminals[None]
        within = np.einsum("ctx,ctx->ct", apart, apart) < RADIUS**2
        near.append(np.nonzero(within)[1])
        counts.append(within.sum(axis=1))
    return np.concatenate(near), np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _compromised(
    random: np.random.Generator, number: int, share_per_day: float, days: int
) -> Iterator[tuple[int, int]]:
    """Who is compromised, and since which day; each day different ones, fractions carried over."""
    for day in range(days):
        before, after = (int(number * share_per_day * d + 1e-9) for d in (day, day + 1))
        for which in random.choice(number, after - before, replace=False).tolist():
            yield which, day


def _decimals(cents: Integers) -> pa.Array:
    """Cents as decimal(12, 2)."""
    import numpy as np
    import pyarrow as pa

    words = np.column_stack([cents, cents >> 63])  # low and high half of 128 bits
    return pa.Array.from_buffers(pa.decimal128(12, 2), len(cents), [None, pa.py_buffer(words)])


def _moment(day: date) -> np.datetime64:
    import numpy as np

    return np.datetime64(day, "us")


def _fill_lake(lake: Path, payments: pa.Table, progress: Callable[[str], None]) -> int:
    """Write a file per month that has none yet; each appears in one step."""
    import numpy as np
    import pyarrow.parquet as pq

    months = payments["transaction_at"].to_numpy().astype("datetime64[M]")
    added = 0
    for month in np.unique(months):
        file = lake / f"month={month}" / FILE
        if file.exists():
            continue
        first, end = np.searchsorted(months, [month, month + 1])
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("_partial")
        pq.write_table(payments.slice(first, end - first).drop_columns(["fraud_scenario"]), partial)
        partial.replace(file)
        added += int(end - first)
        progress(f"card payments: {added:,} of {payments.num_rows:,} in the lake")
    return added


_Events = tuple["pa.Table", "pa.ChunkedArray", "pa.ChunkedArray"]
"""Events, their keys and times."""


def _payment_events(payments: pa.Table) -> _Events:
    """The payments, without what nobody knows yet; the key is the customer."""
    fields = ["transaction_id", "transaction_at", "customer_id", "terminal_id", "amount"]
    return payments.select(fields), payments["customer_id"], payments["transaction_at"]


def _report_events(payments: pa.Table, ends: date) -> _Events:
    """What became known of the payments before `ends`; the key is the payment."""
    import pyarrow as pa
    import pyarrow.compute as pc

    reports = pa.table(
        {
            "transaction_id": payments["transaction_id"],
            "is_fraud": payments["is_fraud"],
            "reported_at": pc.add(payments["transaction_at"], pa.scalar(LABEL_DELAY)),
        }
    )
    reports = reports.filter(pc.less(reports["reported_at"], pa.scalar(_moment(ends))))
    return reports, reports["transaction_id"], reports["reported_at"]
