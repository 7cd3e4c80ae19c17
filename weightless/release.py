"""What a release is: an immutable, digested list of a model folder's files with the settings that change its answers.

A manifest has two parts. `content` says what the release is; its digest (BLAKE3 of its canonical JSON) is the release's
identity anywhere. `location` says which object versions of this store hold it. The alias `serving` names what should be served.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any, Self

import blake3
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from weightless.errors import InvalidRelease, SettingsError, UnsafePath
from weightless.paths import checked_model, checked_path, checked_release, collisions

SCHEMA = 1

Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    # defer_build: a worker validates a Release, and needs no validators of its parts or of aliases beside it.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", defer_build=True)


class FileEntry(_Frozen):
    """One file: its path inside the folder, its size in bytes and its two digests (hex)."""

    path: str
    size: Annotated[int, Field(ge=0)]
    blake3: Hex64
    sha256: Hex64

    _path = field_validator("path")(staticmethod(lambda path: _as_value_error(checked_path, path)))


class ReleaseSettings(_Frozen):
    """What changes the answers and therefore belongs to the release. Keys unknown to this version are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    task: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
    trust_remote_code: bool = False
    generation: dict[str, Any] = {}
    chat_template: str | None = None
    golden: dict[str, Any] | None = None


class Content(_Frozen):
    """The portable part of a manifest."""

    model: str
    created: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    source: dict[str, str | None]
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1)]
    settings: ReleaseSettings

    _model = field_validator("model")(staticmethod(lambda name: _as_value_error(checked_model, name)))

    @field_validator("files")
    @classmethod
    def _no_clash(cls, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        clash = collisions([file.path for file in files])
        if clash:
            raise ValueError(clash)
        return tuple(sorted(files, key=lambda file: file.path))

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """`blake3:<hex>` of the canonical JSON that this content is written as."""
        return digest_of(self.model_dump(mode="json", exclude_none=True))

    def same_model_as(self, other: "Content") -> bool:
        """Whether both would answer the same: equal files and settings, whenever and from wherever they came."""
        return (self.model, self.files, self.settings) == (other.model, other.files, other.settings)


class Location(_Frozen):
    """Which version of which object of this store holds each file."""

    bucket: str
    versions: dict[str, str]


class Release(_Frozen):
    """A manifest as read or about to be written. `name` is v1, v2, …; `manifest_version` is set once it lies in the bucket."""

    name: str
    content: Content
    location: Location
    digest: Digest
    manifest_version: str | None = None

    _name = field_validator("name")(staticmethod(lambda name: _as_value_error(checked_release, name)))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        keys = {self.key(file) for file in self.content.files}
        if keys != set(self.location.versions):
            wrong = sorted(keys ^ set(self.location.versions))
            raise ValueError(f"required one object version for each file, found {_some(wrong)} on one side only")
        return self

    @classmethod
    def make(cls, name: str, content: Content, location: Location) -> Self:
        """A release of this content, digested."""
        return cls(name=name, content=content, location=location, digest=content.digest)

    @classmethod
    def from_json(cls, name: str, raw: bytes, manifest_version: str | None = None) -> Self:
        """Parse and check a manifest: schema, digest, safe and unique paths, a version for every file.

        Raises:
            InvalidRelease: naming the manifest and everything that is wrong with it.
        """
        try:
            document = json.loads(raw)
            if not isinstance(document, dict):
                raise ValueError(f"required a JSON object, found {type(document).__name__}")
            if document.pop("schema", None) != SCHEMA:
                raise ValueError(f"required schema {SCHEMA}; a newer Weightless may have written it")
            found = digest_of(
                document.get("content")
            )  # of what is written, so that a field added later changes no digest
            if document.get("digest") != found:
                raise ValueError(
                    f"required the digest it names, {document.get('digest')}, found {found}: it was changed by hand"
                )
            return cls.model_validate(document | {"name": name, "manifest_version": manifest_version})
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in error.errors()[:3])
            raise InvalidRelease(f"release {name}: {wrong}") from None
        except ValueError as error:
            raise InvalidRelease(f"release {name}: {error}") from None

    def to_json(self) -> bytes:
        """The manifest as it is written to the bucket, for people to read too."""
        body = self.model_dump(mode="json", exclude={"name", "manifest_version"}, exclude_none=True)
        ordered = {"schema": SCHEMA, "digest": body["digest"], "content": body["content"], "location": body["location"]}
        return json.dumps(ordered, indent=1, ensure_ascii=False).encode() + b"\n"

    @property
    def model(self) -> str:
        return self.content.model

    def key(self, file: FileEntry) -> str:
        """The object's name in the bucket of models."""
        return f"{self.content.model}/{file.path}"

    def version(self, file: FileEntry) -> str:
        """The object version that holds the file."""
        return self.location.versions[self.key(file)]


class _Pointer(_Frozen):
    """Names one manifest, by the version of it and by its digest."""

    release: str
    digest: Digest
    manifest_version: str

    _release = field_validator("release")(staticmethod(lambda name: _as_value_error(checked_release, name)))

    @classmethod
    def _to(cls, release: Release, **more: Any) -> Self:
        """The pointer to a published release; `more`: the other fields."""
        if release.manifest_version is None:
            raise InvalidRelease(
                f"release {release.name}: required a manifest in the bucket, found one that was never written"
            )
        return cls(release=release.name, digest=release.digest, manifest_version=release.manifest_version, **more)

    def same_as(self, other: "_Pointer | None") -> bool:
        """Whether both name one release, whatever else they say."""
        return other is not None and (self.release, self.digest) == (other.release, other.digest)


class Canary(_Pointer):
    """A release on trial beside the one that is served: it answers `percent` of 100 requests."""

    percent: Annotated[int, Field(ge=1, le=99)]

    @classmethod
    def of(cls, release: Release, percent: int) -> Self:
        """The trial of a published release."""
        return cls._to(release, percent=percent)


class Alias(_Pointer):
    """The object `serving`: what should be served now. `by` says who wrote it, for the audit log."""

    by: str | None = None
    canary: Canary | None = None

    @classmethod
    def of(cls, release: Release, by: str | None = None, canary: Canary | None = None) -> Self:
        """The alias that points at a published release."""
        return cls._to(release, by=by, canary=canary)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.same_as(self.canary):
            raise ValueError(f"required a canary other than the release that is served, found {self.release} twice")
        return self

    @classmethod
    def from_json(cls, model: str, raw: bytes) -> Self:
        """Parse an alias; InvalidRelease if it is not one."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            raise InvalidRelease(
                f"alias {model}/serving: {wrong}; `make promote MODEL={model} RELEASE=…` writes it anew"
            ) from None

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class AliasVersion(_Frozen):
    """One entry of an alias's history. `alias` is None for a deletion: from then on nothing is served; and for a value that is no
    alias, of which `error` says what is wrong."""

    alias: Alias | None
    version_id: str
    etag: str
    modified: datetime
    latest: bool
    error: str | None = None


def digest_of(content: Any) -> str:
    """`blake3:<hex>` of the canonical JSON of a manifest's content."""
    return f"blake3:{blake3.blake3(canonical_json(content)).hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _as_value_error(check: Callable[[str], str], value: str) -> str:
    try:
        check(value)
    except (SettingsError, UnsafePath) as error:
        raise ValueError(str(error)) from None
    return value


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
