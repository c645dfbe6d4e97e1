"""README.md of a model folder."""

from collections.abc import Mapping

from .counting import count_parameters
from .modeling_genlip import GenLIP
from .processing_genlip import ImageProcessor
from .tokenizer import HFTokenizer, Tokenizer

DEFAULT_LICENSE = "apache-2.0"

CARD = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
license: {license}
tags:
- genlip
- vision
- image-feature-extraction
- image-to-text
- custom_code
---

# {name}

A GenLIP model: one Transformer over an image's patches followed by its caption, trained to predict the caption and
nothing else. Its features at the patches (the output of the last norm) are meant for a multimodal language model, or
for a probe on top; it also writes and scores captions.

## Architecture

{architecture}

Pre-norm blocks with gated attention, SwiGLU and LayerScale; interleaved 3-axis rotary positions; no class token. Image
patches see the whole image, text sees the image and earlier text, images never see text. Weights carry the names of
the official GenLIP release.

## Images and text

{processing}

## Use

With transformers 5 (from 4.53 on model and image processor load too; pass `torch_dtype="auto"` there). It runs the
Python files of this folder, which need torch, Pillow and sentencepiece:

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = "{name}"
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

inputs = processor([Image.open("cup.jpg")], return_tensors="pt")
features = model(**inputs).last_hidden_state  # [patches of all images, {width}]
print(tokenizer.batch_decode(model.generate_ids(**inputs), skip_special_tokens=True))
```

`inputs` hold the patches of all images and `image_grid_thw` (1, grid rows, grid columns) of each, so images may differ
in size. Without grids, `model(pixel_values)` takes normalised images [n, 3, height, width] and returns
[n, patches, {width}]. `model.genlip` is the whole network.

With the genlip package:

```python
from model import generate, load_model, load_rgb

loaded = load_model("{name}")
patches, grid = loaded.processor.patches(load_rgb("cup.jpg"))
features = loaded.model.encode_image(patches, grid)  # [patches, {width}]
print(generate(loaded.model, [(patches, grid)], loaded.tokenizer))
```

## Training

{training}

## Limitations

- A caption model repeats what its captions said, errors and biases included; it was not made safe or truthful.
- One image per sample, before the text. Captions are greedy.
- There is no contrastive embedding: zero-shot classification and retrieval go through caption likelihoods.
- Images are normalised to [-1, 1]; any other resize or normalisation changes the features.
"""


def render_model_card(
    name: str, model: GenLIP, tokenizer: Tokenizer, processor: ImageProcessor, facts: Mapping[str, str]
) -> str:
    """The card as Markdown with YAML front matter; `facts` fill the training section."""
    facts = dict(facts)
    return CARD.format(
        name=name,
        license=facts.pop("License", DEFAULT_LICENSE),
        width=model.config.hidden_size,
        architecture=_architecture_table(model),
        processing=_processing_lines(tokenizer, processor),
        training="\n".join(f"- {key}: {value}" for key, value in facts.items()) or "Nothing was recorded.",
    )


def _architecture_table(model: GenLIP) -> str:
    config = model.config
    total = count_parameters(config)
    tables = 2 * config.vocab_size * config.text_embed_dim
    encoder_layers = [model.vision_embeddings, model.visual, model.ln_post]
    encoder = sum(parameter.numel() for layer in encoder_layers for parameter in layer.parameters())
    rows = {
        "parameters": f"{total:,}",
        "of these, vision encoder (patches, blocks, last norm)": f"{encoder:,}",
        "of these, token table and LM head": f"{tables:,}",
        "blocks": config.num_hidden_layers,
        "width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "feed-forward width": config.intermediate_size,
        "text width": config.text_embed_dim,
        "vocabulary": config.vocab_size,
        "patch": f"{config.patch_size} x {config.patch_size} pixels",
        "rotary theta, sections": f"{config.rope_theta:g}, {list(config.mrope_section)}",
        "stored as": str(model.ln_post.weight.dtype).removeprefix("torch."),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _processing_lines(tokenizer: Tokenizer, processor: ImageProcessor) -> str:
    if processor.mode == "square":
        size = f"squashed to {processor.image_px} x {processor.image_px} pixels, whatever their shape"
    else:
        size = (
            f"kept in their aspect ratio, each side rounded to whole patches, {processor.min_pixels:,} to"
            f" {processor.max_pixels:,} pixels in all"
        )
    kind = "a Hugging Face tokenizer" if isinstance(tokenizer, HFTokenizer) else "SentencePiece (`tokenizer.model`)"
    return (
        f"- Images: RGB, {size}; PIL bilinear; normalised to [-1, 1].\n"
        f"- Text: {kind}, {tokenizer.vocab_size:,} ids. Prompt between image and caption: {tokenizer.prompt_ids}; a\n"
        f"  caption ends with {tokenizer.ending_ids}. Special tokens inside a caption are plain text."
    )
