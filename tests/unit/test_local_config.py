"""Settings of the stack on this machine: `.env` under the environment, and what must be refused before anything starts."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from local import ports, say
from local.config import Setup, read_env_file
from local.errors import LocalError


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AGENT_PORT=18080\nLOCUST_PORT=18089\n")
    setup = Setup.load({"AGENT_PORT": "28080"}, tmp_path)
    assert (setup.ports["AGENT_PORT"], setup.ports["LOCUST_PORT"], setup.ports["MINIO_PORT"]) == (28080, 18089, 9000)
    assert setup.run == tmp_path / ".run"


def test_env_lines_are_read_as_compose_reads_them(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# comment\n\nA=plain\nB='with space'\nC=\"x#y\"\nD=value # said\nexport E=5\nF=\n")
    assert read_env_file(path) == {"A": "plain", "B": "with space", "C": "x#y", "D": "value", "E": "5", "F": ""}
    path.write_text("KEY=a#b\\c d  # said\nNONE= # said\n")
    assert read_env_file(path) == {"KEY": "a#b\\c d", "NONE": ""}, "not a character of a key is lost"


def test_no_file_is_no_settings(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env") == {}


@pytest.mark.parametrize("line", ["AGENT_PORT 8080", "1X=2", "A='open"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"GOOD=1\n{line}\n")
    with pytest.raises(LocalError, match=r"\.env:2"):
        read_env_file(tmp_path / ".env")


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "80 80"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(LocalError, match="AGENT_PORT: required a port from 1 to 65535"):
        Setup.load({"AGENT_PORT": port}, tmp_path)


def test_two_doors_cannot_share_a_port(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="AGENT_PORT and MINIO_PORT are both 9000"):
        Setup.load({"AGENT_PORT": "9000"}, tmp_path)


def test_a_stack_open_to_the_network_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no API_KEY is set"):
        Setup.load({"BIND": "0.0.0.0"}, tmp_path)
    with pytest.raises(LocalError, match="BIND: required an address"):
        Setup.load({"BIND": "everywhere"}, tmp_path)
    (tmp_path / "key").write_text("from-a-file\n")
    setup = Setup.load({"BIND": "0.0.0.0", "API_KEY_FILE": "key"}, tmp_path)
    assert (setup.api_key, setup.url("AGENT_PORT")) == ("from-a-file", "http://127.0.0.1:8080")


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="API_KEY_FILE: required a readable file"):
        Setup.load({"API_KEY_FILE": "nowhere"}, tmp_path)


def test_another_store_replaces_the_bundled_one(tmp_path: Path) -> None:
    assert Setup.load({}, tmp_path).own_store
    assert not Setup.load({"S3_ENDPOINT": "https://s3.example"}, tmp_path).own_store


def test_a_port_in_use_is_told_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (said,) = ports.busy({"AGENT_PORT": port}, "127.0.0.1").values()
        assert f"pid {os.getpid()}, " in said
        assert psutil.Process().cmdline()[0][:20] in said
    assert ports.busy({"AGENT_PORT": port}, "127.0.0.1") == {}


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (13.8e9, "13.8 GB"), (2e13, "20.0 TB")]
)
def test_sizes_for_people(count: float, said: str) -> None:
    assert say.size(count) == said
