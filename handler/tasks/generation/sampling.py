"""The next token of each row of a batch, each by its own parameters.

Rows with equal parameters are drawn together. A row with a seed draws from a generator of its own, so that its answer does not
depend on who else is in the batch. Top-k comes first and everything after it works on k columns instead of the whole
vocabulary (65,024 for Falcon): the same distribution as transformers' warpers, which the tests compare it with.
"""

from collections import defaultdict
from collections.abc import Sequence as Rows

import torch

from tasks.generation.parameters import Parameters
from tasks.generation.sequence import Sequence


def sample(logits: torch.Tensor, rows: Rows[Sequence]) -> torch.Tensor:
    """Tokens [rows] from logits [rows, vocabulary] (float32; changed in place where a repetition penalty applies)."""
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[_kind(row.parameters)].append(index)
        if row.parameters.repetition_penalty != 1.0:
            _penalize(logits[index], row)
    if len(groups) == 1:
        return _draw(logits, rows)
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for indices in groups.values():
        where = torch.tensor(indices, device=logits.device)
        tokens[where] = _draw(logits[where], [rows[index] for index in indices])
    return tokens


def distribution(logits: torch.Tensor, parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities [rows, n] and the tokens [rows, n] that they belong to (None: column i is token i)."""
    scores, tokens = logits / parameters.temperature, None
    if 0 < parameters.top_k < scores.shape[-1]:
        scores, tokens = torch.topk(scores, parameters.top_k, dim=-1)
    elif parameters.top_p < 1.0:
        scores, tokens = torch.sort(scores, dim=-1, descending=True)
    if parameters.top_p < 1.0:
        probabilities = torch.softmax(scores, dim=-1)
        # a token stays if those before it do not reach top_p yet; the first always stays
        scores[probabilities.cumsum(dim=-1) - probabilities >= max(parameters.top_p, 1e-9)] = -torch.inf
    return torch.softmax(scores, dim=-1), tokens


def _kind(parameters: Parameters) -> tuple[float, ...]:
    if parameters.greedy:
        return ()
    return (parameters.temperature, parameters.top_k, parameters.top_p)


def _draw(logits: torch.Tensor, rows: Rows[Sequence]) -> torch.Tensor:
    """One token a row, for rows that share their parameters."""
    if rows[0].parameters.greedy:
        return logits.argmax(dim=-1)
    probabilities, tokens = distribution(logits, rows[0].parameters)
    if all(row.generator is None for row in rows):
        drawn = torch.multinomial(probabilities, 1)
    else:
        drawn = torch.cat(
            [torch.multinomial(probabilities[i : i + 1], 1, generator=row.generator) for i, row in enumerate(rows)]
        )
    return (drawn if tokens is None else tokens.gather(-1, drawn)).squeeze(-1)


def _penalize(scores: torch.Tensor, row: Sequence) -> None:
    """Make every token that the row holds already less likely, in place. Padding is no part of a row, so it is not seen here."""
    seen = torch.tensor(sorted(set(row.ids)), device=scores.device)
    found = scores[seen]
    penalty = row.parameters.repetition_penalty
    scores[seen] = torch.where(found < 0, found * penalty, found / penalty)
