"""Captions of a model that knows its images by heart, and of one that knows nothing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from model import (
    EncodedSample,
    GenLIPConfig,
    ImageProcessor,
    LoadedModel,
    SentencePieceTokenizer,
    load_rgb,
    pack_rows,
)
from model.baselines import build_model
from train.evaluation.caption_metrics import CiderD, bleu_4, rouge_l
from train.evaluation.captioning import MAX_NEW_TOKENS, captioning
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

CAPTIONS = (
    "a red bird on the roof",
    "two green apples in a bowl",
    "an old man with a blue hat",
    "the moon above a quiet lake",
)


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


HELDOUT = [
    Labelled(f"image-{number}", picture(number), (caption, "something else entirely"))
    for number, caption in enumerate(CAPTIONS)
]
TRAINING = [Labelled(f"t{number}", picture(9), ("a red bird on the roof",)) for number in range(2)]
DATA = EvalData([*HELDOUT, Labelled("without words", picture(8))], TRAINING)


def untrained(objective: str) -> LoadedModel:
    tokenizer = SentencePieceTokenizer.train(CAPTIONS, vocab_size=400)
    config = GenLIPConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        text_embed_dim=48,
        vocab_size=tokenizer.vocab_size,
        patch_size=8,
        drop_path_rate=0.0,
    )
    torch.manual_seed(0)
    model = build_model(config, objective, parallel=0.0)
    model.init_weights(0)
    return LoadedModel(model, tokenizer, ImageProcessor(image_px=16, patch_size=8))


def learn_by_heart(loaded: LoadedModel) -> None:
    encoded = [
        EncodedSample(
            *loaded.processor.patches(load_rgb(one.image)),
            loaded.tokenizer.prompt_ids,
            [*loaded.tokenizer.encode(one.caption), *loaded.tokenizer.ending_ids],
        )
        for one in HELDOUT
    ]
    rows = pack_rows([encoded], sum(one.num_tokens for one in encoded))
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=5e-3)
    loaded.model.train()
    for _ in range(80):
        optimizer.zero_grad()
        (loaded.model(rows).loss_sum / rows.num_labels).backward()
        optimizer.step()
    loaded.model.eval()


@pytest.mark.parametrize("objective", ["genlip", "cappa"])
def test_a_model_that_knows_the_images_is_far_above_chance(objective: str) -> None:
    loaded = untrained(objective)
    learn_by_heart(loaded)
    part = captioning(loaded, DATA, EvalSpec(batch_images=3))
    assert [one["generated"] for one in part.details["captioning/samples"]] == list(CAPTIONS)
    assert part.metrics["captioning/bleu_4"].value == pytest.approx(1)
    assert part.metrics["captioning/rouge_l"].value == pytest.approx(1)
    for name in ("cider", "rouge_l", "bleu_4"):
        chance = part.metrics[f"captioning/{name}"].chance
        assert chance is not None
        assert part.metrics[f"captioning/{name}"].value > 2 * chance
    baseline = part.details["captioning/baselines"]["most_common_training_caption"]
    assert baseline["caption"] == "a red bird on the roof"
    assert 0 < baseline["rouge_l"] < 1
    assert part.metrics["captioning/words"].value == np.mean([len(caption.split()) for caption in CAPTIONS])
    assert part.metrics["captioning/num_different"].value == 4
    assert part.metrics["captioning/repeated_trigram"].value == part.metrics["captioning/cut_short"].value == 0
    assert part.details["captioning/true_captions"]["words"] == part.metrics["captioning/words"].value


def test_a_model_that_knows_nothing_babbles_to_the_limit() -> None:
    part = captioning(untrained("genlip"), DATA, EvalSpec())
    generated = [one["generated"] for one in part.details["captioning/samples"]]
    references = [one.captions for one in HELDOUT]
    assert part.metrics["captioning/cider"].value == pytest.approx(CiderD(references).scores(generated).mean())
    assert part.metrics["captioning/bleu_4"].value == bleu_4(generated, references)
    assert part.per_image["captioning/rouge_l"][:4] == pytest.approx(list(map(rouge_l, generated, references)))
    assert part.metrics["captioning/cut_short"].value == 1
    assert part.metrics["captioning/tokens"].value == MAX_NEW_TOKENS


def test_per_image_numbers_have_a_place_for_every_image() -> None:
    part = captioning(untrained("genlip"), DATA, EvalSpec())
    for name, values in part.per_image.items():
        assert np.isnan(values).tolist() == [False] * 4 + [True]
        assert np.nanmean(values) == pytest.approx(part.metrics[name].value)


def test_what_cannot_be_measured_is_said() -> None:
    silent = EvalData([Labelled("a", picture(1)), Labelled("b", picture(2))], [])
    assert captioning(untrained("genlip"), silent, EvalSpec()).notes == [
        "captioning: left out, fewer than two held-out images have a caption"
    ]
    part = captioning(untrained("siglip"), DATA, EvalSpec())
    assert part.metrics == {}
    assert part.notes == ["captioning: left out, siglip writes no text"]
