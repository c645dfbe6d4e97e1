"""The recipe's training sections: tokenizer, model, schedule, batch, checkpoints, evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.section import Section
from train.data.reading import ReadingSpec
from train.deepspeed_config import owned_keys
from train.evaluation.spec import EvalSpec
from train.samples import Samples

RECIPE_FILE = "recipe.json"
TOKENIZER_FOLDER = "tokenizer"
STOP_FILE = "stop"
"""A running training that finds it in its run folder writes a checkpoint and ends."""
RESTART_FILE = "restart"
"""The same, for a launcher that starts the processes again, on other nodes or in another number."""


class TokenizerSpec(Section):
    """What cuts captions into tokens."""

    kind: Literal["sentencepiece", "huggingface"] = "sentencepiece"
    """`sentencepiece` is trained on the store's captions; `huggingface` is loaded from `path`."""
    path: str = ""
    """Name or folder of a Hugging Face tokenizer with <|im_end|>, such as Qwen/Qwen3-0.6B; or, of a sentencepiece one
    that is trained already, its folder, such as runs/demo/tokenizer, from which its prompt is taken too."""
    vocab_size: Annotated[int, Field(ge=300)] = 8_000
    """Of a trained tokenizer; fewer where the captions do not yield as many."""
    prompt: str = "Describe the image in detail."
    """Stands between the image and the caption, without loss."""

    @model_validator(mode="after")
    def _path_fits(self) -> "TokenizerSpec":
        if self.kind == "huggingface" and not self.path:
            raise ValueError("tokenizer.path is needed for kind: huggingface")
        return self


class ModelSpec(Section):
    """Which network, and how an image becomes patches."""

    preset: str = "l16"
    """A file of model/presets."""
    image: Literal["square", "native"] = "square"
    """`square` squashes to image_px (GenLIP stage 1); `native` keeps the aspect ratio (stage 2)."""
    image_px: Annotated[int, Field(ge=8)] = 224
    min_pixels: Annotated[int, Field(ge=1)] = 4_096
    max_pixels: Annotated[int, Field(ge=1)] = 262_144
    """`min_pixels` and `max_pixels` bound a `native` image."""


Objective = Literal["genlip", "clip", "siglip", "mae", "cappa"]
UndecayedKind = Literal["norms", "biases", "layer_scales", "embeddings"]


class OptimSpec(Section):
    """AdamW with linear warm-up and cosine decay, on the clock of samples seen."""

    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    min_lr: Annotated[float, Field(ge=0)] = 1.0e-6
    warmup: Samples = 56_000_000
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1.0e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    no_decay: tuple[UndecayedKind, ...] = ()
    """Kinds of parameters without weight decay; the official recipe has it on every one."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Global gradient norm."""

    @model_validator(mode="after")
    def _floor_is_below_the_peak(self) -> "OptimSpec":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        return self


class ZeroSpec(Section):
    """How DeepSpeed divides what training keeps in memory."""

    stage: Literal[0, 1, 2, 3] = 1
    """Of what a process keeps only its own part: 1 the optimiser's state, 2 and the gradients, 3 and the weights; 0 of
    nothing, in fp32 alone."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What stays in the host's memory instead of the GPU's: the optimiser with its step, or (stage 3) weights too."""

    @model_validator(mode="after")
    def _offload_fits(self) -> "ZeroSpec":
        if self.offload == "all" and self.stage != 3:
            raise ValueError(f"offload: all needs stage 3, which divides the weights; stage {self.stage} does not")
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload: optimizer needs stage 1, 2 or 3, which divide the optimiser's state")
        return self


class CheckpointSpec(Section):
    """When to save, where, and what to keep."""

    every: Samples = 10_000_000
    keep_last: Annotated[int, Field(ge=1)] = 2
    """The newest ones."""
    keep_every: Samples = 0
    """Besides, the first one after each multiple of so many samples is kept for good; 0 keeps none."""
    folder: str = ""
    """Folder or URL that all nodes share; a folder with the run's name is made in it. RUN/checkpoints where empty."""
    on_failed_save: Literal["warn", "stop"] = "warn"
    """`warn` goes on training, but stops after three failures in a row."""


