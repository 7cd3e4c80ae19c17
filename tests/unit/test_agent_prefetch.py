"""What a fetch says of itself while it runs: `make status` shows it."""

import json
import time

import pytest

from serve.fetching import Reporter


def test_what_was_cached_before_does_not_count_as_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a download that goes on at 90 % says that it is done in a second, for an hour."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    report = Reporter()
    report(900, 1000)
    now += 2
    report(920, 1000)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["progress"]
    assert said == {"done": 920, "total": 1000, "rate": 10, "eta_s": 8.0}
