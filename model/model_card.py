"""README.md of a model folder."""

from collections.abc import Mapping

from .baselines.baseline import Baseline
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

BASELINE_CARD = """\
---
pipeline_tag: image-feature-extraction
license: {license}
tags:
- vision
- image-feature-extraction
---

# {name}

A baseline for comparison with GenLIP: GenLIP's vision encoder, trained with the objective `{objective}`: {summary}.
It is no model of the work it is named after: backbone, sizes and data are those of the comparison.

## Architecture

{architecture}

Encoder: pre-norm blocks with gated attention, SwiGLU and LayerScale; interleaved 3-axis rotary positions; no class
token. Its weights carry the names that they have in a GenLIP model.

## Images and text

{processing}

## Use

With the genlip package; the Auto classes of transformers do not know this model.

```python
from model import load_model, load_rgb

loaded = load_model("{name}")
images = [loaded.processor.patches(load_rgb("cup.jpg"))]
features = loaded.model.encode_images(images)[0]  # [patches, {width}]
{use}
```

## Training

{training}
"""

BASELINE_SUMMARIES = {
    "clip": "images and captions are embedded by two towers, and each picks its partner in the batch (CLIP)",
    "siglip": "images and captions are embedded by two towers, and each combination is judged a pair or none (SigLIP)",
    "mae": "the pixels of masked patches are predicted from the visible ones (MAE); it has seen no captions",
    "cappa": "a decoder attends to the patches and predicts the caption, of some samples in parallel (CapPa)",
}
_EMBEDDINGS = """\
texts = loaded.model.embed_texts([loaded.tokenizer.encode("A red cup.") + loaded.tokenizer.ending_ids])
cosines = loaded.model.embed_images(images) @ texts.T"""
BASELINE_USES = {
    "clip": _EMBEDDINGS,
    "siglip": _EMBEDDINGS,
    "mae": "",
    "cappa": "print(loaded.tokenizer.decode(loaded.model.generate_ids(images, loaded.tokenizer.ending_ids)[0]))",
}


def render_model_card(
    name: str, model: GenLIP | Baseline, tokenizer: Tokenizer, processor: ImageProcessor, facts: Mapping[str, str]
) -> str:
    """The card as Markdown with YAML front matter; `facts` fill the training section."""
    facts = dict(facts)
    special = {}
    if isinstance(model, Baseline):
        special = {"summary": BASELINE_SUMMARIES[model.objective], "use": BASELINE_USES[model.objective]}
    return (BASELINE_CARD if isinstance(model, Baseline) else CARD).format(
        name=name,
        objective=model.objective,
        **special,
        license=facts.pop("License", DEFAULT_LICENSE),
        width=model.config.hidden_size,
        architecture=_architecture_table(model),
        processing=_processing_lines(tokenizer, processor),
        training="\n".join(f"- {key}: {value}" for key, value in facts.items()) or "Nothing was recorded.",
    )


def _architecture_table(model: GenLIP | Baseline) -> str:
    config = model.config
    total = sum(parameter.numel() for parameter in model.parameters())
    encoder_layers = [model.vision_embeddings, model.visual, model.ln_post]
    encoder = sum(parameter.numel() for layer in encoder_layers for parameter in layer.parameters())
    rows = {
        "parameters": f"{total:,}",
        "of these, vision encoder (patches, blocks, last norm)": f"{encoder:,}",
        **_text_rows(model),
        "blocks": config.num_hidden_layers,
        "width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "feed-forward width": config.intermediate_size,
        "patch": f"{config.patch_size} x {config.patch_size} pixels",
        "rotary theta, sections": f"{config.rope_theta:g}, {list(config.mrope_section)}",
        "stored as": str(model.ln_post.weight.dtype).removeprefix("torch."),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _text_rows(model: GenLIP | Baseline) -> dict[str, str]:
    """What only some models have."""
    config = model.config
    if isinstance(model, Baseline):
        others = {name: f"{value:g}" for name, value in model.options.items()}
        return others | ({} if model.objective == "mae" else {"vocabulary": f"{config.vocab_size}"})
    tables = 2 * config.vocab_size * config.text_embed_dim
    return {
        "of these, token table and LM head": f"{tables:,}",
        "text width": f"{config.text_embed_dim}",
        "vocabulary": f"{config.vocab_size}",
    }


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