class SpikeSpec(Section):
    """What happens to a step whose loss is far above those before it."""

    factor: Annotated[float, Field(ge=0)] = 0
    """A loss above so many times the running median is a spike; 0 looks for none."""
    window: Annotated[int, Field(ge=2)] = 100
    """Steps of that median; before there are so many, no step is a spike."""
    action: Literal["skip", "rewind"] = "skip"
    """`skip` leaves the step out; `rewind` also takes weights and optimiser back to the last checkpoint. Both go on
    with the samples behind the spike."""

    @field_validator("factor")
    @classmethod
    def _lets_ordinary_losses_pass(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError("must be above 1, or 0 to look for no spikes")
        return factor


class FaultSpec(Section):
    """What a run does about trouble of its own."""

    hang_s: Annotated[float, Field(gt=0)] = 600
    """A process that ends no step for so long, counted from its first, writes its stacks and ends."""
    max_refused_steps: Annotated[int, Field(ge=0)] = 10
    """Steps of a run that may be left out, for a number that is not finite or for a spike; one more stops it."""
    spike: SpikeSpec = SpikeSpec()


class LogSpec(Section):
    """Where the numbers of a run go, beside its own RUN/metrics.jsonl."""

    to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """`tensorboard` writes RUN/tensorboard; `wandb` sends to Weights & Biases, or keeps in RUN/wandb what
    WANDB_MODE=offline says."""
    wandb_project: str = "genlip"
    peak_tflops: Annotated[float, Field(ge=0)] = 0
    """What one device can do at the run's precision, for MFU; 0 takes the data sheet's number where it is known."""


class DevicesSpec(Section):
    """What `genlip plan` takes for granted of the machines where it cannot know it; training does not read it."""

    memory_gib: Annotated[float, Field(ge=0)] = 0
    """Of one device; 0 takes that of the GPU at hand."""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of its peak that a device reaches, until a run has measured it."""
    network_gbit_per_s: Annotated[float, Field(ge=0)] = 0
    """Of a node, all its adapters together; 0 shows 8 × 400 Gb/s InfiniBand and 100 Gb/s Ethernet."""


class ProfileSpec(Section):
    """Steps whose operations are traced, on the first process."""

    from_step: Annotated[int, Field(ge=1)] = 10
    """Of the run; past the first ones, which warm up."""
    num_steps: Annotated[int, Field(ge=1)] = 3


class EmaSpec(Section):
    """A moving average of the weights, exported beside them."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Share of the average that a step keeps; less in the first steps, see `train.ema`."""


class SourceSpec(Section):
    """A dataset that is read beside others."""

    store: str = ""
    """Folder or URL; the run's own where it is empty."""
    dataset: str
    """Its name in the store."""
    weight: Annotated[float, Field(ge=0)]
    """Its share of the samples, in proportion to the other weights."""


class PhaseSpec(Section):
    """Other weights from some point of the run on."""

    after: Annotated[Samples, Field(gt=0)]
    """Samples seen before it; the change comes with the next segment of the plan, at most 65,536 samples later."""
    weights: dict[str, Annotated[float, Field(ge=0)]]
    """By source; one that is not named is not read."""


class TrainSpec(Section):
    """How long, in which batches, at which precision."""

    length: Samples
    """Samples seen in the whole run: the only clock. Steps follow from it."""
    lanes: Annotated[int, Field(ge=1)] = 512
    """Packed rows in a global batch, on whatever number of processes."""
    row_tokens: Annotated[int, Field(ge=16)] = 16_384
    """Tokens in a packed row."""
    micro_rows: Annotated[int, Field(ge=1)] = 1
    """Rows in one forward pass of one process; the rest of the batch is accumulated."""
    max_caption_tokens: Annotated[int, Field(ge=4)] = 1_024
    """Longer captions are cut."""
    captions: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Annotated[float, Field(gt=0, le=1)]] = {
        "caption": 1.0
    }
    """Which of a sample's captions is read in a pass: the probability of each, by the name of its column. Drawn anew
    in each pass; `caption` stands in where a sample lacks the one that was drawn."""
    sources: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")], SourceSpec] = {}
    """The datasets to mix, by names of your choice; the run's own shards alone where there are none."""
    schedule: tuple[PhaseSpec, ...] = ()
    """Changes of the weights."""
    block_shards: Annotated[int, Field(ge=1)] = 32
    """Shards whose samples are shuffled together: more mix better, fewer read a store more in sequence."""
    optim: OptimSpec = OptimSpec()
    init_from: str = ""
    """Weights to begin with: a run folder, of which the newest checkpoint is taken, or a model folder. Optimiser and
    clock begin anew; fresh weights where it is empty."""
    zero: ZeroSpec = ZeroSpec()
    precision: Literal["fp32", "bf16"] = "bf16"
    """`bf16` computes in bf16; master weights, gradient sums and the optimiser are fp32 either way."""
    gradient_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes to save memory: `full` every block, `selective` all of it but matrix products
    and attention."""
    compile: bool = False
    """Compile GenLIP's block by `torch.compile`: faster steps after a slow first one. Needs a C++ compiler."""
    deepspeed: dict[str, Any] = {}
    """More keys of DeepSpeed's configuration, as it spells them. Those that the recipe decides are refused; DeepSpeed
    itself ignores ones that it does not know."""
    threads: Annotated[int, Field(ge=1)] = 4
    """Decoding threads in each process."""
    reading: ReadingSpec = ReadingSpec()
    max_bad_samples: Annotated[int, Field(ge=0)] = 100
    """Unreadable samples in one process after which the run stops."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    faults: FaultSpec = FaultSpec()
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two lines of the log."""
    log: LogSpec = LogSpec()
    devices: DevicesSpec = DevicesSpec()
    profile: ProfileSpec | None = None
    ema: EmaSpec | None = None

    @field_validator("captions")
    @classmethod
    def _probabilities_are_whole(cls, captions: dict[str, float]) -> dict[str, float]:
        if abs(sum(captions.values()) - 1) > 1e-6:
            raise ValueError(f"the probabilities must add up to 1, these to {sum(captions.values()):g}")
        return captions

    @field_validator("deepspeed")
    @classmethod
    def _adds_to_the_recipe(cls, raw: dict[str, Any]) -> dict[str, Any]:
        if owned := owned_keys(raw):
            raise ValueError(f"leave out what the recipe decides: {'; '.join(owned)}")
        return raw

    @model_validator(mode="after")
    def _batch_and_precision_fit(self) -> "TrainSpec":
        if self.lanes % self.micro_rows:
            raise ValueError(f"train.micro_rows {self.micro_rows} does not divide train.lanes {self.lanes}")
        if self.zero.stage == 0 and self.precision == "bf16":
            raise ValueError(
                "train.zero.stage 0 has no fp32 master weights for train.precision bf16: use stage 1, which costs the"
                " same on one process, or precision fp32"
            )
        if self.zero.stage == 3 and self.compile:
            raise ValueError("train.compile needs whole weights, which train.zero.stage 3 has not: use stage 2")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> "TrainSpec":
        shares = [{name: source.weight for name, source in self.sources.items()}]
        shares += [phase.weights for phase in self.schedule]
        if self.sources or self.schedule:
            if unknown := {name for weights in shares for name in weights} - self.sources.keys():
                raise ValueError(f"train.schedule names no source of train.sources: {', '.join(sorted(unknown))}")
            if not all(sum(weights.values()) > 0 for weights in shares):
                raise ValueError("at least one source must have a weight above 0")
        if list(self.schedule) != sorted(self.schedule, key=lambda phase: phase.after):
            raise ValueError("the phases of train.schedule must stand in order")
        return self


