"""`vllm_caption`: captions by a vision-language model in an engine of this process, one GPU each."""

import base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.errors import EXIT_ENVIRONMENT, UserError


@annotator("vllm_caption")
class VLLMCaption(Annotator):
    """Captions by the offline engine of vLLM, decoded greedily."""

    model: str
    """Name or folder of a vision-language model with a chat template, such as Qwen/Qwen2.5-VL-7B-Instruct."""
    prompt: str = "Describe the image in one or two plain sentences."
    max_tokens: Annotated[int, Field(ge=1)] = 128
    column: str = "recaption"

    num_gpus: ClassVar[float] = 1
    batch_samples: ClassVar[int] = 256

    def columns(self) -> dict[str, pa.DataType]:
        return {self.column: pa.string()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        engine, sampling = _engine(self.model, self.max_tokens)
        answers = engine.chat([self._conversation(image) for image in batch.image_bytes], sampling, use_tqdm=False)
        return {self.column: [answer.outputs[0].text.strip() or None for answer in answers]}

    def _conversation(self, image: bytes) -> list[dict[str, Any]]:
        # The engine decodes by content, so the media type is only a form.
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]


@lru_cache(maxsize=1)
def _engine(model: str, max_tokens: int) -> tuple[Any, Any]:
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        what, next_step = "vllm_caption needs vLLM", "run: pip install vllm (on the machines with GPUs)"
        raise UserError(what, why=str(error), next_step=next_step, exit_code=EXIT_ENVIRONMENT) from error
    try:
        engine = LLM(model=model, limit_mm_per_prompt={"image": 1})
    except (OSError, ValueError, RuntimeError) as error:  # once for all, not for each sample
        raise UserError("vLLM does not start", where=model, why=str(error), exit_code=EXIT_ENVIRONMENT) from error
    return engine, SamplingParams(temperature=0.0, max_tokens=max_tokens)
