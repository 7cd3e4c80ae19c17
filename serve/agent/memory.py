"""What this node served last, on disk: with the store away it is served again, and a broken release falls back to it."""

import json
import logging
from pathlib import Path

from weightless.errors import InvalidRelease
from weightless.release import Release

log = logging.getLogger(__name__)


class Memory:
    """One file a model in `folder`, written when a release has taken over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def remember(self, release: Release) -> None:
        document = {
            "release": release.name,
            "manifest_version": release.manifest_version,
            "manifest": release.to_json().decode(),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{release.model}.partial"
        partial.write_text(json.dumps(document))
        partial.replace(self._folder / f"{release.model}.json")

    def forget(self, model: str) -> None:
        (self._folder / f"{model}.json").unlink(missing_ok=True)

    def recall(self, model: str) -> Release | None:
        """The release served last, or None. A file that cannot be read is as good as none, and said."""
        try:
            document = json.loads((self._folder / f"{model}.json").read_text())
            return Release.from_json(document["release"], document["manifest"].encode(), document["manifest_version"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, InvalidRelease) as error:
            log.warning("what was served last of %s cannot be read: %s", model, error)
            return None

    def models(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))
