"""How a job of independent parts is run: in turn here, or by whatever the caller brings (Ray, in `jobs`)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def ahead(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """The results in the order of the items, computed by threads; twice as many as there are threads wait at most."""
    with ThreadPoolExecutor(num_threads) as threads:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
