"""Annotators that need a tokenizer, our own model or an engine on a GPU; importing this registers them.

They follow `pipeline.annotate.annotator` like anybody's plug-in. They live here because pipeline knows neither the
model nor torch, which are imported when the first batch is computed.
"""

from jobs.annotators import genlip, recaption_vllm, tokens

__all__ = ["genlip", "recaption_vllm", "tokens"]
