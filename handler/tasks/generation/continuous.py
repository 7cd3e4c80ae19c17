"""Continuous batches: a prompt joins the running batch at the next token, and leaves it when it is done.

One step gives every running sequence its next token, and takes a bounded piece of the waiting prompts through the model: those who
wait for their first token share that work, those who run are not held up by a long prompt. It works with models whose whole memory
is one `DynamicCache` of full attention; `unsupported` says why another does not.
"""

import inspect
import time
from collections import deque
from collections.abc import Sequence as Rows
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from tasks.generation.cache import RowCache
from tasks.generation.sampling import sample
from tasks.generation.sequence import Sequence
from tasks.shared.isolation import failure, isolated

PREFILL_TOKENS = {"cpu": 256, "cuda": 2048}  # of waiting prompts in one step, padding included
_BY_ROW = {  # of a generation config: what `sample` and `Sequence` do by row, what no policy does, and what is only a name
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "repetition_penalty", "num_beams", "num_return_sequences", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "use_cache", "return_dict_in_generate", "transformers_version", "_from_model_config",
}  # fmt: skip


class ContinuousBatch:
    """A policy: `step` pushes tokens into sequences, which `join` and `leave` between steps."""

    def __init__(self, model: Any, pad_id: int, max_rows: int) -> None:
        self._model = model
        self._pad_id = pad_id
        self._max_rows = max_rows
        self._prefill_tokens = PREFILL_TOKENS.get(model.device.type, PREFILL_TOKENS["cuda"])
        self._waiting: deque[Sequence] = deque()
        self._joining: _Prefill | None = None
        self._rows: list[Sequence] = []
        self._cache = RowCache(len(DynamicCache(config=model.config).layers), max_rows)

    def join(self, sequences: Rows[Sequence]) -> None:
        """Sequences that shall run as soon as there is place."""
        self._waiting.extend(sequences)

    def leave(self, sequences: Rows[Sequence]) -> None:
        """Sequences that nobody waits for any more: the next step is without them."""
        for sequence in sequences:
            sequence.abandon()

    @torch.inference_mode()
    def step(self) -> None:
        """One token for each sequence that runs, and a piece of the prompts that wait.

        A sequence that fails takes no other with it.

        Raises:
            DeviceLost: the process cannot use its device any more.
        """
        now = time.monotonic()
        for sequence in (*self._rows, *self._waiting, *(self._joining.rows if self._joining else ())):
            sequence.check(now)
        self._drop()
        if self._rows:
            self._decode()
            self._drop()
        self._prefill()

    # ---- those who run

    def _decode(self) -> None:
        if not self._reserved():
            return
        isolated(range(len(self._rows)), self._decode_some, lambda index, error: self._rows[index].fail(error))
        self._cache.advance()

    def _decode_some(self, indices: Rows[int]) -> None:
        """One token for rows that lie side by side."""
        low, high = indices[0], indices[-1] + 1
        rows, device = self._rows[low:high], self._model.device
        lengths = [len(row.ids) - 1 for row in rows]  # of what the cache holds: not the token that goes in now
        width, mask = self._cache.width, None
        positions = torch.tensor(lengths, device=device)[:, None]
        if min(lengths) < width:
            mask = torch.arange(width, -1, -1, device=device) <= positions
        with self._cache.only(low, high):
            logits = self._forward(torch.tensor([row.ids[-1:] for row in rows]), mask, positions, self._cache)
        _push(rows, sample(logits, rows))

    def _reserved(self) -> bool:
        """Whether the cache has room for a token more. If the device has no memory for that, the longest row has to go."""
        try:
            self._cache.reserve()
        except Exception as error:
            self._start_again(error, self._rows)
        return bool(self._rows)

    def _start_again(self, error: Exception, suspects: Rows[Sequence]) -> None:
        """After a failure that left the cache in pieces: the longest of `suspects` fails, all others wait for a prefill of all
        they have, and lose nothing but time."""
        max(suspects, key=lambda row: len(row.ids)).fail(failure(error))
        self._cache.clear()
        self._waiting.extendleft(reversed(self._rows))
        self._rows = []

    def _drop(self) -> None:
        """Take out the rows that are done."""
        done = [index for index in range(len(self._rows) - 1, -1, -1) if self._rows[index].done]
        if not done:
            return
        for index in done:
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
        self._cache.leave(done, max((len(row.ids) for row in self._rows), default=1) - 1)

    # ---- those who wait

    def _prefill(self) -> None:
        """The next piece of the prompts that are joining; when it was their last, they run."""
        if self._joining is None:
            rows = self._admitted()
            if not rows:
                return
            self._joining = _Prefill(rows, self._pad_id, self._model.device, self._prefill_tokens)
        group, self._joining = self._joining, None

        def work(rows: Rows[Sequence]) -> None:
            if len(rows) == len(group.rows):
                self._advance(group)
                self._joining = None if group.complete else group
            else:  # a part of a group that failed: on its own, from its beginning to its end
                part = _Prefill(rows, self._pad_id, self._model.device, self._prefill_tokens)
                while not part.complete:
                    self._advance(part)

        if not all(row.done for row in group.rows):
            isolated(group.rows, work, Sequence.fail)

    def _admitted(self) -> list[Sequence]:
        """Those who came first, as many as there is place for and one piece can hold; one at least."""
        rows: list[Sequence] = []
        longest = 0
        while self._waiting and len(self._rows) + len(rows) < self._max_rows:
            if self._waiting[0].done:
                self._waiting.popleft()
                continue
            longest = max(longest, len(self._waiting[0].ids))
            if rows and longest * (len(rows) + 1) > self._prefill_tokens:
                break
            rows.append(self._waiting.popleft())
        for row in rows:
            row.begin(len(self._rows) + len(rows))
        return rows

    def _advance(self, group: "_Prefill") -> None:
        ids, mask, positions = group.piece()
        logits = self._forward(ids, mask, positions, group.cache)
        if not group.advance():
            return
        tokens = sample(logits, group.rows)
        try:
            self._cache.join(group.cache, group.lengths)
        except Exception as error:
            self._waiting.extendleft(reversed([row for row in group.rows if not row.done]))
            self._start_again(error, group.rows)
            return
        _push(group.rows, tokens)
        self._rows.extend(group.rows)
        self._drop()

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """The last column's logits [rows, vocabulary], float32."""
        out = self._model(
            input_ids=ids.to(self._model.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


class _Prefill:
    """Prompts on their way into a cache of their own, padded on the left, a piece at a time."""

    def __init__(self, rows: Rows[Sequence], pad_id: int, device: torch.device, tokens: int) -> None:
        self.rows = list(rows)
        self.lengths = [len(row.ids) for row in rows]
        self.cache = DynamicCache()
        self._width = max(self.lengths)
        self._size = max(1, tokens // len(rows))
        self._start = 0
        ids = torch.tensor([[pad_id] * (self._width - len(row.ids)) + row.ids for row in rows])
        self._ids = ids.to(device)
        columns = torch.arange(self._width, device=device)
        positions = columns - (self._width - torch.tensor(self.lengths, device=device))[:, None]
        self._padded = min(self.lengths) < self._width
        self._mask = (positions >= 0).long()
        self._positions = positions.clamp(min=0)

    @property
    def complete(self) -> bool:
        return self._start >= self._width

    def piece(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Tokens and positions of the next columns, and the mask of all columns so far (None: all count)."""
        end = min(self._start + self._size, self._width)
        mask = self._mask[:, :end] if self._padded else None
        return self._ids[:, self._start : end], mask, self._positions[:, self._start : end]

    def advance(self) -> bool:
        """The piece is through; whether it was the last."""
        self._start = min(self._start + self._size, self._width)
        return self.complete


def unsupported(model: Any) -> str | None:
    """Why this model cannot join and leave a running batch, None if it can."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    layers = DynamicCache(config=config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if other or not layers or getattr(config, "num_kv_shared_layers", None):
        return f"its cache is not one of full attention in every layer ({', '.join(other) or 'shared layers'})"
    if type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return f"{type(model).__name__} prepares its inputs in a way of its own"
    taken = inspect.signature(model.forward).parameters
    lacking = [
        name for name in ("attention_mask", "position_ids", "past_key_values", "logits_to_keep") if name not in taken
    ]
    if lacking:
        return f"{type(model).__name__} takes no {', '.join(lacking)}"
    asked = model.generation_config.to_dict().items()  # what is 0, 1, empty or not set changes nothing
    more = sorted(name for name, value in asked if name not in _BY_ROW and value not in (1, 1.0) and value)
    if more:
        return f"its generation_config.json sets {', '.join(more)}"
    return None


def _push(rows: Rows[Sequence], tokens: torch.Tensor) -> None:
    for row, token in zip(rows, tokens.tolist(), strict=True):
        isolated([row], lambda _, row=row, token=token: row.push(token), Sequence.fail)  # type: ignore[misc]
