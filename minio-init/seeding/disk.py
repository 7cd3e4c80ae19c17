"""Is there room? Asked before the first byte is written, of the download's disk and of the store's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from seeding.mc import ALIAS, Mc
from seeding.progress import size
from weightless.errors import NotEnoughDisk, StoreError

#: kept free: a disk that is full to the last byte stops everything else on the machine
MARGIN = 256 << 20


@dataclass(frozen=True)
class Space:
    """Bytes of a disk: all of it, and what is free."""

    total: int
    free: int


def local_space(folder: Path) -> Space:
    """Of the disk that `folder` is, or would be, on."""
    while not folder.exists():
        folder = folder.absolute().parent
    found = os.statvfs(folder)
    # As MinIO counts: what is reserved for root belongs to nobody.
    total = found.f_frsize * (found.f_blocks - (found.f_bfree - found.f_bavail))
    return Space(total, found.f_frsize * found.f_bavail)


def store_space(mc: Mc) -> Space | None:
    """Of the store's disks; None for a store that is no MinIO, or does not tell."""
    try:
        [line] = mc.run("admin", "info", ALIAS)
        drives = [drive for server in line["info"]["servers"] for drive in server["drives"]]
        return Space(sum(drive["totalspace"] for drive in drives), sum(drive["availspace"] for drive in drives))
    except (StoreError, KeyError, ValueError):
        return None


def check_space(download: int, download_dir: Path, upload: int, store: Space | None) -> str:
    """Raise NotEnoughDisk unless both fit; else return a line that says what is needed and what is free.

    `download` and `upload` are bytes still to be written. Where download and store share a disk, both must fit on it.
    """
    local = local_space(download_dir)
    shared = store is not None and store.total == local.total  # two disks equal to the byte: most likely one
    required = download + (upload if shared else 0)
    if download and required + MARGIN > local.free:
        raise NotEnoughDisk(
            f"{download_dir}: required {size(download)} for the download"
            + (f" and {size(upload)} for the store on the same disk" if shared else "")
            + f", and {size(MARGIN)} to spare, found {size(local.free)} free; make room, or set DOWNLOAD_DIR to another disk"
        )
    if store is not None and upload and upload + MARGIN > store.free:
        raise NotEnoughDisk(
            f"the store: required {size(upload)} and {size(MARGIN)} to spare, found {size(store.free)} free; make room, "
            "or delete old releases with `make prune`"
        )
    parts = []
    if download:
        parts.append(f"{size(download)} to download ({size(local.free)} free in {download_dir})")
    free = f"{size(store.free)} free" if store is not None else "it does not tell how much is free"
    parts.append(f"up to {size(upload)} into the store ({free})")
    return "needs " + ", ".join(parts)
