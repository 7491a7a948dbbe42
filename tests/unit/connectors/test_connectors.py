"""What every connector shares: columns are checked in one way, and addresses hold no secret."""

from __future__ import annotations

import pytest

from orchestration.connectors import address, require_columns
from orchestration.errors import MendableError


def test_every_missing_column_is_named():
    with pytest.raises(MendableError, match=r"shop\.sales: column a, c"):
        require_columns("shop", "sales", expected=["a", "b", "c"], arrived=iter(["b"]))


def test_columns_beyond_the_expected_ones_are_nobodys_mistake():
    require_columns("shop", "sales", expected=["a"], arrived=["z", "a"])


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("https://api.example.com/v1?key=secret", "api.example.com"),
        ("postgresql://clerk:secret@db.example.com:5433/shop", "db.example.com:5433"),
        ("http://127.0.0.1:8471", "127.0.0.1:8471"),
    ],
)
def test_an_address_is_host_and_port(url, printed):
    assert address(url) == printed


@pytest.mark.parametrize("mark", ["/", "?", "#", ":", "@", "[", "]", "%", " "])
def test_an_address_never_holds_a_password_however_badly_it_is_escaped(mark):
    assert "secret" not in address(f"postgresql://clerk:{mark}secret@db.example.com/shop")
    assert "secret" not in address(f"postgresql://clerk:secret{mark}@db.example.com/shop")
    assert "secret" not in address(f"secret{mark}@db.example.com")
    assert "secret" not in address(f"postgresql://clerk:1{mark}secret@db.example.com:5432/shop")
