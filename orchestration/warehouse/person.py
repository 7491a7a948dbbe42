"""Who is to be forgotten, how they stand in a text, and what stands for them afterwards."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from orchestration.duckdb_session import literal
from orchestration.errors import MendableError
from orchestration.settings import Settings

TEXT = r"""replace(cast({} as varchar), '\x22', '"')"""
r"""SQL for a text, or for bytes as one: DuckDB writes those beyond ASCII, and quotes, as `\x..`."""


@dataclass(frozen=True)
class Person:
    """Who is to be forgotten.

    Attributes:
        column: the identifier's name in staging, such as `customer_id`; the same everywhere after it.
        value: its value, as text.
        elsewhere: raw tables, and the identifier's other name there.
        row_keys: columns that identify one row of a person, such as `transaction_id`; rows that hold
            nothing of the person but such a key go as well.
    """

    column: str
    value: str
    elsewhere: frozenset[tuple[str, str]] = frozenset()
    row_keys: frozenset[str] = frozenset()


def hash_of(settings: Settings, column: str, value: str) -> str:
    """What stands for a value once it is forgotten: as landing computes it, in SQL."""
    text = "\x1f".join((key_of(settings), column, value))
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(settings: Settings) -> str:
    """The key of the hashes.

    Raises:
        MendableError: it is not set, and without it nobody can be kept out.
    """
    key = settings.privacy_key.get_secret_value()
    if not key:
        raise MendableError(
            "setting WATERSHED_PRIVACY_KEY",
            expected="the key under which the people who are forgotten were written down",
            arrived="none",
            mend="set WATERSHED_PRIVACY_KEY in .env to a long random text, and keep it",
        )
    return key


def pattern(names: set[str] | frozenset[str], value: str) -> str:
    """A regular expression for a field of JSON, of one of the names and with the value, itself one."""
    told = "|".join(map(re.escape, sorted(names)))
    return rf'(?i)"(?:{told})"\s*:\s*"?\s*{value}'


def told_in(names: set[str], value: str) -> str:
    """A regular expression for a field that has just this value, as a number or a text."""
    return pattern(names, rf"\+?0*{re.escape(value)}(?:\.0*)?\s*(?:[\",}}\s]|$)")


def is_told(names: set[str], value: str) -> str:
    """SQL that is true where JSON, whole or torn, gives one of the names the value."""
    return f"regexp_matches({TEXT}, {literal(told_in(names, value))})"
