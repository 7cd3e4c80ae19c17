"""Which texts go through a model together."""

from collections.abc import Iterator, Sequence

MAX_BATCH_TOKENS = 8192  # of one forward pass, padding included


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts that go through the model together: of like length, so that little of a batch is padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
