"""The model that is measured, and new releases of it: one shard with a few bytes changed, as a fine-tune leaves it.

At full size it is falcon-1g, at a smaller scale one of its shape with fewer heads; a benchmark that is only tried measures
falcon-tiny in its place.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seeding.samples.falcon_random import SHAPES, Shape, make_falcon_random

from loadtest.bench.experiment import Bench, BenchFailed
from loadtest.bench.node import Node
from loadtest.bench.server import ROOT
from weightless.errors import NotEnoughDisk

FULL, TINY = "falcon-1g", "falcon-tiny"
SMALLEST = 0.1  # the scale below which the tiny model stands in
_HEAD = 64  # the width of an attention head
PROMPT = "The weights of this model"


@dataclass(frozen=True)
class Measured:
    """A model of the stack with its folder. `release`: the one with the sample's own weights, which has `size` bytes."""

    node: Node
    model: str
    folder: Path
    release: str
    size: int

    @property
    def weights(self) -> int:
        """Bytes of the safetensors files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def cold_start(self, **order: str) -> dict[str, Any]:
        """One start as the agent measures it; by default of the sample's own release."""
        return self.node.ask(
            "POST", "/coldstart", {"model": self.model, "release": self.release, "prompt": PROMPT} | order
        )

    def remove_archive(self, started: Mapping[str, Any]) -> None:
        """Give back the room of the embedded archive that a cold start has built."""
        store = self.node.run / "baseline" / "store"
        for path in store.glob(f"{self.model}--{started['digest'][7:19]}--{started['variant']}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def seed(self, folder: Path, *, promote: bool) -> str:
        """Publish a folder as a new release.

        Raises:
            BenchFailed: it is not new, so that nothing would be measured.
        """
        said = seed(self.node, self.model, folder, promote=promote)
        if not said["new"]:
            raise BenchFailed(
                f"{self.model}: required a new release, found that the folder already was {said['release']}"
            )
        return str(said["release"])

    @contextlib.contextmanager
    def changed(self, number: int) -> Iterator[Path]:
        """The folder with the lowest bits of a few weights of its last shard changed, for each number (1 to 255) otherwise."""
        with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix="changed-") as temp:
            folder = Path(temp)
            *others, shard = sorted(self.folder.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name))
            for path in others:
                os.link(path, folder / path.name)
            shutil.copyfile(shard, folder / shard.name)
            change(folder / shard.name, number)
            yield folder


def change(shard: Path, number: int) -> None:
    """Flip the lowest bit of the low byte of eight places in the middle, by the bits of `number`.

    In little-endian floats of two or four bytes that is the end of the mantissa: every answer stays finite.
    """
    with shard.open("r+b") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        middle = header + (shard.stat().st_size - header) // 2 // 4 * 4
        file.seek(middle)
        data = bytearray(file.read(32))
        for bit in range(8):
            data[4 * bit] ^= number >> bit & 1
        file.seek(middle)
        file.write(data)


def seed(node: Node, model: str, folder: Path, *, promote: bool) -> dict[str, Any]:
    """`make seed` of a folder; what it says."""
    words = [f"MODEL={model}", f"FROM={folder}", "JSON=1", *([] if promote else ["PROMOTE=no"])]
    found: dict[str, Any] = json.loads(node.make("seed", *words))
    return found


@contextlib.contextmanager
def measured(bench: Bench, *, copies: int) -> Iterator[Measured]:
    """The model, made and published without an alias. `copies`: how many times its size the experiment keeps on the disk.

    Raises:
        NotEnoughDisk: with what is required.
    """
    model = FULL if bench.scale >= SMALLEST else TINY
    if model == FULL:
        require_disk(bench.scratch, int((copies + 2) * 2**30 * min(1.0, bench.scale)))
    node = bench.node
    with tempfile.TemporaryDirectory(dir=bench.scratch, prefix="measured-") as temp:
        bench.tell(f"  making {model} and publishing it")
        folder = Path(temp) / model
        if model == FULL:
            folder.mkdir()
            make_falcon_random(folder, scaled(SHAPES[model], bench.scale))
        else:
            built_in(model, folder)
        said = seed(node, model, folder, promote=False)
        yield Measured(node, model, folder, said["release"], said["bytes"])


def scaled(shape: Shape, scale: float) -> Shape:
    """The shape with its width times `scale`, in whole heads."""
    if scale >= 1:
        return shape
    heads = max(1, round(shape.hidden * scale / _HEAD))
    return replace(shape, hidden=_HEAD * heads, heads=heads)


def built_in(name: str, folder: Path) -> None:
    """Copy one of the models that `make up` has made."""
    shutil.copytree(ROOT / "build" / "samples" / name, folder)


def require_disk(folder: Path, required: int) -> None:
    """Raises NotEnoughDisk unless so many bytes are free there."""
    free = shutil.disk_usage(folder).free
    if free < required:
        raise NotEnoughDisk(f"{folder}: required {required >> 20} MiB, found {free >> 20} MiB free; use --scratch")
