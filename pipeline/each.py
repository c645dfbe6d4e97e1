"""How a job of independent parts is run: in turn here, or by whatever the caller brings (Ray, in `jobs`)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Each(Protocol):
    """Calls a function on each item, perhaps elsewhere and several at a time; yields (item, result) as they come.

    Items and results are small: manifests and counts. An exception of one part is raised and ends the job; every part
    can be run again.
    """

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]: ...


def in_turn(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """The `Each` of one process: a loop."""
    for item in items:
        yield item, function(item)
