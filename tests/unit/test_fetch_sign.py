"""Our signature against minio-py's, whatever is asked for and whenever: a wrong one would be refused only by a real store."""

from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, quote

from hypothesis import given, settings
from hypothesis import strategies as st
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3
from minio.time import to_amz_date

from weightless.fetch.sign import Signer

SECRET, NO_BODY = "not a secret", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
OURS = Signer("somebody", SECRET, "eu-west-1")
KEYS = st.text(st.characters(codec="utf-8"), min_size=1).map(lambda key: quote(f"/models/{key}", safe="/-._~"))
QUERIES = st.none() | st.text(st.characters(codec="utf-8"), min_size=1)
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))


@settings(deadline=None)
@given(KEYS, QUERIES, TIMES, st.none() | st.integers(0))
def test_it_is_minio_pys(path: str, version: str | None, at: datetime, offset: int | None) -> None:
    at = at.replace(microsecond=0)
    query = f"versionId={quote(version, safe='')}" if version else ""
    asked = {"host": "store:9000"} | ({} if offset is None else {"range": f"bytes={offset}-"})
    theirs = sign_v4_s3(
        method="GET",
        url=SplitResult("http", "store:9000", path, query, ""),
        region="eu-west-1",
        headers={**asked, "x-amz-content-sha256": NO_BODY, "x-amz-date": to_amz_date(at)},
        credentials=Credentials("somebody", SECRET),
        content_sha256=NO_BODY,
        date=at,
    )
    expected = {name.lower(): value for name, value in theirs.items()}
    assert OURS.signed(path, query, asked, at.timestamp()) == expected
    next_day = OURS.signed(path, query, asked, (at + timedelta(days=1)).timestamp())
    assert next_day["authorization"] != expected["authorization"], "the key is of one day"
