"""What each user of a provisioned store may do and may not, on a real MinIO, and where its keys can be seen."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import minio
import pytest
from minio.error import S3Error
from seeding.provision import credentials_in, provision
from seeding.scratch import PREFIX
from seeding.secrets import make_secrets

from tests.services import ROOT, MinioServer, free_port, running_minio, tool
from weightless.errors import AccessDenied, SettingsError, StoreUnavailable
from weightless.settings import StoreSettings
from weightless.store import Store


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("secrets")
    make_secrets(root)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[MinioServer]:
    """A MinIO that nothing but `provision` has touched."""
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        provision(server.settings, tool("mc"), secrets)
        yield server


def client(server: MinioServer, secrets: Path, consumer: str) -> minio.Minio:
    access_key, secret_key = credentials_in(secrets / consumer).credentials()
    return minio.Minio(
        f"127.0.0.1:{server.port}", access_key=access_key, secret_key=secret_key, secure=False, region="us-east-1"
    )


def settings(server: MinioServer, secrets: Path, consumer: str) -> StoreSettings:
    return credentials_in(secrets / consumer, like=server.settings)


def refused(call: object, *args: object, **kwargs: object) -> None:
    with pytest.raises(S3Error) as error:
        call(*args, **kwargs)  # type: ignore[operator]
    assert error.value.code == "AccessDenied"


def put(to: minio.Minio, bucket: str, key: str) -> str:
    import io

    return str(to.put_object(bucket, key, io.BytesIO(b"x"), 1).version_id)


def test_both_buckets_keep_versions_and_a_second_run_changes_nothing(server: MinioServer, secrets: Path) -> None:
    first = provision(server.settings, tool("mc"), secrets)
    assert provision(server.settings, tool("mc"), secrets) == first
    for bucket in ("models", "releases"):
        assert server.client().get_bucket_versioning(bucket).status == "Enabled"


@pytest.mark.parametrize("bucket", ["models", "releases"])
def test_a_node_reads_every_version_and_writes_nothing(server: MinioServer, secrets: Path, bucket: str) -> None:
    key = "node-test/a"
    old, new = put(server.client(), bucket, key), put(server.client(), bucket, key)
    node = client(server, secrets, "node")
    assert {entry.version_id for entry in node.list_objects(bucket, prefix=key, include_version=True)} == {old, new}
    assert node.get_object(bucket, key, version_id=old).data == b"x"
    refused(put, node, bucket, "node-test/b")
    refused(node.remove_object, bucket, key)
    refused(node.remove_object, bucket, key, version_id=old)
    refused(node.make_bucket, "others")


def test_a_node_may_read_the_byte_counter_it_is_measured_by(server: MinioServer, secrets: Path) -> None:
    assert Store(settings(server, secrets, "node")).bytes_sent() > 0


@pytest.mark.parametrize("bucket", ["models", "releases"])
def test_a_publisher_writes_hides_and_prunes_but_administers_nothing(
    server: MinioServer, secrets: Path, bucket: str
) -> None:
    publisher = client(server, secrets, "publisher")
    version = put(publisher, bucket, "publisher-test/a")
    publisher.remove_object(bucket, "publisher-test/a")
    assert publisher.get_object(bucket, "publisher-test/a", version_id=version).data == b"x", "a deletion only hides"
    publisher.remove_object(bucket, "publisher-test/a", version_id=version)
    refused(publisher.make_bucket, "others")
    refused(publisher.delete_bucket_policy, bucket)
    with pytest.raises(AccessDenied):
        provision(settings(server, secrets, "publisher"), tool("mc"), secrets)


def test_new_keys_take_the_place_of_old_ones(server: MinioServer, secrets: Path, tmp_path: Path) -> None:
    """Rotation: remove a consumer's folder, make its keys anew, provision."""
    make_secrets(tmp_path)
    provision(server.settings, tool("mc"), tmp_path)
    Store(settings(server, tmp_path, "node")).check()
    with pytest.raises(AccessDenied):
        Store(settings(server, secrets, "node")).check()
    provision(server.settings, tool("mc"), secrets)
    Store(settings(server, secrets, "node")).check()


