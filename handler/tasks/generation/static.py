"""Static batches: the prompts that came together go through one `generate` call of transformers, and leave together.

Left padding with attention mask and position ids by transformers; what differs by row (parameters, seed, limit, stop strings) is
done row by row here. It works with every model that transformers can generate with; a short answer waits for the longest.
"""

import copy
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tasks.generation.sampling import sample
from tasks.generation.sequence import Sequence
from tasks.shared.isolation import isolated

MAX_ROWS = 32  # of one generate call; more prompts than that go through several


class StaticBatch:
    """A policy: `run` pushes tokens into sequences until all are done."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model = model
        self._config = _plain(model.generation_config, pad_id)
        self._pad_id = pad_id

    def run(self, sequences: Rows[Sequence], after_step: Callable[[], None]) -> None:
        """Generate until every sequence is done, calling `after_step` after each token.

        A sequence that fails takes no other with it: a batch that fails is tried again in halves, from where it got to.

        Raises:
            DeviceLost: the process cannot use its device any more.
            ConnectionError: raised by `after_step`; whoever waits for the answers is gone.
        """

        def generate(rows: Rows[Sequence]) -> None:
            self._generate([row for row in rows if not row.done], after_step)

        for start in range(0, len(sequences), MAX_ROWS):
            isolated(sequences[start : start + MAX_ROWS], generate, Sequence.fail)

    @torch.inference_mode()
    def _generate(self, rows: Rows[Sequence], after_step: Callable[[], None]) -> None:
        if not rows:
            return
        for row in rows:
            row.begin(len(rows))
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self._pad_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[index, width - len(row.ids) :] = 1
        config = copy.copy(self._config)
        config.max_new_tokens = max(row.remaining for row in rows)
        device = self._model.device
        self._model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Choose(rows)]),
            stopping_criteria=StoppingCriteriaList([_Push(rows, after_step)]),
        )


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row only the token that was drawn for it, which generate's own argmax then takes."""

    def __init__(self, rows: Rows[Sequence]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = sample(scores, self._rows)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


class _Push(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its token and says which rows are done."""

    def __init__(self, rows: Rows[Sequence], after_step: Callable[[], None]) -> None:
        self._rows = rows
        self._after_step = after_step

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        now = time.monotonic()
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token)
            row.check(now)
        self._after_step()
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)


def _plain(config: Any, pad_id: int) -> Any:
    """The checkpoint's generation config without what a request decides, so that it is applied once and by row."""
    config = copy.deepcopy(config)
    config.update(
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        temperature=None,
        top_k=None,
        top_p=None,
        repetition_penalty=None,
        max_length=None,
        max_new_tokens=None,
        pad_token_id=pad_id,
        return_dict_in_generate=False,
        use_cache=True,
    )
    return config
