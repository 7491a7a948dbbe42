"""The small house, built once for all integration tests."""

from __future__ import annotations

import pytest

from tests.integration.small_house import built_house


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    with built_house(tmp_path_factory.mktemp("house")) as house:
        yield house
