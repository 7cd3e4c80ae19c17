"""The two buckets: models as people lay them out, and releases with the alias that says which one is served.

Reads go through minio-py. A conditional write is a presigned PUT that carries the condition as a header, because minio-py's
own calls cannot send one. Nothing here writes model files: that is the work of mc, see `minio-init/`.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

import minio
import urllib3
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.response import BaseHTTPResponse

from weightless.errors import (
    AccessDenied,
    Conflict,
    InvalidRelease,
    ModelNotFound,
    NotFound,
    ReleaseNotFound,
    StoreUnavailable,
)
from weightless.paths import checked_model, checked_release, release_number
from weightless.release import Alias, AliasVersion, Release
from weightless.settings import StoreSettings

ALIAS = "serving"
COPIED_FROM = "x-amz-meta-copied-from"
_DELETED_AT_ONCE = 100  # of the 1000 that S3 takes: a slow disk must be done with them before a read times out
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken"}
_ABSENT = {
    "NoSuchKey",
    "NoSuchVersion",
    "NoSuchBucket",
    "MethodNotAllowed",
}  # MinIO's answer for a version that is a deletion


class ObjectVersion(NamedTuple):
    """One version of one object in the bucket of models. `deleted`: it is a marker that hides the object."""

    key: str
    version_id: str
    size: int
    modified: datetime
    latest: bool
    deleted: bool


class Store:
    """A connection to the buckets. Safe to use from many threads; make a new one after a fork.

    Every method raises StoreUnavailable when the store cannot be reached and AccessDenied when it refuses the credentials.
    """

    def __init__(self, settings: StoreSettings, connections: int = 8) -> None:
        self.settings = settings
        access_key, self._secret_key = settings.credentials()
        self._access_key = access_key
        # Reads are retried by those who know how much of them is lost; here only a connection that could not be made.
        self._http = urllib3.PoolManager(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=5, read=30),
            retries=urllib3.Retry(total=2, connect=2, read=0, redirect=0, status=0, other=0, backoff_factor=0.1),
            ca_certs=str(settings.s3_ca_bundle) if settings.s3_ca_bundle else None,
        )
        # With the region given, minio-py asks for no bucket's location: one request less, and one permission less.
        self._client = minio.Minio(
            settings.netloc,
            access_key=access_key,
            secret_key=self._secret_key,
            secure=settings.secure,
            region=settings.s3_region,
            http_client=self._http,
        )

    # ---- what exists

    def check(self) -> None:
        """Raise unless both buckets can be listed with these credentials."""
        for bucket in (self.settings.models_bucket, self.settings.releases_bucket):
            with self._errors(f"bucket {bucket}"):
                next(iter(self._client.list_objects(bucket, prefix="")), None)

    def models(self) -> list[str]:
        """Models that have at least one release or an alias, sorted."""
        with self._errors(f"bucket {self.settings.releases_bucket}"):
            listed = self._client.list_objects(self.settings.releases_bucket)
            return sorted(str(entry.object_name).rstrip("/") for entry in listed if entry.is_dir)

    def releases(self, model: str) -> list[str]:
        """Names of a model's releases, oldest first; empty for a model that has none."""
        prefix = f"{checked_model(model)}/"
        with self._errors(f"releases of {model}"):
            listed = self._client.list_objects(self.settings.releases_bucket, prefix=prefix)
            names = [str(entry.object_name).removeprefix(prefix) for entry in listed if not entry.is_dir]
        return sorted(
            (name[:-5] for name in names if name.startswith("v") and name.endswith(".json")), key=release_number
        )

    def object_versions(self, model: str) -> list[ObjectVersion]:
        """All versions of all objects of a model's folder, by key, newest first."""
        prefix = f"{checked_model(model)}/"
        with self._errors(f"files of {model}"):
            listed = self._client.list_objects(
                self.settings.models_bucket, prefix=prefix, recursive=True, include_version=True
            )
            return [_object_version(entry) for entry in listed]

    def copied_from(self, key: str) -> str | None:
        """The version that what a key shows was copied from, if it says so: `x-amz-meta-copied-from`."""
        with self._errors(f"{self.settings.models_bucket}/{key}"):
            return (self._client.stat_object(self.settings.models_bucket, key).metadata or {}).get(COPIED_FROM)

    # ---- releases

    def release(self, model: str, name: str, version_id: str | None = None, digest: str | None = None) -> Release:
        """Read a manifest: the named version of it if given, and only if it has the digest that is given.

        Raises:
            ModelNotFound, ReleaseNotFound: it does not exist.
            InvalidRelease: it is malformed, or it is another release than the one that the digest names.
        """
        key = f"{checked_model(model)}/{checked_release(name)}.json"
        try:
            raw, found_version, _ = self._read(key, version_id)
        except NotFound:
            existing = self.releases(model)
            if not existing:
                raise ModelNotFound(
                    f"model {model}: no release exists; publish one with `make seed MODEL={model}`"
                ) from None
            raise ReleaseNotFound(
                f"release {name} of {model}{f' (version {version_id})' if version_id else ''}: not in bucket "
                f"{self.settings.releases_bucket}; there are {', '.join(existing)}"
            ) from None
        release = Release.from_json(name, raw, version_id or found_version)
        if release.model != model:
            raise InvalidRelease(
                f"release {name} of {model}: required a manifest of {model}, found one of {release.model}"
            )
        if digest is not None and release.digest != digest:
            raise InvalidRelease(
                f"release {name} of {model}: required digest {digest}, found {release.digest}: the manifest was replaced "
                "after it was published; publish anew and promote that release"
            )
        return release

    def put_release(self, release: Release) -> Release:
        """Write a manifest that must not exist yet, and return it as it lies in the bucket; Conflict if it exists."""
        key = f"{release.model}/{release.name}.json"
        version_id = self._put_if(
            key, release.to_json(), {"If-None-Match": "*"}, f"release {release.name} of {release.model}"
        )
        return release.model_copy(update={"manifest_version": version_id})

    # ---- the alias

    def alias(self, model: str) -> AliasVersion | None:
        """What should be served now, or None if nothing should."""
        try:
            raw, version_id, response = self._read(f"{checked_model(model)}/{ALIAS}", None)
        except NotFound:
            return None
        modified = datetime.strptime(response.headers["Last-Modified"], "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
        etag = response.headers["ETag"].strip('"')
        return AliasVersion(
            alias=Alias.from_json(model, raw), version_id=version_id, etag=etag, modified=modified, latest=True
        )

    def alias_etags(self) -> dict[str, str]:
        """Model → ETag of its alias, in one listing: the cheap way to see that nothing changed."""
        with self._errors(f"bucket {self.settings.releases_bucket}"):
            listed = self._client.list_objects(self.settings.releases_bucket, recursive=True)
            keys = {str(entry.object_name): str(entry.etag) for entry in listed}
        return {key.removesuffix(f"/{ALIAS}"): etag for key, etag in keys.items() if key.endswith(f"/{ALIAS}")}

    def serving(self, model: str) -> Release:
        """The release that the alias points at, checked against the alias's digest.

        Raises:
            ModelNotFound: the model has no alias.
            InvalidRelease: the manifest is not the one that the alias names.
        """
        version = self.alias(model)
        if version is None or version.alias is None:
            releases = self.releases(model)
            hint = (
                f"promote one of {', '.join(releases)}" if releases else f"publish one with `make seed MODEL={model}`"
            )
            raise ModelNotFound(f"model {model}: no release is being served; {hint}")
        alias = version.alias
        return self.release(model, alias.release, version_id=alias.manifest_version, digest=alias.digest)

    def alias_history(self, model: str) -> list[AliasVersion]:
        """Every value that the alias ever had, newest first."""
        key = f"{checked_model(model)}/{ALIAS}"
        with self._errors(f"history of {model}"):
            listed = self._client.list_objects(
                self.settings.releases_bucket, prefix=key, recursive=True, include_version=True
            )
            entries = [entry for entry in listed if entry.object_name == key]
        history = [self._alias_version(model, key, entry) for entry in entries]
        return sorted(history, key=lambda version: (version.latest, version.modified), reverse=True)

    def _alias_version(self, model: str, key: str, entry: minio.datatypes.Object) -> AliasVersion:
        alias, wrong = None, None
        try:
            if not entry.is_delete_marker:
                alias = Alias.from_json(model, self._read(key, str(entry.version_id))[0])
        except InvalidRelease as error:  # shown, and the others too
            wrong = str(error)
        return AliasVersion(
            alias=alias,
            version_id=str(entry.version_id),
            etag=str(entry.etag or "").strip('"'),
            modified=entry.last_modified or datetime.fromtimestamp(0, UTC),
            latest=str(entry.is_latest).lower() == "true",
            error=wrong,
        )

    def put_alias(self, model: str, alias: Alias, expected: AliasVersion | None) -> None:
        """Point the alias at a release, if it is still what the caller saw (None: it did not exist); else Conflict."""
        condition = {"If-None-Match": "*"} if expected is None else {"If-Match": f'"{expected.etag}"'}
        self._put_if(f"{checked_model(model)}/{ALIAS}", alias.to_json(), condition, f"alias of {model}")

    def remove_alias(self, model: str) -> None:
        """Let nothing of the model be served from now on; the removal is one more entry of its history."""
        with self._errors(f"alias of {model}"):
            self._client.remove_object(self.settings.releases_bucket, f"{checked_model(model)}/{ALIAS}")

    def delete_versions(self, versions: Sequence[ObjectVersion]) -> list[ObjectVersion]:
        """Delete them from the bucket of models for good, and return those that object lock keeps."""
        bucket, kept = self.settings.models_bucket, []
        what = f"deleting object versions of bucket {bucket}"
        for start in range(0, len(versions), _DELETED_AT_ONCE):
            some = {(one.key, one.version_id): one for one in versions[start : start + _DELETED_AT_ONCE]}
            with self._errors(what):
                failed = list(self._client.remove_objects(bucket, [DeleteObject(*names) for names in some]))
            for error in failed:
                if "WORM protected" not in (error.message or ""):
                    if error.code in _DENIED:
                        self._deny(what, error.code)
                    raise StoreUnavailable(f"{what}: {error.name} was answered {error.code}: {error.message}")
                kept.append(some[error.name or "", error.version_id or ""])
        return kept

    # ---- bytes

    @contextlib.contextmanager
    def open(
        self,
        key: str,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        bucket: str | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        """A GET whose body is read by the caller; `length` None is up to the end, else at least 1 byte.

        The answer's status is the caller's to check: 200 where a range was asked for means that the whole object comes.
        """
        bucket = bucket or self.settings.models_bucket
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-" + (str(offset + length - 1) if length is not None else "")
        with self._errors(f"{bucket}/{key}{f' (version {version_id})' if version_id else ''}"):
            response = self._client.get_object(bucket, key, request_headers=headers, version_id=version_id)
            try:
                yield response
            except BaseException:
                response.close()  # bytes may be left on the wire: the connection cannot be used again
                raise
            else:
                if response.length_remaining:
                    response.close()
            finally:
                response.release_conn()

    def bytes_sent(self, bucket: str | None = None) -> int:
        """Bytes that MinIO has sent to S3 clients since it started, by its own counter; of one bucket, if it is named.

        The policy that is required is admin:Prometheus.
        """
        import jwt  # only measurements need it

        # MinIO allows its users 40 bytes where RFC 7518 wants 64; the token is checked by MinIO alone and lives a minute.
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        claims = {"exp": int(time.time()) + 60, "sub": self._access_key, "iss": "prometheus"}
        token = jwt.encode(claims, self._secret_key, algorithm="HS512")
        place, counter = ("api/requests", "minio_api_requests_traffic_sent_bytes")
        if bucket is not None:  # of a bucket, MinIO calls what it sent received, and the other way round (seen)
            place, counter = (f"bucket/api/{bucket}", "minio_bucket_api_traffic_received_bytes")
        url = f"{str(self.settings.s3_endpoint).rstrip('/')}/minio/metrics/v3/{place}"  # v2 lags by 10 s
        with self._errors("MinIO's metrics"):
            response = self._http.request("GET", url, headers={"Authorization": f"Bearer {token}"})
        if response.status == 403:
            raise AccessDenied(f"MinIO's metrics: access key {self._access_key} lacks the permission admin:Prometheus")
        prefix, wanted = f"{counter}{{", 'type="s3"'
        counts = [line for line in response.data.decode().splitlines() if line.startswith(prefix) and wanted in line]
        if response.status != 200 or not counts:
            raise StoreUnavailable(f"MinIO's metrics: required {prefix[:-1]}, found HTTP {response.status} without it")
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in counts)

    # ---- below

    def _read(self, key: str, version_id: str | None) -> tuple[bytes, str, BaseHTTPResponse]:
        """A small object of the bucket of releases: its bytes, its version, and the answer with its headers."""
        with self.open(key, version_id, bucket=self.settings.releases_bucket) as response:
            return response.read(), response.headers.get("x-amz-version-id", version_id or "null"), response

    def _put_if(self, key: str, body: bytes, condition: dict[str, str], what: str) -> str:
        """PUT under a condition and return the new version's id."""
        bucket = self.settings.releases_bucket
        with self._errors(what):
            url = self._client.get_presigned_url("PUT", bucket, key, expires=timedelta(minutes=5))
            headers = {"Content-Type": "application/json", **condition}
            response = self._http.request(
                "PUT", url, body=io.BytesIO(body), headers=headers | {"Content-Length": str(len(body))}
            )
        if response.status in (409, 412):
            raise Conflict(f"{what}: somebody else wrote it first; look with `make models` and try again")
        if response.status == 403:
            self._deny(what, "AccessDenied")
        if response.status != 200:
            raise StoreUnavailable(
                f"{what}: writing {bucket}/{key} was answered with HTTP {response.status}; try again"
            )
        version_id = response.headers.get("x-amz-version-id")
        if not version_id or version_id == "null":
            raise StoreUnavailable(
                f"bucket {bucket}: required versioning to be enabled, found it off; run `make up` or enable it"
            )
        return version_id

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn what minio-py and urllib3 raise into our own errors."""
        endpoint = str(self.settings.s3_endpoint).rstrip("/")
        try:
            yield
        except S3Error as error:
            if error.code in _ABSENT:
                raise NotFound(f"{what}: not found in the store at {endpoint} ({error.code})") from error
            if error.code in _DENIED:
                self._deny(what, error.code)
            raise StoreUnavailable(f"{what}: the store at {endpoint} answered {error.code}: {error.message}") from error
        except (ServerError, InvalidResponseError, MinioException) as error:
            raise StoreUnavailable(f"{what}: the store at {endpoint} answered what S3 does not: {error}") from error
        except urllib3.exceptions.SSLError as error:
            raise StoreUnavailable(
                f"{what}: the certificate of {endpoint} is not trusted ({error}); set S3_CA_BUNDLE to its CA"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise StoreUnavailable(
                f"{what}: the store at {endpoint} cannot be reached ({reason}); is it running?"
            ) from error

    def _deny(self, what: str, code: str) -> NoReturn:
        raise AccessDenied(
            f"{what}: the store refused access key {self._access_key} ({code}); required one that may read "
            f"{self.settings.models_bucket} and {self.settings.releases_bucket}; "
            "check S3_ACCESS_KEY and S3_SECRET_KEY, or S3_CREDENTIALS_DIR"
        )


def _object_version(entry: minio.datatypes.Object) -> ObjectVersion:
    return ObjectVersion(
        key=str(entry.object_name),
        version_id=str(entry.version_id),
        size=entry.size or 0,
        modified=entry.last_modified or datetime.fromtimestamp(0, UTC),
        latest=str(entry.is_latest).lower() == "true",
        deleted=bool(entry.is_delete_marker),
    )
