"""Keys are made once, readable by their owner alone, and never replaced."""

import os
import stat
from pathlib import Path

import pytest
from seeding.secrets import ACCESS_KEYS, make_secrets, owners_of

from weightless.errors import SettingsError


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_one_pair_for_each_consumer_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    assert make_secrets(tmp_path) == list(ACCESS_KEYS)
    first = contents(tmp_path)
    assert set(first) == {f"{consumer}/{key}" for consumer in ACCESS_KEYS for key in ("access_key", "secret_key")}
    assert len({first[f"{consumer}/secret_key"] for consumer in ACCESS_KEYS}) == len(ACCESS_KEYS)
    assert all(len(first[f"{consumer}/secret_key"]) == 40 for consumer in ACCESS_KEYS)
    assert make_secrets(tmp_path) == []
    assert contents(tmp_path) == first


def test_nobody_but_the_owner_may_read_them(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    for consumer in ACCESS_KEYS:
        assert stat.S_IMODE((tmp_path / consumer).stat().st_mode) == 0o700
        for name in ("access_key", "secret_key"):
            assert stat.S_IMODE((tmp_path / consumer / name).stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_files_belong_to_the_service_that_reads_them(tmp_path: Path) -> None:
    make_secrets(tmp_path, {"node": 4321})
    assert {path.stat().st_uid for path in [tmp_path / "node", *(tmp_path / "node").iterdir()]} == {4321}
    assert (tmp_path / "minio" / "secret_key").stat().st_uid == 0


def test_a_crash_between_the_two_files_is_completed_and_the_secret_kept(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    secret = (tmp_path / "node" / "secret_key").read_text()
    (tmp_path / "node" / "access_key").unlink()
    assert make_secrets(tmp_path) == ["node"]
    assert (tmp_path / "node" / "secret_key").read_text() == secret
    assert (tmp_path / "node" / "access_key").read_text() == ACCESS_KEYS["node"]


@pytest.mark.parametrize("pair", ["minio", "minio=", "minio=root", "=5"])
def test_an_owner_that_is_none_is_refused(pair: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="required"):
        make_secrets(tmp_path, owners_of([pair]))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"required to write .*file"):
        make_secrets(tmp_path / "file")
