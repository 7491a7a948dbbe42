"""Back up a warehouse that is in use, and restore it: catalog, the files it names, run history, model registry.

The order makes the copy whole although work goes on: the history first, since what it does not know of is built
again; then the catalog, which SQLite copies as of one commit; then the files that this copy names, which no one
ever changes. A file that is in the backup already is not copied again; one that is no longer named is removed,
so that what was erased from the warehouse leaves the backup with the next one.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from orchestration.errors import MendableError
from orchestration.settings import Settings, load_settings
from orchestration.warehouse.connect import connect, require_writable
from orchestration.warehouse.files import damaged, explain_damage, lake_files
from orchestration.warehouse.releases import releases, verify

_BESIDE = ("dagster", "mlflow", "mlflow.db")
"""What is kept with the warehouse, in the data folder; the demo's source systems are sources, and are not."""
_BY_HAND = "pg_dump the catalog's database first, then copy the lake's files (aws s3 sync); restore both together"


def backup(settings: Settings, to: Path, say: Callable[[str], None]) -> int:
    """Copy the warehouse to a folder that `restore` reads, or bring the copy there up to date.

    Returns:
        How many files of the lake were copied.

    Raises:
        MendableError: the catalog or the lake is on a server, the folder cannot be written, or files are missing.
    """
    catalog = _own_catalog(settings)
    if not catalog.exists():
        raise MendableError(
            f"the warehouse at {catalog}", expected="something to back up", arrived="nothing built yet",
            mend="make demo",
        )  # fmt: skip
    if to.resolve().is_relative_to(settings.data_dir.resolve()):
        raise MendableError(
            f"the backup folder {to}", expected="a folder outside the data folder, best on another disk",
            arrived="one inside it", mend="name another folder",
        )  # fmt: skip
    require_writable(to)
    for name in _BESIDE:
        _copy_beside(settings.data_dir / name, to / name)
    _copy_sqlite(catalog, to / "catalog.sqlite")
    copied = load_settings(data_dir=to, catalog="", lake_path="", encrypted=False)
    with connect(copied, read_only=True) as connection:
        files = lake_files(connection)
        new = [file for file in files if not _has(to / "lake" / file.path, file.size)]
        for file in new:
            target = to / "lake" / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(Path(settings.lake_path) / file.path, target)
            except FileNotFoundError:
                continue  # told below
        if damage := damaged(connection, copied):
            raise explain_damage(damage, releases(connection))
    named = {to / "lake" / file.path for file in files}
    for path in (to / "lake").rglob("*.parquet"):
        if path not in named:
            path.unlink()
    say(f"{len(files):,} files of the lake, {len(new):,} of them new")
    return len(new)


def restore(settings: Settings, source: Path, say: Callable[[str], None]) -> None:
    """Copy a backup into a data folder that has no warehouse, and verify every release.

    Raises:
        MendableError: there is a warehouse, there is no backup, or what it holds is not what was released.
    """
    catalog = _own_catalog(settings)
    if not (source / "catalog.sqlite").exists():
        raise MendableError(
            f"the backup {source}", expected="a folder that make backup has written", arrived="no catalog in it",
            mend="name another folder",
        )  # fmt: skip
    if catalog.exists():
        raise MendableError(
            f"the warehouse at {catalog}", expected="none yet", arrived="one that would be overwritten",
            mend="set WATERSHED_DATA_DIR to a new folder, or move the old one away",
        )  # fmt: skip
    require_writable(settings.data_dir)
    for name in _BESIDE:
        _copy_beside(source / name, settings.data_dir / name)
    shutil.copytree(source / "lake", settings.lake_path, dirs_exist_ok=True)
    _copy_sqlite(source / "catalog.sqlite", catalog)
    with connect(settings, read_only=True) as connection:
        known = releases(connection)
        if damage := damaged(connection, settings):
            raise explain_damage(damage, known)
        for one in known:
            other = [table for table, told, now in verify(connection, one.name) if told != now]
            if other:
                raise MendableError(
                    f"the backup {source}", expected=f"{one.name} as it was released",
                    arrived=f"other rows in {', '.join(other)}", mend="restore an earlier backup",
                )  # fmt: skip
            say(f"{one.name}: its training sets hold the rows that were released")


def _own_catalog(settings: Settings) -> Path:
    if settings.catalog_file is None or "://" in settings.lake_path:
        raise MendableError(
            "a backup of this warehouse", expected="catalog and lake in folders of this machine",
            arrived="one on a server", mend=_BY_HAND,
        )  # fmt: skip
    return settings.catalog_file


def _has(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _copy_beside(source: Path, target: Path) -> None:
    """A file or folder as it is, but a database of SQLite as of one commit."""
    for file in [source] if source.is_file() else sorted(source.rglob("*")):
        if not file.is_file() or file.name.endswith(("-wal", "-shm", "-journal")):
            continue
        place = target / file.relative_to(source) if file != source else target
        place.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as opened:
            is_database = opened.read(15) == b"SQLite format 3"
        if is_database:
            _copy_sqlite(file, place)
        else:
            shutil.copy2(file, place)


def _copy_sqlite(source: Path, target: Path) -> None:
    written = target.with_name(f"{target.name}.new")
    written.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(source, timeout=60)) as old,
        closing(sqlite3.connect(written)) as new,
    ):
        old.backup(new)
        new.execute("pragma journal_mode = delete")  # one file
    for left in ("-wal", "-shm"):
        target.with_name(target.name + left).unlink(missing_ok=True)
    written.replace(target)
