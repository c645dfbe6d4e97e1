"""Recaptioning against a real server that speaks the protocol and tells what it sees in the pixels."""

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web

from pipeline.annotate.annotator import Annotator, Batch, build_annotator
from pipeline.annotate.columns import address, read_annotations, read_stored
from pipeline.annotate.recaption import clean
from pipeline.annotate.unit import annotate_unit
from pipeline.errors import UserError
from tests.stores import Stored, jpeg, make_store


@dataclass
class Server:
    """Answers with the grey level of the image; `faults` by grey level are spent first, one a request."""

    url: str = ""
    faults: dict[int, list[Any]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    open_requests: int = 0
    most_open: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.open_requests += 1
        self.most_open = max(self.most_open, self.open_requests)
        try:
            return await self._answer(request)
        finally:
            self.open_requests -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        header, data = body["messages"][0]["content"][0]["image_url"]["url"].split(",")
        assert header == "data:image/jpeg;base64"
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_GRAYSCALE)
        level = round(float(image.mean()))
        self.requests.append(body)
        self.levels.append(level)
        self.times.append(time.monotonic())
        self.keys.add(request.headers.get("Authorization", ""))
        await asyncio.sleep(0.02)
        fault = self.faults[level].pop(0) if self.faults.get(level) else None
        message = {"role": "assistant", "content": f' "A grey\n square of  {level}." '}
        match fault:
            case int(status):
                return web.Response(status=status, headers={"Retry-After": "1"} if status == 429 else {}, text="no")
            case "slow":
                await asyncio.sleep(3)
            case "garbage":
                return web.Response(text='{"choices": [', content_type="application/json")
            case "shape":
                return web.json_response({"choices": []})
            case "empty":
                message["content"] = ' "" '
            case "refusal":
                message = {"role": "assistant", "content": None, "refusal": "I will not look at this."}  # type: ignore[dict-item]
            case "sorry":
                message["content"] = "I'm sorry, but I can't assist with that."
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})


@pytest.fixture
def server() -> Iterator[Server]:
    served, loop, started = Server(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", served.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def stop(runner: web.AppRunner) -> None:
        await runner.cleanup()
        given_up = asyncio.all_tasks() - {asyncio.current_task()}  # requests whose client went away
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)

    def serve() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(stop(runner))
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(10)
    yield served
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def grey(level: int) -> bytes:
    return jpeg(np.full((16, 16, 3), level, np.uint8))


def batch(levels: list[int]) -> Batch:
    rows = pa.table({"key": [f"k{level}" for level in levels], "caption": [f"alt {level}" for level in levels]})
    return Batch(rows, [grey(level) for level in levels], [{} for _ in levels])


def captioner(server: Server, **values: Any) -> Annotator:
    return build_annotator("recaption", {"base_url": server.url, "model": "m", "retries": 2, "timeout_s": 1} | values)


def test_each_image_gets_its_own_answer_and_no_more_requests_are_open_than_allowed(server: Server) -> None:
    levels = list(range(20, 220, 5))
    found = captioner(server, column="long_caption", in_flight=4).annotate(batch(levels))
    assert found == {"long_caption": [f"A grey square of {level}." for level in levels]}
    assert sorted(server.levels) == levels
    assert 2 <= server.most_open <= 4
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.requests} == {("m", 0, 128)}


@pytest.mark.parametrize("fault", [429, 500, 503, "slow", "garbage", "shape"])
def test_passing_faults_are_retried(server: Server, fault: Any) -> None:
    server.faults = {40: [fault]}
    found = captioner(server).annotate(batch([40, 80]))
    assert found == {"recaption": ["A grey square of 40.", "A grey square of 80."]}
    first, second = (time for time, level in zip(server.times, server.levels, strict=True) if level == 40)
    # The server asks for a second with a 429; our own first pause is half a second at most.
    assert fault != 429 or second - first >= 1


def test_bad_samples_alone_are_lost_and_cost_no_second_request(server: Server) -> None:
    lasting = {40: [500] * 9, 60: ["refusal"], 80: ["empty"], 100: ["sorry"], 120: [400], 140: ["garbage"] * 9}
    server.faults = {level: list(faults) for level, faults in lasting.items()}
    levels = [*range(40, 160, 20), 200, 220]
    store = make_store([[Stored(f"k{level}", f"alt {level}", grey(level)) for level in levels]])
    recaption = captioner(server)
    (report,) = annotate_unit("u00000000", store, [recaption], 0.8).by_address.values()
    assert report.num_errors == 6
    found = read_annotations(store, address(recaption), read_stored(store, "u00000000"))
    assert found.columns["recaption"].to_pylist() == [None] * 6 + ["A grey square of 200.", "A grey square of 220."]
    for row, part in enumerate(["HTTP 500", "I will not look", "empty", "I'm sorry", "HTTP 400", "no chat completion"]):
        assert part in found.errors[row]
    assert len(server.requests) == 2 * 3 + 6


def test_an_outcome_is_kept_for_one_question_only(server: Server) -> None:
    server.faults = {40: ["empty"]}
    recaption = captioner(server)
    with pytest.raises(ValueError, match="empty"):
        recaption.annotate(batch([40, 80]))
    with pytest.raises(ValueError, match="empty"):
        recaption.annotate(batch([40]))
    assert recaption.annotate(batch([40])) == {"recaption": ["A grey square of 40."]}


def test_the_alt_text_is_shown_on_demand_only(server: Server) -> None:
    captioner(server).annotate(batch([40]))
    captioner(server, show_caption=True).annotate(batch([40]))
    hidden, shown = (body["messages"][0]["content"][1]["text"] for body in server.requests)
    assert "alt 40" not in hidden
    assert shown.startswith(hidden)
    assert "alt 40" in shown


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    recaption = captioner(server, api_key_env="VLM_KEY")
    monkeypatch.delenv("VLM_KEY", raising=False)
    with pytest.raises(UserError, match="export VLM_KEY"):
        recaption.annotate(batch([40]))
    monkeypatch.setenv("VLM_KEY", "secret")
    recaption.annotate(batch([40]))
    assert server.keys == {"Bearer secret"}


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_ends_the_run(server: Server, status: int) -> None:
    server.faults = {40: [status]}
    with pytest.raises(UserError, match=f"HTTP {status}"):
        captioner(server).annotate(batch([40, 80]))


def test_a_server_that_is_gone_is_an_error_of_the_samples(unused_port: int) -> None:
    gone = Server(url=f"http://127.0.0.1:{unused_port}/v1")
    with pytest.raises(ValueError, match="no answer after 1 attempts"):
        captioner(gone, retries=0).annotate(batch([40]))


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_address_names_the_captions_and_not_the_way_to_the_server() -> None:
    def name(**values: Any) -> str:
        return address(captioner(Server("http://a.example/v1"), **values))

    assert name() == name(base_url="http://b.example/v1", in_flight=2, retries=0, timeout_s=9, api_key_env="KEY")
    assert len({name(), name(model="other"), name(prompt="?"), name(show_caption=True), name(max_tokens=9)}) == 5


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        (' "A dog."\n', "A dog."),
        ("“A  dog.”", "A dog."),
        ('"Stop" and "Go" signs, one says "Go"', '"Stop" and "Go" signs, one says "Go"'),
        ("'A dog'", "A dog"),
        ("Sorry, a board game", "Sorry, a board game"),
    ],
)
def test_cleaning(answer: str, caption: str) -> None:
    assert clean(answer) == caption