class ObjectiveSpec(Section):
    """What is learned from the pairs: GenLIP, or one of the objectives that it is compared with."""

    kind: Objective = "genlip"
    """`clip` and `siglip` contrast images with captions, `mae` paints masked patches, `cappa` captions by a decoder."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """`mae`: share of the patches that the encoder does not see."""
    parallel: Annotated[float, Field(ge=0, le=1)] = 0.75
    """`cappa`: share of the samples whose caption is predicted all at once; 0 is Cap."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class TrainJob(BaseModel):
    """What a training process reads of the resolved recipe in its run folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    class Shards(BaseModel):
        """The one key of the shards section that training needs."""

        model_config = ConfigDict(extra="ignore", frozen=True)
        name: str

    seed: int
    store: str
    shards: Shards
    tokenizer: TokenizerSpec
    objective: ObjectiveSpec = ObjectiveSpec()
    model: ModelSpec
    train: TrainSpec
    eval: EvalSpec

    @classmethod
    def read(cls, run_dir: Path) -> "TrainJob":
        """The job of a run folder.

        Raises:
            UserError: The folder is not a run folder.
        """
        path = run_dir / RECIPE_FILE
        if not path.exists():
            raise UserError("not a run folder", where=str(run_dir), next_step="run: genlip train RECIPE")
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