def test_no_secret_is_ever_an_argument_of_a_program(server: MinioServer, secrets: Path, tmp_path: Path) -> None:
    """Everybody on a machine may list its processes with their arguments; their environment, only its owner."""
    watched = tmp_path / "mc"
    watched.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\nls -ln "$2" >> {tmp_path}/modes\nexec {tool("mc")} "$@"\n'
    )
    watched.chmod(0o755)
    provision(server.settings, str(watched), secrets)
    arguments = (tmp_path / "arguments").read_text()
    assert "policy\nattach" in arguments
    known = [server.secret_key, *(credentials_in(secrets / name).credentials()[1] for name in ("publisher", "node"))]
    assert not [secret for secret in known if secret in arguments]
    modes = [line.split()[0] for line in (tmp_path / "modes").read_text().splitlines() if "config.json" in line]
    assert set(modes) == {"-rw-------"}
    folders = {line for line in arguments.splitlines() if Path(line).name.startswith(PREFIX)}
    assert folders
    assert not [folder for folder in folders if Path(folder).exists()], "the configuration must not outlive the call"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "minio-init")))
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "MC": tool("mc"), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [sys.executable, "-m", "seeding", *arguments], env=base | environment, capture_output=True, text=True, cwd=ROOT
    )


def test_a_first_start_serves_the_samples_and_a_second_leaves_what_was_decided(
    samples: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secrets = tmp_path / "secrets"
    assert run("secrets", "--dir", str(secrets)).returncode == 0
    assert stat.S_IMODE((secrets / "minio").stat().st_mode) == 0o700
    root = credentials_in(secrets / "minio").credentials()
    folder = tmp_path_factory.mktemp("minio")
    server = MinioServer(folder, free_port(), access_key=root[0], secret_key=root[1])
    server.start()
    try:
        told = {"S3_ENDPOINT": server.endpoint, "SAMPLES_DIR": str(samples)}
        first = run("init", "--secrets", str(secrets), "--json", **told)
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout) == {"seeded": ["falcon-tiny v1", "minilm v1"]}

        told["S3_CREDENTIALS_DIR"] = str(secrets / "publisher")
        second = run("seed", "falcon-tiny", "--from", str(samples / "falcon-tiny-v2"), "--json", **told)
        assert second.returncode == 0, second.stderr
        assert json.loads(second.stdout)["serving"] == "v2"

        again = run("init", "--secrets", str(secrets), "--json", **told)
        assert json.loads(again.stdout) == {"seeded": []}
        store = Store(settings(server, secrets, "node"))
        assert store.serving("falcon-tiny").name == "v2", "a later start must not undo a promotion"
        assert store.releases("minilm") == ["v1"]
    finally:
        server.stop()


def test_wrong_keys_and_a_store_that_is_away_are_one_clear_message(server: MinioServer, secrets: Path) -> None:
    wrong = server.settings.model_copy(update={"s3_access_key": "nobody"})
    with pytest.raises(AccessDenied, match=r"refused access key nobody.*S3_CREDENTIALS_DIR"):
        provision(wrong, tool("mc"), secrets)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9.*cannot be reached"):
        provision(server.settings_at("http://127.0.0.1:9"), tool("mc"), secrets)
    with pytest.raises(SettingsError, match=r"required MinIO's client mc, found no program 'no-mc'"):
        provision(server.settings, "no-mc", secrets)
    ended = run("init", S3_ENDPOINT="http://127.0.0.1:9", S3_ACCESS_KEY="a", S3_SECRET_KEY="b")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "is it running?" in ended.stderr


def test_keys_in_the_environment_mean_a_store_that_is_not_ours_to_administer(
    server: MinioServer, secrets: Path, samples: Path
) -> None:
    """The compose file always names the folder of the stack's own keys; another store has never heard of them."""
    told = {**server.environment, "SAMPLES_DIR": str(samples)}
    other = secrets.parent / "keys-of-nobody"
    ended = run("init", "--secrets", str(other), "--model", "falcon-tiny", **told)
    assert ended.returncode == 0, ended.stderr
    assert server.store().serving("falcon-tiny").name == "v1"
