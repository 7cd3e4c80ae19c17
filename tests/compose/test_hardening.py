"""What a service may not do, whatever runs in it, and what nobody but its consumer may know."""

import json

import pytest

from tests.compose.stack import Stack, docker, images, inspect

LONG_RUNNING = ("minio", "torchserve", "locust")
ALL = ("secrets", "minio-init", *LONG_RUNNING)


@pytest.mark.parametrize("service", ALL)
def test_a_container_has_no_more_rights_than_it_needs(stack: Stack, service: str) -> None:
    host = stack.inspect(service)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert not host["Privileged"]


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_nothing_runs_as_root_or_can_change_its_own_program(stack: Stack, service: str) -> None:
    said = stack.compose(
        "exec", "-T", service, "bash", "-c", "id -u; touch /usr/local/bin/x 2>&1; grep CapEff /proc/1/status"
    )
    uid, refused, capabilities = said.stdout.splitlines()
    assert uid == "1000"
    assert "Read-only file system" in refused
    assert int(capabilities.split()[1], 16) == 0


@pytest.mark.parametrize("port", [8085, 8086, 8087])
def test_torchserve_itself_is_reached_by_nobody_but_the_agent(stack: Stack, port: int) -> None:
    """Its management API loads any model and its workflow API fetches any URL, without a key."""
    ask = ["python", "-c", f"import socket; socket.create_connection(('torchserve', {port}), 5)"]
    there = ["python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"]
    refused = stack.compose("exec", "-T", "locust", *ask, check=False)
    assert "ConnectionRefusedError" in refused.stderr
    stack.compose("exec", "-T", "torchserve", *there)


def test_the_baselines_network_has_no_way_out_and_nobody_else_on_it(stack: Stack) -> None:
    config = json.loads(stack.compose("--profile", "*", "config", "--format", "json").stdout)
    assert config["networks"]["baseline"]["internal"] is True
    on_it = {name for name, service in config["services"].items() if "baseline" in service.get("networks", {})}
    assert on_it == {"torchserve", "baseline"}
    assert set(config["services"]["baseline"]["networks"]) == {"baseline"}
    assert not config["services"]["baseline"].get("ports")


def test_open_to_the_network_without_a_key_is_refused(stack: Stack) -> None:
    refused = stack.compose("run", "--rm", "--no-deps", "-T", "-e", "BIND=0.0.0.0", "torchserve", check=False)
    assert refused.returncode == 2
    assert "BIND=0.0.0.0 publishes the agent beyond this machine: required API_KEY or API_KEY_FILE" in refused.stderr


def test_bind_reaches_the_agent(stack: Stack) -> None:
    """Else the check above would pass and the published stack would be open."""
    config = json.loads(stack.compose("config", "--format", "json", settings={"BIND": "0.0.0.0"}).stdout)
    assert config["services"]["torchserve"]["environment"]["BIND"] == "0.0.0.0"
    assert {port["host_ip"] for port in config["services"]["torchserve"]["ports"]} == {"0.0.0.0"}


def secrets_of(stack: Stack) -> list[str]:
    read = "import pathlib; print(*(p.read_text() for p in sorted(pathlib.Path('/secrets').glob('*/secret_key'))))"
    return stack.command("-c", read).split()


def test_secrets_stay_in_their_volumes(stack: Stack) -> None:
    secrets = secrets_of(stack)
    assert len(set(secrets)) == 3
    containers = [stack.inspect(service) for service in ALL]
    places = {
        "logs": stack.logs(),
        "containers": json.dumps(containers),
        "images": json.dumps([inspect(image) for image in images()]),
        "layers": "".join(docker("history", "--no-trunc", image) for image in images()),
        "processes": "".join(
            docker("top", container["Id"], "-ef") for container in containers if container["State"]["Running"]
        ),
    }
    assert {place for place, text in places.items() if any(secret in text for secret in secrets)} == set()


@pytest.mark.parametrize(("service", "sees"), [("minio", ["minio"]), ("torchserve", ["node"]), ("locust", [])])
def test_a_service_sees_its_own_keys_only(stack: Stack, service: str, sees: list[str]) -> None:
    found = stack.compose(
        "exec", "-T", service, "bash", "-c", "ls -d /secrets/*/access_key 2>/dev/null | cut -d/ -f3", check=False
    )
    assert found.stdout.split() == sees


def test_an_image_holds_no_keys(stack: Stack) -> None:
    """An image with keys in it would hand the same ones to everybody who starts it."""
    for image in images():
        assert docker("run", "--rm", "--entrypoint", "find", image, "/secrets", "-type", "f") == "", image
