"""`recaption`: captions by a vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, Ollama …)."""

import asyncio
import base64
import email.utils
import hashlib
import os
import random
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import aiohttp
import pyarrow as pa
from pydantic import Field

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.errors import EXIT_ENVIRONMENT, UserError

_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 60.0
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“", "「": "」"}
_REFUSAL = re.compile(
    r"(?:i['’]?m sorry|i am sorry|sorry, (?:but )?i|i apologi[sz]e)\b"
    r"|(?:i can['’]?t|i cannot|i['’]?m unable|i am unable|i['’]?m not able)\b",
    re.IGNORECASE,
)


class _Retry(Exception):
    """Worth another attempt, not before so many seconds."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@annotator("recaption")
class Recaption(Annotator):
    """Captions by a vision-language model that answers at `BASE_URL/chat/completions`.

    A sample whose answer is empty, refused or still missing after the retries counts as an error. How the model is
    reached (address, key, retries, requests at a time) is no part of the column's identity, so that a run may go on
    at another server of the same model.
    """

    num_cpus: ClassVar[float] = 0.25
    base_url: Annotated[str, Field(pattern="^https?://", exclude=True)]
    """Such as http://vlm.example:8000/v1."""
    model: str
    """The model's name, as the server knows it."""
    prompt: str = "Describe the image in one or two plain sentences."
    show_caption: bool = False
    """Show the alt text to the model, after the prompt."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0)] = 0.0
    column: str = "recaption"
    in_flight: Annotated[int, Field(ge=1, exclude=True)] = 32
    """Requests at a time in each process."""
    timeout_s: Annotated[float, Field(gt=0, exclude=True)] = 120.0
    """For one request."""
    retries: Annotated[int, Field(ge=0, exclude=True)] = 4
    """After 429, 5xx, a time-out, a broken connection or an answer that is no JSON."""
    api_key_env: Annotated[str | None, Field(exclude=True)] = None
    """Name of the environment variable with the key, which never stands in a recipe."""

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.string()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        pairs = list(zip(batch.image_bytes, batch.captions, strict=True))
        keys = [_request_key(self.model_dump_json(), image, caption) for image, caption in pairs]
        latest = _latest()
        if len(pairs) == 1 and keys[0] in latest:
            # After an error in a batch each of its samples is asked for alone: that must not cost a second request.
            return {self.column: [_unwrap(latest.pop(keys[0]))]}
        outcomes = asyncio.run(self._ask_all(pairs))
        latest.clear()
        if len(pairs) > 1:
            latest.update(zip(keys, outcomes, strict=True))
        return {self.column: [_unwrap(outcome) for outcome in outcomes]}

    async def _ask_all(self, pairs: list[tuple[bytes, str]]) -> list[str | ValueError]:
        """The caption of each, or why there is none."""
        slots = asyncio.Semaphore(self.in_flight)
        headers = {"Authorization": f"Bearer {self._api_key()}"} if self.api_key_env else {}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        connector = aiohttp.TCPConnector(limit=self.in_flight)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:

            async def one(image: bytes, caption: str) -> str | ValueError:
                async with slots:
                    try:
                        return await self._ask(session, image, caption)
                    except UserError:
                        raise
                    except ValueError as error:
                        return error

            return await asyncio.gather(*(one(image, caption) for image, caption in pairs))

    def _api_key(self) -> str:
        key = os.environ.get(self.api_key_env or "")
        if not key:
            raise UserError(
                "the key of the recaptioning endpoint is not set",
                where="curate.annotate: recaption: api_key_env",
                next_step=f"export {self.api_key_env}=… on every node",
                exit_code=EXIT_ENVIRONMENT,
            )
        return key

    async def _ask(self, session: aiohttp.ClientSession, image: bytes, caption: str) -> str:
        body = self._request(image, caption)
        for attempt in range(self.retries + 1):
            try:
                return clean(await self._post(session, body))
            except (_Retry, aiohttp.ClientError, TimeoutError) as error:
                if attempt == self.retries:
                    what = f"{type(error).__name__}: {error}" if not isinstance(error, _Retry) else str(error)
                    raise ValueError(f"no answer after {attempt + 1} attempts, last: {what}") from error
                asked_s = error.wait_s if isinstance(error, _Retry) else 0.0
                # Jitter, so that a server that comes back does not meet all of us at once.
                wait_s = max(asked_s, _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1))
                await asyncio.sleep(min(wait_s, _MAX_WAIT_S))
        raise AssertionError("unreachable")

    def _request(self, image: bytes, caption: str) -> dict[str, Any]:
        prompt = f"{self.prompt}\nIts alt text on the web: {caption}" if self.show_caption else self.prompt
        url = f"data:{_media_type(image)};base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    async def _post(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
        """One request: the text of the answer."""
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        async with session.post(url, json=body) as response:
            if response.status == 429 or response.status >= 500:
                wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
                raise _Retry(f"HTTP {response.status}", wait_s)
            if response.status in (401, 403, 404):
                raise UserError(
                    f"the recaptioning endpoint answers HTTP {response.status}",
                    where=url,
                    why=(await response.text(errors="replace"))[:200],
                    next_step="correct base_url, model or api_key_env of curate.annotate: recaption",
                )
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}: {(await response.text(errors='replace'))[:100]}")
            try:
                choice = (await response.json(content_type=None))["choices"][0]
                message, reason = choice["message"], choice.get("finish_reason")
                text, refusal = message.get("content"), message.get("refusal")
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise _Retry(f"the answer is no chat completion: {type(error).__name__}") from error
        if refusal or reason == "content_filter":
            raise ValueError(f"refused: {refusal or reason}")
        return text if isinstance(text, str) else ""


def clean(text: str) -> str:
    """The caption in a model's answer: white space collapsed, no quotes around it.

    Raises:
        ValueError: There is none, or the model says that it will not.
    """
    caption = " ".join(text.split())
    while len(caption) > 1 and _QUOTES.get(caption[0]) == caption[-1] and caption[0] not in caption[1:-1]:
        caption = caption[1:-1].strip()
    if not caption:
        raise ValueError("the answer is empty")
    if _REFUSAL.match(caption):
        raise ValueError(f"refused: {caption}")
    return caption


def _retry_after_s(header: str) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3): a number or a date; 0 for none."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _media_type(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if image[8:12] == b"WEBP" else "image/jpeg"


def _request_key(identity: str, image: bytes, caption: str) -> bytes:
    return hashlib.sha256(b"\0".join([identity.encode(), caption.encode(errors="replace"), image])).digest()


@lru_cache(maxsize=1)
def _latest() -> dict[bytes, str | ValueError]:
    """The outcomes of this process's latest batch, by request."""
    return {}


def _unwrap(outcome: str | ValueError) -> str:
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome
