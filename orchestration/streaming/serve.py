"""`watershed stream`: the scorer in this process and landing in another, started and stopped together."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestration.connectors import address
from orchestration.errors import PassingError
from orchestration.settings import Settings
from orchestration.streaming.engine import run
from orchestration.streaming.fraud_champion import Champion
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, stream_topic
from orchestration.streaming.publisher import Publisher, open_publisher
from orchestration.warehouse.connect import connect, writing

_LANDED = ("payments", "fraud_reports", "scores")
_AGAIN_SECONDS = 5.0


def serve(settings: Settings, landing: Sequence[str], say: Callable[[str], None]) -> None:
    """Score and land until Ctrl-C or SIGTERM.

    Args:
        settings: which warehouse and stream.
        landing: the command that lands topics, which are added to it.
        say: told how it goes.

    Raises:
        MendableError: the stream or the warehouse cannot be used.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    payments = stream_topic(settings, "payments")
    with open_publisher(payments) as publisher:
        if not _topics_made(publisher, stopping, say):
            return
        with writing(settings, "opening the warehouse"):
            connect(settings).close()  # a first start makes it
        say(_greeting(settings))
        with (
            Champion(settings, say) as champion,
            _landing(
                [*landing, *(f"{payments.system}.{topic}" for topic in _LANDED)],
                settings.data_dir / "landing.log",
                say,
            ),
        ):
            done = run(
                FraudScoring(settings, champion),
                publisher,
                stop=stopping.is_set,
                say=say,
                metrics_port=settings.stream_metrics_port,
            )
    say(
        f"stopped: {done.scored:,} payments scored, {done.alerts:,} alerts,"
        f" {done.set_aside.total():,} set aside; make stream goes on from here, make build uses them"
    )


def _greeting(settings: Settings) -> str:
    url, port = settings.value_of("payments_stream_url"), settings.stream_metrics_port
    where = url if url.startswith("log://") else address(url)
    metrics = f", metrics on http://127.0.0.1:{port}/metrics" if port else ""
    return (
        f"following payments and fraud_reports at {where}; look: topics alerts and scores there,"
        f' make sql q="from raw.payments_stream__scores"{metrics} (stop with Ctrl-C)'
    )


def _topics_made(
    publisher: Publisher, stopping: threading.Event, say: Callable[[str], None]
) -> bool:
    """Whether the topics are there; not if it was stopped while it waited for the broker."""
    wait = 1.0
    while not stopping.is_set():
        try:
            if made := publisher.create(dict.fromkeys(TOPICS, 1)):
                say(f"made the topics {', '.join(made)}")
            return True
        except PassingError as error:
            say(f"{error}\n  trying again in {wait:g} s")
            stopping.wait(wait)
            wait = min(2 * wait, 30.0)
    return False


@contextmanager
def _landing(command: Sequence[str], log: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Landing in a process of its own for as long as the block runs; begun again if it ends."""
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.is_set():
            # A session of its own: Ctrl-C is for the scorer, which then stops landing.
            with log.open("w") as said:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            while process.poll() is None:
                if stopping.wait(0.2):
                    process.terminate()  # what has come still lands
                    process.wait()
                    return
            last = "\n  ".join(log.read_text(errors="replace").splitlines()[-4:])
            say(f"landing ended:\n  {last}\n  beginning again in {_AGAIN_SECONDS:g} s; see {log}")
            stopping.wait(_AGAIN_SECONDS)

    thread = threading.Thread(target=keep, name="landing")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
