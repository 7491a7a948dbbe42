"""The kill test by hand: `python -m tests.torture [kind ...] --kills 2000`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.torture.harness import SECONDS_TO_RESTART, Told, torture
from tests.torture.sources import KINDS

ROUND = 100
"""Kills per warehouse: one of thousands of small commits would be slow for reasons of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of {', '.join(KINDS)}; or all")
    parser.add_argument("--kills", type=int, default=200, help="per kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--restart-within", type=float, default=SECONDS_TO_RESTART, metavar="SECONDS",
        help="until a restarted loader's first commit; more where the machine has other work",
    )  # fmt: skip
    given = parser.parse_args()
    failed = False
    for kind in given.kinds or KINDS:
        told = {name: Told() for name in KINDS[kind]}
        done = number = 0
        while done < given.kills and not any(t.wrong for t in told.values()):
            name = list(told)[number % len(told)]
            kills = min(ROUND, -(-given.kills // len(told)), given.kills - done)
            with tempfile.TemporaryDirectory(
                prefix="torture-", ignore_cleanup_errors=True
            ) as place:
                folder = Path(place)
                (folder / "data").mkdir()
                source = KINDS[kind][name](folder)
                try:
                    torture(
                        source, folder, kills, given.seed * 1000 + number, told[name],
                        progress=partial(_progress, f"{kind}: {name}", done, given.kills),
                        restart_within=given.restart_within,
                    )  # fmt: skip
                finally:
                    source.close()
            done += kills
            number += 1
        for name, one in told.items():
            if one.kills == 0 and not one.wrong:
                continue
            failed |= bool(one.wrong)
            print(_summary(f"{kind}: {name}", one), flush=True)
    return int(failed)


def _summary(what: str, told: Told) -> str:
    if told.wrong:
        return "\n  ".join([f"{what}: WRONG after {told.kills} kills", *told.wrong])
    restarts = told.restarts or [0.0]
    return (
        f"{what}: {told.kills} kills, at {len(+told.hit)} of {len(told.tried)} named steps and between;"
        f" of {told.rows:,} rows 0 lost, 0 duplicated;"
        f" restart {statistics.median(restarts):.2f} s, at most {max(restarts):.2f} s;"
        f" {told.seconds:.0f} s, {told.seconds / told.kills:.2f} s per kill"
    )


def _progress(what: str, before: int, of: int, killed: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if before + killed == of else ""
        print(
            f"\r{what}: {before + killed:,} of {of:,} kills", end=end, file=sys.stderr, flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
