"""What `test_model_hf.py` runs in a process of its own: only torch, transformers and the exported folders.

Arguments: a JSON file that says what to load and where to write, and the repository to leave out.
"""

import contextlib
import copy
import importlib
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

WORK = json.loads(Path(sys.argv[1]).read_text())
# An editable install puts the repository back on the path, directly or through a finder of its own.
sys.path[:] = [entry for entry in sys.path if entry != sys.argv[2]]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("model") is None

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer  # noqa: E402

RESULTS = Path(WORK["results"])
IMAGES = [Image.open(path) for path in sorted(Path(WORK["images"]).iterdir())]


def message_of(call: Any, *args: Any, **kwargs: Any) -> str:
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return "no error"


def package_module(model: Any, name: str) -> ModuleType:
    """Another file of the folder that the model came from."""
    return importlib.import_module(type(model).__module__.rpartition(".")[0] + f".{name}")


def run_card(folder: Path) -> list[int]:
    """Runs the card's first Python block as it stands, from the folder's parent; the shape of its features."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    os.chdir(folder.parent)
    IMAGES[0].save("cup.jpg")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return list(names["features"].shape)


def check_errors(model: Any, processor: Any) -> dict[str, str]:
    patches = torch.zeros(4, 3, 8, 8)
    return {
        "grids that disagree": message_of(model, patches, torch.tensor([[1, 1, 3]])),
        "video": message_of(model, patches, torch.tensor([[2, 1, 2]])),
        "odd image": message_of(model, torch.zeros(1, 3, 20, 16)),
        "nothing": message_of(processor, []),
    }


def run_export(name: str, folder: str) -> None:
    model, problems = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    is_training = model.training
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(IMAGES, return_tensors="pt")
    sizes = inputs["image_grid_thw"].prod(dim=1).tolist()
    with torch.no_grad():
        features = model(**inputs).last_hidden_state
        second = torch.split(inputs["pixel_values"], sizes)[1].numpy()
        alone = model.encode_image(second, tuple(inputs["image_grid_thw"][1, 1:].tolist()))
    tensors = {**inputs, "features": features, "encode_image": alone}
    if len(set(sizes)) == 1:
        side, p = int(sizes[0] ** 0.5), inputs["pixel_values"].shape[-1]
        tiles = inputs["pixel_values"].reshape(-1, side, side, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        images = tiles.reshape(-1, 3, side * p, side * p).requires_grad_()
        tensors["from_images"] = model(images).last_hidden_state
        tensors["from_images"].float().square().sum().backward()
        tensors["pixel_gradient"] = images.grad
        tensors["from_images"] = tensors["from_images"].detach()
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, RESULTS / f"{name}.safetensors")

    resaved = RESULTS / f"{name}-resaved"
    for part in (model, processor, tokenizer):
        part.save_pretrained(resaved)
    again = AutoModel.from_pretrained(resaved, trust_remote_code=True)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.ln_post.weight.zero_()
        is_equal = torch.equal(again(**inputs).last_hidden_state, features)
        is_equal = is_equal and torch.equal(model(**inputs).last_hidden_state, features)
        assert torch.equal(copied(**inputs).last_hidden_state, copied.ln_post.bias.expand_as(features))
    training = [model.train().genlip.training, model.eval().genlip.training]
    checkpointing = [model.genlip.gradient_checkpointing]
    model.gradient_checkpointing_enable()
    checkpointing.append(model.genlip.gradient_checkpointing)
    ids = model.generate_ids(**inputs, max_new_tokens=WORK["new_tokens"])
    token_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in WORK["texts"]]
    beyond = len(tokenizer) + 5  # an id that only a model with a padded vocabulary has
    facts = {
        "loading_problems": {key: sorted(map(str, value)) for key, value in problems.items() if value},
        "parameter_names": list(model.state_dict()),
        "model_type": AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type,
        "dtype": str(model.dtype),
        "is_training": is_training,
        "resaved_is_equal": is_equal,
        "switches": {"training": training, "gradient_checkpointing": checkpointing},
        "captions": [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)],
        "token_ids": token_ids,
        "decoded": tokenizer.batch_decode(token_ids),
        "decoded_with_padding": tokenizer.batch_decode([[beyond, *ids, beyond] for ids in token_ids]),
        "errors": check_errors(model, processor),
        "card_features": run_card(Path(folder)),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(facts))


def run_golden() -> None:
    model = AutoModel.from_pretrained(WORK["golden"], trust_remote_code=True)
    tensors = load_file(WORK["rows"])
    keys = ("input_ids", "labels", "position_ids", "sample_ids", "image_mask", "pixel_values")
    rows = package_module(model, "batch").PackedRows.from_tensors(*(tensors[key] for key in keys), WORK["patch_size"])
    with torch.no_grad():
        out = model.genlip(rows)
        results = {"logits": model.genlip.logits(rows), "loss": out.loss_sum / out.num_labels}
    save_file(results, RESULTS / "golden.safetensors")


def run_fresh() -> None:
    config = AutoConfig.from_pretrained(WORK["exports"]["fp32"], trust_remote_code=True)
    model = AutoModel.from_config(config, trust_remote_code=True)
    save_file(model.state_dict(), RESULTS / "fresh.safetensors")


run_golden()
run_fresh()
for export_name, export_folder in WORK["exports"].items():
    run_export(export_name, export_folder)
