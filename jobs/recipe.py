"""One recipe for a whole run: strict YAML, `--set a.b=c`, and errors that name the key and suggest the right one."""

import difflib
import json
import uuid
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

import jobs.annotators  # noqa: F401 the annotators that a recipe may name
import pipeline.annotate.builtin  # noqa: F401
from jobs.capacity.spec import CapacitySpec
from jobs.cluster.spec import ClusterSpec
from jobs.compare.spec import CompareSpec
from pipeline.curate.spec import CurateSpec
from pipeline.errors import UserError
from pipeline.recipe import IngestSpec, Section, ShardSpec
from pipeline.section import lay_over
from train.evaluation.spec import EvalSpec
from train.recipe import ModelSpec, ObjectiveSpec, TokenizerSpec, TrainSpec


class RunSpec(Section):
    """Where a command runs. Nothing here changes what it computes."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Training processes (GPUs, or CPU cores where there is no GPU); 0 takes what the machine has."""
    ray_address: str = "local"
    """`local` starts a Ray for this command; `auto` or an address joins a cluster."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """With so many training processes a run goes on when nodes are lost and not replaced, and with more again when
    they come back; 0 waits for all."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often training starts again from its checkpoint after a process died, before the command gives up."""
    max_preemptions: Annotated[int, Field(ge=0)] = 100
    """The same for nodes and processes that were taken away with notice: drained, or sent SIGTERM."""

    @model_validator(mode="after")
    def _fewer_than_all(self) -> "RunSpec":
        if self.min_workers and not self.min_workers <= self.workers:
            raise ValueError(
                f"run.min_workers {self.min_workers} needs run.workers, and not fewer: it is {self.workers}"
            )
        return self


class Recipe(Section):
    """A run from the URL table to the report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    """Names the run: its folder is RUNS/NAME."""
    seed: int = 42
    store: str
    """Folder or URL of the store."""
    runs: str = "runs"
    """Folder of the run folders."""
    ingest: IngestSpec
    curate: CurateSpec = CurateSpec()
    shards: ShardSpec = ShardSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec
    eval: EvalSpec = EvalSpec()
    compare: CompareSpec = CompareSpec()
    run: RunSpec = RunSpec()
    cluster: ClusterSpec = ClusterSpec()
    capacity: CapacitySpec = CapacitySpec()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once; the plain loader silently keeps the last of two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    A recipe may begin with `extends: FILE`, a path relative to its own: it then says only what is different there.

    Args:
        path: A YAML file.
        overrides: `a.b=value` entries; the value is read as YAML.

    Raises:
        UserError: The file, a key or a value is wrong; all problems are listed at once.
    """
    content = _read_mapping(Path(path))
    if base := content.pop("extends", None):
        content = lay_over(_read_mapping(Path(path).parent / str(base)), content)
    for override in overrides or []:
        _override(content, override)
    return check_recipe(content, str(path))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise UserError("the recipe cannot be read", where=str(path), why=error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("the recipe is not YAML", where=str(path), why=str(error)) from error
    if not isinstance(content, dict):
        raise UserError("the recipe must be a mapping of sections", where=str(path))
    return content


def check_recipe(content: dict[str, Any], where: str) -> Recipe:
    """A recipe from its parsed content."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_problem(dict(entry)) for entry in error.errors()]
        raise UserError(
            "the recipe is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems),
            where=where,
            next_step="edit the recipe, then: genlip plan RECIPE",
        ) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, defaults included, at once: the other ranks of a group read it at the same time."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, defaults included, as `load_recipe` reads it."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write --set section.key=value")
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent!r} is not a section of the recipe")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML", why=str(error)) from error


def _problem(entry: dict[str, Any]) -> str:
    path = [str(part) for part in entry["loc"]]
    where = ".".join(path)
    if entry["type"] == "extra_forbidden":
        known = _fields_at(Recipe, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: no such key; {hint}"
    if entry["type"] == "missing":
        return f"{where}: missing"
    if isinstance(entry["input"], str) and entry["type"].startswith(("float", "int")):
        return f"{where}: {entry['msg']}, got {entry['input']!r} (YAML reads 1e-3 as text: write 1.0e-3)"
    return f"{where}: {entry['msg'].removeprefix('Value error, ')}, got {entry['input']!r}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the section at `path` below a model."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def override_eval(spec: EvalSpec, overrides: list[str]) -> EvalSpec:
    """An eval section with `eval.key=value` entries laid over it.

    Raises:
        UserError: An entry is of another section, or wrong.
    """
    content = {"eval": spec.model_dump(mode="json")}
    for override in overrides:
        if not override.startswith("eval."):
            raise UserError(f"--set {override}: only keys of the section eval can be set here")
        _override(content, override)
    try:
        return EvalSpec.model_validate(content["eval"])
    except ValidationError as error:
        problems = [_problem(dict(entry) | {"loc": ("eval", *entry["loc"])}) for entry in error.errors()]
        raise UserError("the eval section is wrong:\n" + "\n".join(f"  - {problem}" for problem in problems)) from None
