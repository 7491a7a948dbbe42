"""What every test shares: settings that point at a folder of its own."""

from __future__ import annotations

import os

import pytest

from orchestration.settings import Settings, load_settings


def pytest_xdist_make_scheduler(config, log):
    """Workers take whole files; those of integration/ that share a house are one, so that it is built once."""
    from xdist.scheduler import LoadFileScheduling

    of_their_own = ("test_stream_kills.py", "test_turbofan.py")

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            shared = "/integration/" in file and not file.endswith(of_their_own)
            return "integration" if shared else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    """A test sees defaults, whatever the person's environment or `.env` says."""
    for name in [n for n in os.environ if n.startswith("WATERSHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setenv("WATERSHED_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def settings() -> Settings:
    return load_settings()
