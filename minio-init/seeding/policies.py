"""What each user of the store may do, as S3 policy documents. Least privilege: whatever is not named is refused."""

from __future__ import annotations

from typing import Any

_READ_BUCKET = ["s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:ListBucket", "s3:ListBucketVersions"]
_READ_OBJECT = ["s3:GetObject", "s3:GetObjectVersion"]
# DeleteObject writes a marker that hides an object; its versions, and with them every release, stay.
_WRITE_OBJECT = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]


def policies(models: str, releases: str) -> dict[str, dict[str, Any]]:
    """Policy name → document, for buckets of these names."""
    buckets = [f"arn:aws:s3:::{models}", f"arn:aws:s3:::{releases}"]
    objects = [f"{bucket}/*" for bucket in buckets]
    read = [_allow(_READ_BUCKET, buckets), _allow(_READ_OBJECT, objects)]
    return {
        # The byte counters of a measurement come from MinIO's own metrics.
        "weightless-node": _document(*read, _allow(["admin:Prometheus"])),
        # The free space of the store is checked before an upload.
        "weightless-publisher": _document(
            *read,
            _allow(["s3:ListBucketMultipartUploads"], buckets),
            _allow(_WRITE_OBJECT, objects),
            _allow(["admin:ServerInfo"]),
        ),
        "weightless-prune": _document(_allow(["s3:DeleteObjectVersion"], objects)),
    }


#: consumer (see `secrets`) → the policies of its user
ATTACHED = {
    "publisher": ("weightless-publisher", "weightless-prune"),
    "node": ("weightless-node",),
}


def _document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: list[str], resources: list[str] | None = None) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": actions}
    return statement if resources is None else statement | {"Resource": resources}
