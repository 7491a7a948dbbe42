"""The small house, built once for all integration tests."""

from __future__ import annotations

import pytest
from small_house import BIN, HOUSEHOLDS, PAYMENTS, TOKEN, House

from orchestration.demo import campaign_api, card_payments, retail_db
from orchestration.settings import Settings


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """The house, built by one command in a process of its own; `first` is what that said."""
    patched = pytest.MonkeyPatch()
    patched.setitem(Settings.model_config, "env_file", None)
    house = House(tmp_path_factory.mktemp("house"))
    retail_db.fill(house.database, households=HOUSEHOLDS)
    card_payments.fill(house.lake, house.stream, PAYMENTS)
    with campaign_api.running(house.url, TOKEN, households=HOUSEHOLDS):
        house.first = house.run(BIN / "watershed", "build")
        yield house
    patched.undo()
