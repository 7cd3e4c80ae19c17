"""The keys and values of a running batch whose rows come and go.

All rows end at the same column, so that one more token is one more column for every row; a row that is shorter has nothing on its
left. The tensors have room to spare on the right and below: a step writes one column where DynamicCache copies the whole cache, a
row that joins is copied in once, a row that leaves gives its place to the last one. Every place outside of a row is a finite
number: an attention mask makes it count nothing, which it could not do with a NaN.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_SPARE_COLUMNS = 64  # room is made for this many tokens at once, and for a quarter of the width


@dataclass
class _Window:
    """The part of the tensors that the next forward pass sees: rows low to high, columns start to end."""

    rows: int = 0
    low: int = 0
    high: int = 0
    start: int = 0
    end: int = 0

    @property
    def width(self) -> int:
        return self.end - self.start


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's tensors, [rows, heads, columns, size of a head] with room to spare."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self._window = window

    def get_seq_length(self) -> int:
        return self._window.width

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns behind the window, which stays where it is, and return what attention is to see."""
        window, end = self._window, self._window.end + keys.shape[-2]
        rows = slice(window.low, window.high)
        assert self.keys is not None and self.values is not None
        self.keys[rows, :, window.end : end] = keys
        self.values[rows, :, window.end : end] = values
        return self.keys[rows, :, window.start : end], self.values[rows, :, window.start : end]

    def room(self) -> tuple[int, int]:
        """Rows and columns that there is place for."""
        return (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])

    def place(self, rows: int, columns: int, at: int, like: DynamicLayer | None) -> None:
        """Make place for so many rows and columns; the window then starts at column `at`."""
        if self.keys is None or self.values is None:
            assert like is not None
            self.keys, self.values = (_zeros(tensor, rows, columns) for tensor in (like.keys, like.values))
            self.is_initialized = True
            return
        window = self._window
        self.keys, self.values = (
            _moved(tensor, rows, columns, window, at) for tensor in (self.keys, self.values)
        )  # both or none: whatever fails here leaves the old ones


class RowCache(Cache):  # type: ignore[misc]
    """What a model takes as `past_key_values`. What it writes counts from `advance` on: a step that failed can be repeated.

    A failure of `reserve` or `join` leaves the layers in different states: `clear`, and begin again.
    """

    def __init__(self, layers: int, max_rows: int) -> None:
        self._window = _Window()
        self._max_rows = max_rows
        super().__init__(layers=[_Layer(self._window) for _ in range(layers)])

    @property
    def width(self) -> int:
        """Columns from the longest row's first token to the last."""
        return self._window.width

    @contextlib.contextmanager
    def only(self, low: int, high: int) -> Iterator[None]:
        """Within the block a forward pass is one of rows `low` to `high`."""
        self._window.low, self._window.high = low, high
        try:
            yield
        finally:
            self._window.low, self._window.high = 0, self._window.rows

    def reserve(self) -> None:
        """Make place for one more column; a batch that shrank or whose longest row left moves to the left first."""
        window = self._window
        if window.end < self.layers[0].room()[1]:
            return
        self._place(window.rows, window.width + 1, at=0)

    def advance(self) -> None:
        """The column that was written counts from now on."""
        self._window.end += 1

    def join(self, past: DynamicCache, lengths: Sequence[int]) -> None:
        """Take over the rows of a prefill, padded on the left; the last `lengths[i]` columns of row i are its tokens."""
        window, longest = self._window, max(lengths)
        rows, width = window.rows + len(lengths), max(window.width, longest)
        room = [layer.room() for layer in self.layers]
        if any(rows > have[0] for have in room) or window.end < longest or not window.rows:
            self._place(rows, width, at=width - window.width, like=past)
        for layer, new in zip(self.layers, past.layers, strict=True):
            for mine, theirs in ((layer.keys, new.keys), (layer.values, new.values)):
                mine[window.rows : rows].zero_()
                for index, length in enumerate(lengths):
                    mine[window.rows + index, :, window.end - length : window.end] = theirs[index, :, -length:]
        window.start = window.end - width
        window.rows = window.high = rows

    def leave(self, rows: Sequence[int], longest: int) -> None:
        """Drop these rows, highest first; each is replaced by the then last. `longest`: tokens of the longest that stays."""
        window = self._window
        for row in rows:
            window.rows -= 1
            if row != window.rows:
                for layer in self.layers:
                    layer.keys[row] = layer.keys[window.rows]
                    layer.values[row] = layer.values[window.rows]
        window.high = window.rows
        window.start = window.end - longest
        if not window.rows:
            self.clear()

    def clear(self) -> None:
        """Forget all rows and give the memory back."""
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False
        self._window.rows = self._window.high = self._window.start = self._window.end = 0

    def _place(self, rows: int, width: int, at: int, like: DynamicCache | None = None) -> None:
        """Room for `rows` and `width` columns and some to spare, with the window's first column at `at`."""
        window, held = self._window, self._window.width
        have = self.layers[0].room()[0] if window.rows else 0
        rows = have if rows <= have else min(self._max_rows, max(rows, 2 * have))
        columns = width + max(_SPARE_COLUMNS, width // 4)
        for index, layer in enumerate(self.layers):
            layer.place(rows, columns, at, like.layers[index] if like is not None else None)
        window.start, window.end = at, at + held
        if not window.rows:
            window.start, window.end = 0, width


def _zeros(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return like.new_zeros((rows, like.shape[1], columns, like.shape[3]))


def _moved(tensor: torch.Tensor, rows: int, columns: int, window: _Window, at: int) -> torch.Tensor:
    moved = _zeros(tensor, rows, columns)
    moved[: window.rows, :, at : at + window.width] = tensor[: window.rows, :, window.start : window.end]
    return moved
