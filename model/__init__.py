"""GenLIP: generative language-image pretraining of a Vision Transformer. See README.md in this folder."""

from .baselines import Baseline, build_model
from .batch import EncodedSample, PackedRows, pack_rows
from .configuration_genlip import GenLIPConfig, list_presets
from .counting import count_parameters, flops_per_sample
from .errors import ModelError
from .export import save_model
from .generation import Decoding, generate, generate_ids
from .modeling_genlip import GenLIP, LossOutput
from .processing_genlip import ImageProcessor, load_rgb
from .scoring import score_captions, score_unconditional
from .tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from .weights import LoadedModel, load_model, load_weights

__all__ = [
    "Baseline",
    "Decoding",
    "EncodedSample",
    "GenLIP",
    "GenLIPConfig",
    "HFTokenizer",
    "ImageProcessor",
    "LoadedModel",
    "LossOutput",
    "ModelError",
    "PackedRows",
    "SentencePieceTokenizer",
    "Tokenizer",
    "build_model",
    "count_parameters",
    "flops_per_sample",
    "generate",
    "generate_ids",
    "list_presets",
    "load_model",
    "load_rgb",
    "load_tokenizer",
    "load_weights",
    "pack_rows",
    "save_model",
    "score_captions",
    "score_unconditional",
]
