"""Settings from the environment and `.env`: who wins, what is refused, and what the error says to do."""

from __future__ import annotations

import pytest

from orchestration.errors import MendableError
from orchestration.settings import Settings, load_settings

SECRET = "a/secret+that=must~not-leak"


@pytest.fixture
def env_file(monkeypatch, tmp_path):
    """A `.env` that only its owner can read, with a setting that has a field and one that has none."""
    file = tmp_path / "private.env"
    file.touch(mode=0o600)
    file.write_text(f"WATERSHED_CAMPAIGN_API_TOKEN={SECRET}\nWATERSHED_ERP_TOKEN={SECRET}\n")
    monkeypatch.setitem(Settings.model_config, "env_file", file)
    return file


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604])
def test_an_env_file_that_others_can_read_or_write_is_refused(env_file, mode):
    env_file.chmod(mode)
    with pytest.raises(MendableError) as caught:
        load_settings()
    assert caught.value.mend == f"chmod 600 {env_file}"
    assert f"permissions {mode:o}" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_an_env_file_of_its_owner_is_read(env_file, mode):
    env_file.chmod(mode)
    settings = load_settings()
    assert settings.value_of("campaign_api_token") == SECRET
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_sources_own_setting_needs_no_field(env_file, monkeypatch):
    settings = load_settings()
    assert "erp_token" not in Settings.model_fields
    assert settings.value_of("erp_token") == SECRET
    monkeypatch.setenv("WATERSHED_ERP_TOKEN", "from the environment")
    assert settings.value_of("erp_token") == "from the environment"
    monkeypatch.setenv("WATERSHED_ERP_TOKEN", "")
    assert settings.value_of("erp_token") == SECRET


def test_a_sources_own_setting_that_is_missing_is_named(env_file):
    with pytest.raises(MendableError) as caught:
        load_settings().value_of("erp_url")
    assert caught.value.thing == "setting WATERSHED_ERP_URL"
    assert "add a line WATERSHED_ERP_URL=" in caught.value.mend
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("catalog", f"postgres:dbname=lake host=db.example.com password={SECRET}"),
        ("catalog", f"postgres:dbname=lake PASSWORD = '{SECRET}'"),
        ("catalog", f"postgres:postgresql://watershed:{SECRET}@db.example.com/lake"),
        ("lake_path", f"s3://key:{SECRET}@bucket/lake/"),
        ("campaign_api_url", f"https://watershed:{SECRET}@api.example.com"),
    ],
)
def test_a_password_in_a_setting_that_is_shown_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"WATERSHED_{name.upper()}", value)
    with pytest.raises(MendableError) as caught:
        load_settings()
    assert caught.value.thing == f"setting WATERSHED_{name.upper()}"
    assert "password" in caught.value.arrived
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("catalog", "postgres:dbname=lake host=db.example.com user=watershed"),
        ("catalog", "postgres:postgresql://watershed@db.example.com/lake"),
        ("catalog", "sqlite:/srv/my@home/password/catalog.sqlite"),
        ("lake_path", "s3://bucket/year=2017/a:b@c/"),
        ("campaign_api_url", "https://api.example.com:8443/v1"),
    ],
)
def test_a_setting_without_a_password_is_taken(monkeypatch, name, value):
    monkeypatch.setenv(f"WATERSHED_{name.upper()}", value)
    assert getattr(load_settings(), name) == value


def test_a_wrong_value_is_named_and_not_repeated(monkeypatch):
    monkeypatch.setenv("WATERSHED_THREADS", SECRET)
    with pytest.raises(MendableError, match="setting WATERSHED_THREADS") as caught:
        load_settings()
    assert SECRET not in str(caught.value)
