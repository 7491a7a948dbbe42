"""Scores over HTTP: latency at 200 requests/s, of bulk requests, and under a flood, against an empty route.

.venv/bin/python -m benchmarks.serving

The server and the load generator are two processes. The load is open: a request is sent when its time has
come, whether or not those before it were answered, and its latency counts from that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from fastapi import Request, Response
from rich.console import Console
from rich.table import Table

RATE, SECONDS = 200, 30
CONNECTIONS = 64
BULK = 1_000
FLOOD_CONNECTIONS, FLOOD_SECONDS = 200, 5
RECORDS = 2_000
PATH = "/v1/fraud_detection/scores"


class Measured(NamedTuple):
    """Latencies in milliseconds of what was answered with 200, and how many had each status."""

    latencies: list[float]
    statuses: Counter[int]

    def told(self) -> str:
        """p50 and p99."""
        low, high = np.quantile(self.latencies, [0.5, 0.99])
        return f"{low:.2f} / {high:.2f}"


def records() -> list[dict]:
    """Payments as records; about one in fifty is an alert."""
    from orchestration.learning.fraud_detection import FEATURES

    draw = np.random.default_rng(0)
    return [
        {
            name: round(float(draw.random() / 50), 4) if "share" in name
            else bool(draw.random() < 0.3) if name.startswith("is_")
            else int(draw.integers(1, 300)) if "count" in name
            else int(draw.integers(100, 15_000)) / 100
            for name in FEATURES
        }
        for _ in range(RECORDS)
    ]  # fmt: skip


def served(port: int) -> None:
    """The server's process: the real application, with a model trained here, and an empty route."""
    from benchmarks.fraud_stream import trained
    from orchestration.serving.service import create_app, prepared
    from orchestration.serving.use_cases import (
        PaymentAnswer,
        UseCase,
        payment_record,
        score_payments,
    )

    model = trained()
    app = create_app(
        {
            "fraud_detection": UseCase(
                payment_record(), PaymentAnswer, lambda _: model, lambda: ("",), score_payments
            )
        }
    )

    @app.post("/empty")
    async def empty(request: Request) -> Response:
        await request.body()
        return Response(b"{}")

    prepared(app).run(sockets=[socket.create_server(("127.0.0.1", port), backlog=2048)])


def sent(path: str, body: bytes) -> bytes:
    """A request as its bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """Connections that stay open, each for one request at a time."""

    def __init__(self, port: int) -> None:
        self.port, self.free = port, asyncio.LifoQueue()

    async def __aenter__(self) -> Client:
        for _ in range(CONNECTIONS):
            self.free.put_nowait(await asyncio.open_connection("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self.free.empty():
            self.free.get_nowait()[1].close()

    async def ask(self, request: bytes) -> int:
        """Send it on a free connection; the status of the answer."""
        reader, writer = await self.free.get()
        try:
            return await asked(reader, writer, request)
        finally:
            self.free.put_nowait((reader, writer))


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """The status of the answer, all of which was read."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head[9:12])


async def open_loop(
    client: Client, requests: Sequence[bytes], rate: float, seconds: float
) -> Measured:
    """Requests at a constant rate, in turn."""
    found = Measured([], Counter())

    async def one(request: bytes, due: float) -> None:
        status = await client.ask(request)
        found.statuses[status] += 1
        if status == 200:
            found.latencies.append(1000 * (time.perf_counter() - due))

    began = time.perf_counter() + 0.1
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            tasks.create_task(one(requests[number % len(requests)], due))
    return found


async def flood(port: int, requests: Sequence[bytes]) -> Measured:
    """As many connections as are far too many, each asking again as soon as it has its answer."""
    found, until = Measured([], Counter()), time.perf_counter() + FLOOD_SECONDS

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            status = await asked(reader, writer, requests[number % len(requests)])
            found.statuses[status] += 1
            if status == 200:
                found.latencies.append(1000 * (time.perf_counter() - began))
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(FLOOD_CONNECTIONS):
            tasks.create_task(one(number))
    return found


def cpu_ms(pid: int) -> float:
    """What a process has taken of the processors; unlike latency, the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int) -> list[tuple[str, str, str]]:
    """All figures: what, measured, to reach."""
    made = records()
    single = [sent(PATH, orjson.dumps({"records": [record]})) for record in made]
    why = [sent(f"{PATH}?reasons=all", request.partition(b"\r\n\r\n")[2]) for request in single]
    empty = [sent("/empty", request.partition(b"\r\n\r\n")[2]) for request in single]
    bulk = [sent(PATH, orjson.dumps({"records": made[:BULK]}))]
    rows = []
    async with Client(port) as client:
        for _ in range(200):
            await client.ask(single[0])
        at = f"{RATE} requests/s for {SECONDS} s, ms p50 / p99"
        for what, requests, reach in (
            (f"one payment: {at}", single, "p99 10"),
            (f"an empty route: {at}", empty, "the limit"),
            (f"one payment, always with reasons: {at}", why, "p99 10"),
        ):
            before = cpu_ms(pid)
            found = await open_loop(client, requests, RATE, SECONDS)
            each = (cpu_ms(pid) - before) / (RATE * SECONDS)
            rows.append((what, found.told(), reach))
            rows.append(("  processor time of the server, ms a request", f"{each:.2f}", ""))
            if set(found.statuses) != {200}:
                rows.append(("  of them refused", str(dict(found.statuses)), "none"))
        found = await open_loop(client, bulk, 1, 10)
        rows.append((f"{BULK:,} payments in a request, ms p50 / p99", found.told(), ""))
        beside, found = await asyncio.gather(
            open_loop(client, bulk, 2, 10), open_loop(client, single, RATE, 10)
        )
        rows.append((f"one payment, while {2 * BULK:,}/s come in bulk", found.told(), ""))
        rows.append(("  the bulk requests", beside.told(), ""))
    found = await flood(port, single)
    refused = found.statuses[429]
    rows.append((f"a flood of {FLOOD_CONNECTIONS} connections: those let in", found.told(), ""))
    rows.append(
        (
            "  answered with scores / told to come again, per second",
            f"{len(found.latencies) / FLOOD_SECONDS:,.0f} / {refused / FLOOD_SECONDS:,.0f}",
            "",
        )
    )
    return rows


def main() -> None:
    """Run all; takes about two minutes on two cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=served, args=(port,))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        table = Table("claim", "measured", "to reach")
        for row in asyncio.run(measure(port, process.pid)):
            table.add_row(*row)
        Console().print(table)
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
