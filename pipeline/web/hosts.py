"""What a process remembers of each host: how often it may be asked, and whether it is down."""

from pipeline.web.memory import Remembered

MAX_REMEMBERED = 200_000
NUM_FAILURES = 8
REST_S = 3.0
DOWN_S = 30.0
MAX_RETRY_AFTER_S = 60.0
MAX_CRAWL_DELAY_S = 10.0

_TROUBLE = frozenset({"connect", "connect_timeout", "timeout", "tls", "dns_fail", "dns_timeout", "truncated"})


def is_trouble(reason: str) -> bool:
    """Whether a reason says that the host, rather than the URL, has a problem."""
    return reason in _TROUBLE or reason.startswith("http_5")


class Host:
    """One host's pace and its circuit breaker. All times are of the monotonic clock.

    A host that fails `NUM_FAILURES` times in a row rests for `REST_S`. If the one request that then probes it fails as
    well, it is down for `DOWN_S`, after which another one probes it.
    """

    def __init__(self, min_interval_s: float) -> None:
        self._min_interval_s = min_interval_s
        self._next_start_at = 0.0
        self._num_failures = 0
        self._num_rests = 0
        self._rested_at = 0.0
        self._rests_until = 0.0

    def ready_at(self) -> float:
        """When the next request may start."""
        return max(self._next_start_at, self._rests_until)

    def is_down(self, now: float) -> bool:
        """Whether waiting for the host is pointless: it failed, rested, and failed again."""
        return self._num_rests > 1 and now < self._rests_until

    def most(self, per_host: int) -> int:
        """How many requests may run at a time."""
        return 1 if self._num_rests else per_host

    def start(self, now: float) -> None:
        """A request starts."""
        self._next_start_at = max(self._next_start_at, now + self._min_interval_s)

    def succeed(self) -> None:
        """The host answered."""
        self._num_failures = self._num_rests = 0
        self._rests_until = 0.0

    def fail(self, started_at: float, now: float) -> None:
        """A request that started then has failed by the host's fault."""
        self._num_failures += 1
        if started_at < self._rested_at or self._num_failures < NUM_FAILURES:
            return  # begun before the host rested: says nothing new
        self._num_rests += 1
        self._rested_at = now
        self._rests_until = now + (REST_S if self._num_rests == 1 else DOWN_S)

    def slow_down(self, now: float, retry_after_s: float) -> None:
        """The host asked for a pause (`Retry-After`)."""
        self._next_start_at = max(self._next_start_at, now + min(retry_after_s, MAX_RETRY_AFTER_S))

    def limit_rate(self, crawl_delay_s: float) -> None:
        """The host's robots.txt asks for so much time between two requests."""
        self._min_interval_s = max(self._min_interval_s, min(crawl_delay_s, MAX_CRAWL_DELAY_S))


class Hosts:
    """The hosts that a process has met."""

    def __init__(self, rate_per_s: float) -> None:
        self._min_interval_s = 1 / rate_per_s if rate_per_s else 0.0
        self._hosts: Remembered[Host] = Remembered(MAX_REMEMBERED)

    def get(self, name: str) -> Host:
        """The host's memory, new where it is met for the first time."""
        return self._hosts.get(name) or self._hosts.put(name, Host(self._min_interval_s))
