"""A decoder process that dies, hangs or runs out of memory costs one image; a parent that dies takes it along."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pixel_files import encode, noise, photo, png_of_one_colour

from pipeline.errors import UserError
from pipeline.pixels.decoder import Decoder
from pipeline.pixels.images import ImageError, transcode
from pipeline.pixels.spec import ImageSpec
from pipeline.processes import forget

SPEC = ImageSpec(size_px=100)
GOOD = encode(photo(300, 200), "JPEG")
NUM_TAIL_BYTES = 40_000_000
SLOW = encode(noise(1_500, 1_500), "PNG", compress_level=1) + bytes(NUM_TAIL_BYTES)
"""Some tenths of a second; whoever has read the tail has been given the image."""
VERY_SLOW_SPEC = ImageSpec(size_px=3_000, only_if_bigger=False, format="webp", max_pixels=100_000_000)
"""Takes seconds with `SLOW`."""


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder(SPEC) as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def _no_others() -> None:
    """Ends the decoders that tests of other modules have left for their next unit."""
    forget()


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        try:
            if "pipeline.pixels.child" in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def _kill_busy_children(num_kills: int) -> threading.Thread:
    """Kills as many decoders, each after it was given `SLOW`."""

    def kill() -> None:
        killed: set[int] = set()
        while len(killed) < num_kills:
            time.sleep(0.05)
            for child in _children():
                if child.pid not in killed and child.io_counters().read_chars > NUM_TAIL_BYTES:
                    killed.add(child.pid)
                    child.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_it_gives_what_transcode_gives(decoder: Decoder) -> None:
    boxes = [(0.1, 0.2, 0.5, 0.6)]
    for body in (GOOD, encode(photo(50, 70), "WEBP"), encode(noise(1_400, 1_000), "PNG")):
        assert decoder.transcode(body) == transcode(body, SPEC)
        assert decoder.transcode(body, boxes) == transcode(body, SPEC, boxes)
    assert len(_children()) == 1


def test_a_body_larger_than_any_pipe(decoder: Decoder) -> None:
    body = GOOD + os.urandom(20_000_000)
    assert decoder.transcode(body).body == decoder.transcode(GOOD).body


def test_errors_come_with_what_is_known(decoder: Decoder) -> None:
    for body, reason, size in ((b"text", "not_image", (None, None)), (GOOD[:-5], "image_truncated", (300, 200))):
        with pytest.raises(ImageError, match=f"^{reason}$") as caught:
            decoder.transcode(body)
        assert (caught.value.original_width, caught.value.original_height) == size
    assert decoder.transcode(GOOD).width == 100


def test_an_image_whose_process_is_killed_twice_is_given_up() -> None:
    with Decoder(VERY_SLOW_SPEC) as decoder:
        killer = _kill_busy_children(2)
        with pytest.raises(ImageError, match=r"^decoder_crashed$"):
            decoder.transcode(SLOW)
        killer.join()
        assert decoder.transcode(encode(noise(9, 9), "PNG")).original_width == 9


def test_an_image_whose_process_is_killed_once_is_none_the_worse() -> None:
    with Decoder(VERY_SLOW_SPEC) as decoder:
        killer = _kill_busy_children(1)
        assert decoder.transcode(SLOW).width == 3_000
        killer.join()


def test_a_process_killed_while_idle_costs_nothing(decoder: Decoder) -> None:
    decoder.transcode(GOOD)
    for _ in range(3):
        (child,) = _children()
        child.kill()
        assert decoder.transcode(GOOD).width == 100


def test_a_process_that_crashes_by_itself_costs_one_image(decoder: Decoder) -> None:
    """A signal that is not SIGKILL is what a decoder's own fault looks like: no second try."""
    decoder.transcode(GOOD)
    (child,) = _children()
    child.suspend()
    timer = threading.Timer(0.3, lambda: (child.send_signal(signal.SIGSEGV), child.resume()))
    timer.start()
    with pytest.raises(ImageError, match=r"^decoder_crashed$"):
        decoder.transcode(GOOD)
    assert decoder.transcode(GOOD).width == 100


def test_memory_is_limited() -> None:
    large = png_of_one_colour(9_000, 9_000)
    with Decoder(ImageSpec(size_px=100, decode_memory_mb=100)) as decoder:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^decoder_crashed$"):
                decoder.transcode(large)
            assert decoder.transcode(GOOD).width == 100
    with Decoder(SPEC) as decoder:
        assert decoder.transcode(large).width == 100


def test_time_is_limited() -> None:
    spec = VERY_SLOW_SPEC.model_copy(update={"decode_timeout_s": 0.2})
    with Decoder(spec) as decoder:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^decoder_timeout$"):
                decoder.transcode(SLOW)


def test_a_process_that_takes_no_bytes_is_timed_out() -> None:
    with Decoder(ImageSpec(size_px=100, decode_timeout_s=1.0)) as decoder:
        decoder.transcode(GOOD)
        (child,) = _children()
        child.suspend()
        with pytest.raises(ImageError, match=r"^decoder_timeout$"):
            decoder.transcode(bytes(20_000_000))
        assert decoder.transcode(GOOD).width == 100


def test_any_thread_may_call_and_end(decoder: Decoder) -> None:
    """A parent-death signal would end the process with the thread that started it."""
    widths: list[int] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: widths.append(decoder.transcode(GOOD).width))
        thread.start()
        thread.join()
        time.sleep(0.1)
        assert len(_children()) == 1
    assert widths == [100, 100]


def test_it_is_closed_and_opened_again(decoder: Decoder) -> None:
    num_descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        decoder.transcode(GOOD)
        decoder.close()
        assert not _children()
    assert len(os.listdir("/proc/self/fd")) == num_descriptors


def test_credentials_are_not_handed_on(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    decoder.transcode(GOOD)
    assert "AWS_SECRET_ACCESS_KEY" not in _children()[0].environ()


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('no cv2 on this machine')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Decoder(SPEC) as decoder, pytest.raises(UserError, match="no cv2 on this machine"):
        decoder.transcode(GOOD)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with Decoder(SPEC) as decoder, pytest.raises(UserError, match="no-python"):
        decoder.transcode(GOOD)


PARENT = """
import sys
from pathlib import Path
from pipeline.pixels.decoder import Decoder
from pipeline.pixels.spec import ImageSpec
from pipeline.processes import forget
decoder = Decoder(ImageSpec.model_validate_json(sys.argv[2]))
decoder.transcode(Path(sys.argv[1]).read_bytes())
print("ready", flush=True)
while True:
    decoder.transcode(Path(sys.argv[1]).read_bytes()) if sys.argv[3] == "busy" else sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_killed_parent_takes_it_along(state: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(SLOW if state == "busy" else GOOD)
    spec = ImageSpec(resize="no", format="png", decode_timeout_s=600)
    command = [sys.executable, "-c", PARENT, str(image), spec.model_dump_json(), state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    gone, _alive = psutil.wait_procs([child], timeout=20)
    assert gone == [child]
