"""Settings and model files: a wrong value is one clear message, and secrets never show."""

from pathlib import Path

import pytest

from tests.services import ROOT
from weightless.errors import SettingsError
from weightless.modelfile import load_model_file
from weightless.settings import CacheSettings, StoreSettings


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "S3_ENDPOINT",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
        "S3_CREDENTIALS_DIR",
        "S3_CA_BUNDLE",
        "CACHE_MAX_BYTES",
    ):
        monkeypatch.delenv(name, raising=False)


def test_keys_come_from_the_environment_or_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "access_key").write_text("node\n")
    (tmp_path / "secret_key").write_text("from-a-file\n")
    monkeypatch.setenv("S3_CREDENTIALS_DIR", str(tmp_path))
    assert StoreSettings.load().credentials() == ("node", "from-a-file")
    monkeypatch.setenv("S3_ACCESS_KEY", "me")
    monkeypatch.setenv("S3_SECRET_KEY", "from-the-environment")
    settings = StoreSettings.load()
    assert settings.credentials() == ("me", "from-the-environment")
    assert "from-the-environment" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "found neither"),
        ({"S3_ACCESS_KEY": "me"}, "found only one"),
        ({"S3_ACCESS_KEY": "me", "S3_SECRET_KEY": "x", "S3_ENDPOINT": "minio:9000"}, "S3_ENDPOINT"),
        (
            {"S3_ACCESS_KEY": "me", "S3_SECRET_KEY": "x", "S3_ENDPOINT": "http://minio:9000/models"},
            "host and port only",
        ),
        ({"S3_ACCESS_KEY": "me", "S3_SECRET_KEY": "x", "S3_CA_BUNDLE": "/nowhere.pem"}, "S3_CA_BUNDLE"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        StoreSettings.load()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_MAX_BYTES", "")
    assert CacheSettings.load().cache_max_bytes == 0
    monkeypatch.setenv("CACHE_MAX_BYTES", "-1")
    with pytest.raises(SettingsError, match="CACHE_MAX_BYTES"):
        CacheSettings.load()


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "access_key").write_text("node")
    with pytest.raises(SettingsError, match="secret_key"):
        StoreSettings.model_validate({"s3_credentials_dir": tmp_path}).credentials()


def test_a_model_needs_no_file(tmp_path: Path) -> None:
    assert load_model_file(tmp_path, "anything").node.workers == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node: {workers: 0}", "node.workers"),
        ("node: {wrokers: 2}", "wrokers"),
        ("node: {profile: throughput, dtype: bfloat16}", "remove one of them"),
        ("source: {repo: falcon}", "source.repo"),
        ("- a\n- b", "found a list"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_model_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tiny.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_model_file(tmp_path, "tiny")
    assert "tiny.yaml" in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "config/models").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_model_files_are_valid(path: Path) -> None:
    assert load_model_file(path.parent, path.stem).name == path.stem
