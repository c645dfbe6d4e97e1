"""What holds for every objective: names, gradients, padding, learning, cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import EncodedSample, GenLIP, GenLIPConfig, ModelError
from model.baselines import OBJECTIVES, Baseline, build_model, count_parameters, flops_per_sample
from tests.model.baselines.toys import BASELINES, gradients, image_of, make_sample, pack, tiny_baseline, tiny_config

GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


@pytest.mark.parametrize("objective", BASELINES)
def test_backbone_is_genlips(objective: str) -> None:
    """The same names and, with the same weights, the same features; also of images that differ in size."""
    baseline, genlip = tiny_baseline(objective).eval(), GenLIP(tiny_config()).eval()
    shared = {
        name: value
        for name, value in genlip.state_dict().items()
        if name.split(".")[0] in ("vision_embeddings", "visual", "ln_post")
    }
    missing, unexpected = baseline.load_state_dict(shared, strict=False)
    assert not unexpected
    assert not {name.split(".")[0] for name in missing} & {"vision_embeddings", "visual", "ln_post"}
    images = [image_of(make_sample(seed, grid)) for seed, grid in enumerate([(2, 3), (1, 1), (3, 4), (2, 3)])]
    for ours, theirs in zip(baseline.encode_images(images), genlip.encode_images(images), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert baseline.encode_images([]) == []


@pytest.mark.parametrize("objective", BASELINES)
@pytest.mark.parametrize("checkpointing", ["none", "all", "cheap"])
def test_every_parameter_gets_a_gradient(objective: str, checkpointing: str) -> None:
    torch.manual_seed(1)  # CapPa draws samples of both kinds
    model = tiny_baseline(objective)
    model.gradient_checkpointing = checkpointing != "none"
    model.recompute = "cheap" if checkpointing == "cheap" else "all"
    out = model(pack([make_sample(0), make_sample(1)], [make_sample(2, (3, 3), 5)]))
    assert out.loss_sum.isfinite()
    assert int(out.num_labels) == 5 + 5 + 7
    out.loss_sum.backward()
    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    # The bias of keys shifts all scores of a query alike, so its gradient is 0 but for rounding.
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if not name.endswith("k_proj.bias"))


@pytest.mark.parametrize("objective", BASELINES)
def test_checkpointing_changes_no_gradient(objective: str) -> None:
    rows = pack([make_sample(0), make_sample(1, (1, 2), 1)])
    found = []
    for checkpointing in (False, True):
        model = tiny_baseline(objective, drop_path_rate=0.3)
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        model(rows).loss_sum.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


@pytest.mark.parametrize("objective", BASELINES)
def test_batch_without_samples(objective: str) -> None:
    model = tiny_baseline(objective)
    out = model(pack([]))
    out.loss_sum.backward()
    assert float(out.loss_sum.detach()) == 0
    assert all(not gradient.any() for gradient in gradients(model).values())
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("objective", BASELINES)
def test_initialisation_depends_on_the_seed_alone(objective: str) -> None:
    model, again = tiny_baseline(objective), tiny_baseline(objective)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    again.init_weights(1)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, again.state_dict()[name])]
    assert all(f"{name}.weight" in changed for name in ("visual.layers.1.mlp.fc1", "vision_embeddings.patch_embedding"))
    again.init_weights(0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_fresh_backbones_are_equal() -> None:
    clip, others = tiny_baseline("clip").visual, [tiny_baseline(objective).visual for objective in BASELINES[1:]]
    for other in others:
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in clip.state_dict().items())


@pytest.mark.parametrize("objective", BASELINES)
def test_a_few_samples_are_learned(objective: str) -> None:
    model = tiny_baseline(objective, initializer_range=0.06)
    rows = pack([make_sample(seed) for seed in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        torch.manual_seed(0)
        loss = model(rows).loss_sum
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("preset", ["nano8", "s16", "b16"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameters_are_counted(preset: str, objective: str) -> None:
    config = GenLIPConfig.preset(preset, vocab_size=1000)
    with torch.device("meta"):
        model = build_model(config, objective)
    assert count_parameters(objective, config) == sum(value.numel() for value in model.state_dict().values())


@pytest.mark.parametrize("objective", BASELINES)
@pytest.mark.parametrize("mask_ratio", [0.5, 0.75])
def test_flops_are_those_of_the_modules(objective: str, mask_ratio: float) -> None:
    """Within what the counter adds: masked pairs of causal attention, and the pairs of the batch."""
    config = GenLIPConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        text_embed_dim=96,
        vocab_size=200,
        patch_size=4,
    )
    model = build_model(config, objective, mask_ratio)
    assert isinstance(model, Baseline)
    sample = make_sample(0, (8, 8), num_ids=10)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(pack([sample])).loss_sum.backward()
    # The gradient of the pixels is not computed.
    patch_embedding = 2 * 64 * config.hidden_size * 48
    counted = counter.get_total_flops() + patch_embedding
    expected = flops_per_sample(objective, config, 64, 14, 12, mask_ratio)
    assert expected == pytest.approx(counted, rel=0.03)


@settings(max_examples=15, deadline=None)
@given(grids=GRIDS, data=st.data())
def test_other_samples_change_nothing(grids: list[tuple[int, int]], data: st.DataObject) -> None:
    """Token losses of CapPa and embeddings of CLIP are those of each sample alone, however long the others are."""
    cappa, clip = tiny_baseline("cappa").eval(), tiny_baseline("clip").eval()
    num_ids = data.draw(st.lists(st.integers(0, 6), min_size=len(grids), max_size=len(grids)))
    samples = [make_sample(seed, grid, n) for seed, (grid, n) in enumerate(zip(grids, num_ids, strict=True))]
    cut = data.draw(st.integers(0, len(samples)))
    with torch.no_grad():
        together = cappa(pack(samples[:cut], [], samples[cut:])).token_losses_L
        alone = torch.cat([cappa(pack([sample])).token_losses_L for sample in samples])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        images, texts = [image_of(sample) for sample in samples], [sample.caption_ids for sample in samples]
        one_by_one = torch.cat([clip.embed_images([image]) for image in images])
        torch.testing.assert_close(clip.embed_images(images), one_by_one, rtol=1e-4, atol=1e-4)
        one_by_one = torch.cat([clip.embed_texts([text]) for text in texts])
        torch.testing.assert_close(clip.embed_texts(texts), one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", BASELINES)
def test_rows_of_another_model_are_refused(objective: str) -> None:
    model = tiny_baseline(objective, vocab_size=20)
    with pytest.raises(ModelError, match="vocab_size 20"):
        model(pack([make_sample(0)]))


@pytest.mark.parametrize("objective", ["clip", "siglip", "cappa"])
def test_images_without_captions_are_refused(objective: str) -> None:
    sample = make_sample(0)
    alone = EncodedSample(sample.patches, sample.grid, prompt_ids=[], caption_ids=[])
    with pytest.raises(ModelError, match="no caption"):
        tiny_baseline(objective)(pack([sample, alone]))


def test_unknown_objectives_and_options_are_refused() -> None:
    with pytest.raises(ModelError, match="clip, siglip, mae, cappa"):
        build_model(tiny_config(), "blip")
    with pytest.raises(ModelError, match="mask_ratio"):
        build_model(tiny_config(), "mae", mask_ratio=1.0)
    assert isinstance(build_model(tiny_config(), "genlip"), GenLIP)
