"""A DNS server on loopback whose zone the tests write, and which can die and come back."""

import contextlib
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSRecord

SERVFAIL, REFUSED, SILENT = "SERVFAIL", "REFUSED", "SILENT"


@dataclass
class Nameserver:
    """Answers by `zone`: addresses, or an error's name; what is not there does not exist."""

    port: int = 0
    zone: dict[str, list[str] | str] = field(default_factory=dict)
    turns: dict[str, deque[list[str]]] = field(default_factory=dict)
    """Answers that are given once each, before the zone's."""
    asked: Counter[str] = field(default_factory=Counter)
    _socket: socket.socket | None = None
    _thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """What stands in the recipe."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin to answer, at the old port if there was one."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", self.port))
        self._socket.settimeout(0.1)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._socket,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Die: from now on the port is closed."""
        running, self._socket = self._socket, None
        if running is not None and self._thread is not None:
            self._thread.join(5)
            running.close()

    def _serve(self, mine: socket.socket) -> None:
        while self._socket is mine:
            try:
                packet, client = mine.recvfrom(4096)
            except TimeoutError:
                continue
            answer = self._answer(DNSRecord.parse(packet))
            if answer is not None:
                mine.sendto(answer.pack(), client)

    def _answer(self, question: DNSRecord) -> DNSRecord | None:
        name = str(question.q.qname).rstrip(".").lower()
        kind = QTYPE[question.q.qtype]
        self.asked[name] += 1
        answer = question.reply()
        if not name and not self.zone.get(""):  # the root: what the canary asks
            return answer
        turns = self.turns.get(name)
        entry = turns.popleft() if turns else self.zone.get(name)
        if entry == SILENT:
            return None
        if not isinstance(entry, list):
            answer.header.rcode = getattr(RCODE, entry or "NXDOMAIN")
            return answer
        for address in entry:
            if (":" in address) == (kind == "AAAA"):
                data = AAAA(address) if kind == "AAAA" else A(address)
                answer.add_answer(RR(question.q.qname, question.q.qtype, rdata=data, ttl=0))
        return answer


@contextlib.contextmanager
def start_nameserver(**zone: list[str] | str) -> Iterator[Nameserver]:
    """A name server for the block; `_` in a keyword stands for a dot."""
    server = Nameserver(zone={name.replace("_", "."): entry for name, entry in zone.items()})
    server.start()
    try:
        yield server
    finally:
        server.stop()
