"""Everything that this package raises on purpose.

WeightlessError
├── SettingsError            a setting is missing, malformed, or contradicts another
├── StoreError
│   ├── StoreUnavailable     the object store cannot be reached, or answers with a server error
│   ├── AccessDenied         the store refused the credentials, or they may not do this
│   ├── NotFound
│   │   ├── ModelNotFound    no release of that model exists
│   │   └── ReleaseNotFound  the model exists, that release of it does not
│   ├── Conflict             somebody else wrote first (a conditional write was refused)
│   └── ObjectLocked         an object version may not be deleted: its retention has not ended, or a legal hold is on it
├── InvalidRelease           a manifest or an alias is malformed, or its digest is not the one that was named
├── InvalidFolder            a folder is not a complete model: empty, no weights, a shard missing, a git-lfs pointer
├── UnsafePath               an object name that must not become a file name
├── FetchFailed              the bytes could not be had, after all retries
├── VerificationFailed       the bytes that came are not the bytes that the release names
├── NotEnoughDisk            said before anything is written: required, free
└── CacheError               the node cache cannot be used as it is

A message says which object, what was required, what was found, and what to do next.
"""


class WeightlessError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(WeightlessError):
    """A setting is missing, malformed, or contradicts another."""


class StoreError(WeightlessError):
    """Base of what goes wrong between us and the object store."""


class StoreUnavailable(StoreError):
    """The object store cannot be reached, or answers with a server error."""


class AccessDenied(StoreError):
    """The store refused the credentials, or they may not do this."""


class NotFound(StoreError):
    """A bucket, an object or a version does not exist."""


class ModelNotFound(NotFound):
    """No release of that model exists."""


class ReleaseNotFound(NotFound):
    """The model exists, that release of it does not."""


class Conflict(StoreError):
    """A conditional write was refused: somebody else wrote first."""


class ObjectLocked(StoreError):
    """An object version may not be deleted: its retention has not ended, or a legal hold is on it."""


class InvalidRelease(WeightlessError):
    """A manifest or an alias is malformed, or its digest is not the one that was named."""


class InvalidFolder(WeightlessError):
    """A folder is not a complete model."""


class UnsafePath(WeightlessError):
    """An object name that must not become a file name."""


class FetchFailed(WeightlessError):
    """The bytes could not be had, after all retries."""


class VerificationFailed(WeightlessError):
    """The bytes that came are not the bytes that the release names."""


class NotEnoughDisk(WeightlessError):
    """Said before anything is written: how much is required, how much is free."""


class CacheError(WeightlessError):
    """The node cache cannot be used as it is."""
