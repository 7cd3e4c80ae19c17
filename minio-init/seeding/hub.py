"""A model's files from the Hugging Face Hub, at one commit, resumed where an earlier attempt ended.

huggingface_hub resolves, lists and transfers. Its own folder download throws a partial file away when the process ends
(each attempt has a temporary name of its own), which costs up to 10 GB for Falcon-7B's first shard; so the partial file
is kept here, and the library's transfer function is told where to go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url, http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers

from seeding.folder import is_other_format, is_part
from weightless.errors import FetchFailed, InvalidFolder, NotEnoughDisk, NotFound, VerificationFailed
from weightless.modelfile import HubSource
from weightless.paths import checked_path

#: taken unless the model's file names its own: what transformers and sentence-transformers read
PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.txt", "*.model", "*.tiktoken", "*.jinja")
CODE_PATTERNS = ("*.py",)
_CONNECTIONS = 4


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: path, bytes, and the digest that the hub names (SHA-256 of large files, git's of small)."""

    path: str
    size: int
    sha256: str | None
    git_blob: str


@dataclass(frozen=True)
class Snapshot:
    """What is to be downloaded: the chosen files of one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class Hub:
    """A hub at `endpoint`, asked with `token` if there is one."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | bool = token or False  # False: no token of whoever runs this is picked up by itself
        self._api = HfApi(endpoint=self._endpoint, token=self._token)

    def snapshot(self, source: HubSource, *, with_code: bool) -> Snapshot:
        """Resolve a revision to its commit and choose the files.

        Raises NotFound (repository or revision), FetchFailed (the hub cannot be reached), InvalidFolder (nothing to take).
        """
        patterns = source.patterns or (PATTERNS + (CODE_PATTERNS if with_code else ()))
        with self._errors(source.repo, source.revision):
            commit = self._api.model_info(source.repo, revision=source.revision).sha
            assert commit is not None
            listed = [
                entry
                for entry in self._api.list_repo_tree(source.repo, recursive=True, revision=commit)
                if isinstance(entry, RepoFile)
            ]
        files = tuple(
            HubFile(
                checked_path(entry.path),
                entry.lfs.size if entry.lfs else entry.size,
                entry.lfs.sha256 if entry.lfs else None,
                entry.blob_id,
            )
            for entry in listed
            if _wanted(entry.path, patterns)
        )
        if not any(file.path.endswith(".safetensors") for file in files):
            weights = [entry.path for entry in listed if fnmatch(entry.path, "*.bin") or "safetensors" in entry.path]
            raise InvalidFolder(
                f"{source.repo} at {commit[:12]}: required *.safetensors among the files that match {', '.join(patterns)}, "
                f"found {', '.join(weights[:3]) or 'no weights'}; take a revision that has them, or change source.patterns "
                "in the model's file"
            )
        return Snapshot(source.repo, commit, files)

    def download(self, snapshot: Snapshot, folder: Path, progress: Callable[[int], None]) -> None:
        """Bring `folder` to hold exactly the snapshot's files, each checked against the digest that the hub names.

        `progress` is told bytes, first those that are there already. One process at a time works on a folder.

        Raises FetchFailed, VerificationFailed, and NotFound when a file vanished.
        """
        with _locked(folder), self._errors(snapshot.repo, snapshot.commit):
            keep = {file.path for file in snapshot.files}
            for path in [path for path in folder.rglob("*") if path.is_file()]:
                relative = path.relative_to(folder).as_posix()
                if relative not in keep and not relative.startswith(".parts/"):
                    path.unlink()  # of an earlier revision
            stop = threading.Event()

            def told(count: int) -> None:
                if stop.is_set():
                    raise InterruptedError
                progress(count)

            pool = ThreadPoolExecutor(_CONNECTIONS, "hub")
            try:
                futures = [pool.submit(self._file, snapshot, file, folder, told) for file in snapshot.files]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
            shutil.rmtree(folder / ".parts", ignore_errors=True)

    def _file(self, snapshot: Snapshot, file: HubFile, folder: Path, progress: Callable[[int], None]) -> None:
        target = folder / file.path
        if target.is_file() and target.stat().st_size == file.size and _matches(target, file):
            progress(file.size)
            return
        # Named by its content: a partial file of another commit is gone on with only if it is the same file.
        part = folder / ".parts" / (file.sha256 or file.git_blob)
        part.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(snapshot.repo, file.path, revision=snapshot.commit, endpoint=self._endpoint)
        metadata = get_hf_file_metadata(url, token=self._token, retry_on_errors=True)
        headers = build_hf_headers(token=self._token)
        if httpx2.URL(metadata.location).host != httpx2.URL(url).host:
            headers.pop("authorization", None)  # a signed address of another host: not for our token
        with part.open("ab") as out:
            have = out.tell()
            if have > file.size:
                out.truncate(0)
                have = 0
            progress(have)
            http_get(
                metadata.location,
                out,
                resume_size=have,
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.path,
                _tqdm_bar=cast(Any, _Bar(progress)),
            )
        if not _matches(part, file):
            part.unlink()
            raise VerificationFailed(
                f"{snapshot.repo}/{file.path} at {snapshot.commit[:12]}: required the digest that the hub names, "
                f"{file.sha256 or file.git_blob}, found another; the partial download was thrown away, seed again"
            )
        part.replace(target)

    @contextlib.contextmanager
    def _errors(self, repo: str, revision: str) -> Iterator[None]:
        what = f"{repo} at {self._endpoint}"
        try:
            yield
        except RevisionNotFoundError as error:
            raise NotFound(
                f"{what}: required revision {revision!r}, found none; name a branch, tag or commit"
            ) from error
        except GatedRepoError as error:
            raise NotFound(
                f"{what}: its owner grants access on request; ask for it on the model's page, then set HF_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            raise NotFound(
                f"{what}: no such repository, or a private one; check the name (HF=org/repo), and set HF_TOKEN if it is private"
            ) from error
        except HFValidationError as error:
            raise NotFound(f"{what}: required a repository as org/name: {error}") from error
        except HfHubHTTPError as error:
            raise FetchFailed(
                f"{what}: the hub answered HTTP {error.response.status_code}: {error}; try again"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NotEnoughDisk(
                    f"{what}: the disk is full; make room and seed again, it goes on where it was"
                ) from error
            raise FetchFailed(f"{what}: {error}; seed again, it goes on where it was") from error
        except httpx2.HTTPError as error:
            raise FetchFailed(
                f"{what}: the hub cannot be reached or broke off ({error}); seed again, it goes on where it was. Behind a "
                "proxy set HTTPS_PROXY; without the internet use FROM=<folder> or HF_ENDPOINT"
            ) from error


class _Bar:
    """What http_get reports to: it wants tqdm's methods, and takes bytes back when a server ignores a range."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def update(self, count: float | None = 1) -> None:
        self._progress(int(count or 0))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def bytes_present(snapshot: Snapshot, folder: Path) -> int:
    """How many of the snapshot's bytes lie in `folder` already, whole files and parts."""
    present = 0
    for file in snapshot.files:
        for path in (folder / file.path, folder / ".parts" / (file.sha256 or file.git_blob)):
            if path.is_file():
                present += min(path.stat().st_size, file.size)
                break
    return present


def _wanted(path: str, patterns: tuple[str, ...]) -> bool:
    if not is_part(path) or is_other_format(path):
        return False
    return any(fnmatch(path, pattern) for pattern in patterns)


def _matches(path: Path, file: HubFile) -> bool:
    """Whether the file has the digest that the hub names: SHA-256 for large files, that of a git blob for the others."""
    if file.sha256 is not None:
        digest, wanted = hashlib.sha256(), file.sha256
    else:
        digest, wanted = hashlib.sha1(usedforsecurity=False), file.git_blob
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb", buffering=0) as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == wanted


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes must not append to one partial file; the kernel's lock ends with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed(
                f"{folder}: another process is downloading into this folder; wait for it, or stop it"
            ) from None
        yield
