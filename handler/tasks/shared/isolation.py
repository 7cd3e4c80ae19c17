"""Work on many requests at once such that one request's failure is no other's."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.shared.device import device_lost, free_cache, out_of_memory
from tasks.shared.errors import DeviceLost, RequestError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def isolated(items: Sequence[T], work: Callable[[Sequence[T]], None], fail: Callable[[T, RequestError], None]) -> None:
    """`work(items)`; if that raises, the same for each half of them, down to the ones that fail alone: `fail(item, error)`.

    So a batch that does not fit into memory is done in parts that do.

    Raises:
        DeviceLost: the process cannot use its device any more.
        ConnectionError: raised by `work`; whoever waits for the answers is gone.
    """
    try:
        return work(items)
    except ConnectionError:
        raise
    except Exception as error:
        if len(items) == 1:
            return fail(items[0], failure(error))
        _only_if_alive(error)
        short = out_of_memory(error)
        logger.warning("a batch of %d failed (%s); trying its halves", len(items), type(error).__name__)
    if short:  # only here, where the failed call's frames and their tensors are gone
        free_cache()
    middle = len(items) // 2
    isolated(items[:middle], work, fail)
    return isolated(items[middle:], work, fail)


def failure(error: Exception) -> RequestError:
    """What the one request hears whose work raised this; DeviceLost if the process cannot use its device any more."""
    _only_if_alive(error)
    if out_of_memory(error):
        free_cache()
        return RequestError(
            507, "out_of_memory", "the model's device has no memory for this request; send a shorter one"
        )
    logger.error("a request failed", exc_info=error)
    return RequestError(500, "internal_error", f"the model failed on this request: {type(error).__name__}")


def _only_if_alive(error: Exception) -> None:
    if device_lost(error):
        raise DeviceLost(str(error)) from error
