"""Serves the images of a corpus folder over HTTP on loopback, with the failures that the web has.

``/img/FILE`` is the image; the other first parts of a path (see `ROUTES`) fail in one way each. FILE is relative to
the corpus's images/ folder.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aiohttp import web

from jobs.demo.corpus import image_path

HOST = "127.0.0.1"
SLOW_LIMIT_S = 60.0
SLOW_STEP_S = 1.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
PARENT_POLL_S = 0.5
CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
HTML_PAGE = "<!doctype html><html><head><title>Moved</title></head><body><p>This image has moved.</p></body></html>"

_FOLDER = web.AppKey("folder", Path)
_SEEN_BY_FLAKY = web.AppKey("seen_by_flaky", set[Path])

Handler = Callable[[web.Request, Path], Awaitable[web.StreamResponse]]


@contextmanager
def start_server(folder: Path, port: int = 0) -> Iterator[str]:
    """Runs the server in a process of its own while the context lasts.

    Args:
        folder: corpus folder with images/.
        port: 0 takes a free one.

    Yields:
        The base URL, e.g. ``http://127.0.0.1:40123``.

    Raises:
        RuntimeError: the server does not start; the message holds its error.
    """
    with tempfile.TemporaryDirectory(prefix="genlip-server-") as work, open(Path(work) / "stderr", "w+") as stderr:
        port_file = Path(work) / "port"
        command = [sys.executable, "-m", "jobs.demo.server", str(folder.resolve()), "--port", str(port)]
        command += ["--port-file", str(port_file), "--parent-pid", str(os.getpid())]
        # The package may be used from a checkout that is not the working directory.
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=stderr)
        try:
            give_up_at = time.monotonic() + START_TIMEOUT_S
            while not port_file.is_file():
                if process.poll() is not None or time.monotonic() > give_up_at:
                    stderr.seek(0)
                    raise RuntimeError(f"the demo's image server for {folder} did not start: {stderr.read()[-2000:]}")
                time.sleep(0.02)
            yield f"http://{HOST}:{port_file.read_text()}"
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _img(_: web.Request, path: Path) -> web.StreamResponse:
    return _image_response(path)


async def _dead(_: web.Request, path: Path) -> web.StreamResponse:
    raise web.HTTPNotFound(text="gone\n")


async def _error(_: web.Request, path: Path) -> web.StreamResponse:
    raise web.HTTPServiceUnavailable(text="overloaded\n")


async def _html(_: web.Request, path: Path) -> web.StreamResponse:
    return web.Response(text=HTML_PAGE, content_type="text/html")


async def _noai(_: web.Request, path: Path) -> web.StreamResponse:
    response = _image_response(path)
    response.headers["X-Robots-Tag"] = "noai"
    return response


async def _flaky(request: web.Request, path: Path) -> web.StreamResponse:
    seen = request.app[_SEEN_BY_FLAKY]
    if path in seen:
        return _image_response(path)
    seen.add(path)
    raise web.HTTPServiceUnavailable(text="try again\n")


async def _slow(request: web.Request, path: Path) -> web.StreamResponse:
    """Sends one byte per second, so that only a deadline for the whole transfer ends it early."""
    data = await asyncio.to_thread(path.read_bytes)
    response = await _start_body(request, path, len(data))
    for index in range(min(len(data) - 1, int(SLOW_LIMIT_S / SLOW_STEP_S))):
        await response.write(data[index : index + 1])
        await asyncio.sleep(SLOW_STEP_S)
    return _cut_off(request, response)


async def _truncated(request: web.Request, path: Path) -> web.StreamResponse:
    data = await asyncio.to_thread(path.read_bytes)
    response = await _start_body(request, path, len(data))
    await response.write(data[: len(data) // 2])
    return _cut_off(request, response)


ROUTES: dict[str, Handler] = {
    "img": _img,  # the image
    "dead": _dead,  # 404
    "error": _error,  # 503
    "slow": _slow,  # bytes drip for up to a minute, then the connection closes
    "truncated": _truncated,  # the connection closes after half of the announced bytes
    "html": _html,  # a page instead of an image, with status 200
    "noai": _noai,  # the image with `X-Robots-Tag: noai`
    "flaky": _flaky,  # 503 to the first request for the file, then the image
}


def _image_response(path: Path) -> web.FileResponse:
    return web.FileResponse(path, headers={"Content-Type": _content_type(path)})


def _content_type(path: Path) -> str:
    return CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")


async def _start_body(request: web.Request, path: Path, num_bytes: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": _content_type(path)})
    response.content_length = num_bytes
    await response.prepare(request)
    return response


def _cut_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Closes the connection after what was written, short of the announced length."""
    response.force_close()
    if request.transport is not None:
        request.transport.close()
    return response


async def _dispatch(request: web.Request) -> web.StreamResponse:
    handler = ROUTES.get(request.match_info["kind"])
    path = image_path(request.app[_FOLDER], f"images/{request.match_info['file']}")
    if handler is None or path is None:
        raise web.HTTPNotFound(text="no such image\n")
    return await handler(request, path)


def _app(folder: Path) -> web.Application:
    app = web.Application()
    app[_FOLDER] = folder
    app[_SEEN_BY_FLAKY] = set()
    app.router.add_get("/{kind}/{file:.+}", _dispatch)
    return app


async def _serve(folder: Path, port: int, port_file: Path | None, parent_pid: int) -> None:
    """Serves until SIGTERM, SIGINT or the end of the parent process."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(_app(folder), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        if port_file is not None:
            part = port_file.with_name(f"{port_file.name}.{os.getpid()}")
            part.write_text(str(runner.addresses[0][1]))
            part.replace(port_file)
        while not stop.is_set() and os.getppid() == parent_pid:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PARENT_POLL_S)
    finally:
        await runner.cleanup()


def main() -> None:
    """Command line: ``python -m jobs.demo.server FOLDER [--port PORT] [--port-file PATH]``."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo.server", description="Serve a corpus folder on loopback."
    )
    parser.add_argument("folder", type=Path, help="corpus folder with images/")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--port-file", type=Path, help="the port is written here when the server is ready")
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help="end when this is no longer the parent")
    options = parser.parse_args()
    if not (options.folder / "images").is_dir():
        parser.error(f"{options.folder} has no images/ folder: name a corpus folder")
    asyncio.run(_serve(options.folder, options.port, options.port_file, options.parent_pid))


if __name__ == "__main__":
    main()
