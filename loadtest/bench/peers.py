"""One download by one other client, as its users tune it: `python peers.py CLIENT ENDPOINT PREFIX FOLDER`.

The keys come from the environment. It runs in an environment of its own (requirements/bench.txt), imports nothing of this
project, and prints the seconds that the download took, without the interpreter's start and the imports. No client here checks
a digest.
"""

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1 << 20
BUCKET = "models"
LARGE = 64 * MIB
Download = Callable[[], None]


def minio_py(endpoint: str, prefix: str, folder: Path) -> Download:
    """`fget_object`, eight files at once."""
    import minio

    client = minio.Minio(urlsplit(endpoint).netloc, *_keys(), secure=False, region="us-east-1")

    def one(name: str) -> None:
        client.fget_object(bucket_name=BUCKET, object_name=name, file_path=str(folder / name.removeprefix(prefix)))

    def run() -> None:
        names = [str(entry.object_name) for entry in client.list_objects(BUCKET, prefix, recursive=True)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    return run


def minio_py_ranges(endpoint: str, prefix: str, folder: Path) -> Download:
    """`get_object` by ranges of 64 MiB, four at once, as a user writes it who wants more than one connection a file."""
    import minio

    client = minio.Minio(urlsplit(endpoint).netloc, *_keys(), secure=False, region="us-east-1")

    def part(job: tuple[str, int, int]) -> None:
        name, offset, length = job
        answer = client.get_object(bucket_name=BUCKET, object_name=name, offset=offset, length=length)
        with (folder / name.removeprefix(prefix)).open("r+b", buffering=0) as file:
            file.seek(offset)
            for chunk in answer.stream(MIB):
                file.write(chunk)
        answer.release_conn()

    def run() -> None:
        entries = list(client.list_objects(BUCKET, prefix, recursive=True))
        jobs = []
        for entry in entries:
            name, size = str(entry.object_name), int(entry.size or 0)
            (folder / name.removeprefix(prefix)).touch()
            jobs += [(name, offset, min(LARGE, size - offset)) for offset in range(0, size, LARGE)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(part, jobs))

    return run


def boto3(endpoint: str, prefix: str, folder: Path) -> Download:
    """`download_file` with ten threads and parts of 64 MiB; small files eight at once."""
    import boto3 as library  # type: ignore[import-not-found]
    from boto3.s3.transfer import TransferConfig  # type: ignore[import-not-found]
    from botocore.config import Config  # type: ignore[import-not-found]

    access_key, secret_key = _keys()
    client = library.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(max_pool_connections=32),
    )
    transfer = TransferConfig(multipart_threshold=LARGE, multipart_chunksize=LARGE, max_concurrency=10)

    def one(name: str) -> None:
        client.download_file(BUCKET, name, str(folder / name.removeprefix(prefix)), Config=transfer)

    def run() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    return run


def obstore(endpoint: str, prefix: str, folder: Path) -> Download:
    """`get` as a stream with chunks of 4 MiB, eight files at once."""
    import obstore as library  # type: ignore[import-not-found]
    from obstore.store import S3Store  # type: ignore[import-not-found]

    access_key, secret_key = _keys()
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=access_key,
        secret_access_key=secret_key,
        client_options={"allow_http": True},
    )

    def one(name: str) -> None:
        with (folder / name.removeprefix(prefix)).open("wb", buffering=0) as file:
            for chunk in library.get(store, name).stream(min_chunk_size=4 * MIB):
                file.write(chunk)

    def run() -> None:
        names = [entry["path"] for page in library.list(store, prefix) for entry in page]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    return run


def runai(endpoint: str, prefix: str, folder: Path) -> Download:
    """Run:ai Model Streamer with four connections and ranges of 64 MiB: into memory, nothing is written to `folder`."""
    import boto3 as library
    from runai_model_streamer.file_streamer.file_streamer import FileStreamer  # type: ignore[import-not-found]
    from runai_model_streamer.file_streamer.requests_iterator import FileChunks  # type: ignore[import-not-found]

    access_key, secret_key = _keys()
    os.environ |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "RUNAI_STREAMER_CONCURRENCY": "4"}
    os.environ |= {"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0"}
    client = library.client("s3", endpoint_url=endpoint, region_name="us-east-1")

    def run() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        entries = [(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", ())]
        wanted = [
            FileChunks.contiguous(n, f"s3://{BUCKET}/{key}", 0, [min(LARGE, size - at) for at in range(0, size, LARGE)])
            for n, (key, size) in enumerate(entries)
        ]
        with FileStreamer() as streamer:
            streamer.stream_files(wanted)
            found = sum(tensor.numel() * tensor.element_size() for _, _, tensor in streamer.get_chunks())
        if found != sum(size for _, size in entries):
            raise ValueError(f"required {sum(size for _, size in entries)} bytes, found {found}")

    return run


CLIENTS = {
    "minio-py": minio_py,
    "minio-py ranges": minio_py_ranges,
    "boto3": boto3,
    "obstore": obstore,
    "runai to memory": runai,
}


def _keys() -> tuple[str, str]:
    return os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"]


if __name__ == "__main__":
    client, endpoint, prefix, folder = sys.argv[1:]
    download = CLIENTS[client](endpoint, prefix, Path(folder))
    began = time.perf_counter()
    download()
    print(time.perf_counter() - began)
