"""The order in which arms are measured: in every round each has its turn, and not after the same other as in the round before."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Arm = TypeVar("Arm")


def in_turns(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[int, Arm]]:
    """Round number (from 1) and arm: A B, B A, … of two; of more, rows of a balanced Latin square (Williams design).

    What drifts, drifts for all arms. What one leaves behind (free memory that the machine has to be given again, a disk that still
    writes) meets a different one in each round, where A B C, C B A would have the same two side by side in all of them.

    Source: E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments, 1949.
    """
    zigzag = [(turn + 1) // 2 if turn % 2 else -(turn // 2) for turn in range(len(arms))]  # 0, 1, -1, 2, -2, …
    for number in range(rounds):
        row = [arms[(turn + number) % len(arms)] for turn in zigzag]
        if number % 2 and len(arms) % 2:  # of an odd number, rows alone are not balanced
            row.reverse()
        for arm in row:
            yield number + 1, arm
