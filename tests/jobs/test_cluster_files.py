"""What `genlip submit --render` prints: held in goldens, valid for the tools that read it, and closed to injection.

To write the goldens anew after a change that is meant: GENLIP_WRITE_GOLDENS=1 pytest tests/jobs/test_cluster_files.py
"""

import json
import os
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.cluster import kubernetes, slurm
from jobs.cluster.ray_jobs import make_request
from jobs.cluster.template import quote_shell, quote_yaml
from jobs.cluster.work import Verb
from jobs.recipe import Recipe, load_recipe
from pipeline.errors import UserError

CLUSTER = Path(__file__).parents[2] / "jobs" / "cluster"
EXAMPLE = CLUSTER.parent / "recipes" / "cluster_example.yaml"
GOLDENS = Path(__file__).parents[1] / "golden" / "cluster"
RAY = Path(str(metadata.distribution("ray").locate_file("ray")))
KUBERNETES = "1.33"
JOBS = [verb for verb in Verb if verb is not Verb.CLUSTER]


def recipe(*overrides: str) -> Recipe:
    return load_recipe(EXAMPLE, list(overrides))


def rendered() -> dict[str, str]:
    """Every kind of file, by the name of its golden; without the recipe, which other tests look at."""
    example = recipe()
    files = {}
    for verb in (Verb.INGEST, Verb.TRAIN, Verb.EVAL):
        files[f"rayjob-{verb}.yaml"] = kubernetes.render(example, verb).partition("---\n")[0]
    files["raycluster.yaml"] = kubernetes.render(example, Verb.CLUSTER)
    files = {name: text.replace(metadata.version("ray"), "RAY_VERSION") for name, text in files.items()}
    for verb in (Verb.INGEST, Verb.TRAIN, Verb.CURATE):
        for script in slurm.render(example, verb, Path("recipe.yaml"), ["seed=1"]):
            files[script.name] = script.text
    return files


def scripts(*overrides: str) -> list[slurm.Script]:
    return [one for verb in JOBS for one in slurm.render(recipe(*overrides), verb, Path("a b/r'.yaml"), ["x=$(id)"])]


def pods(text: str) -> list[dict[str, Any]]:
    """The pod templates of a RayJob or RayCluster."""
    spec = next(yaml.safe_load_all(text))["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


# ---------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", rendered())
def test_the_rendered_files_are_the_goldens(name: str) -> None:
    path, text = GOLDENS / name, rendered()[name]
    if os.environ.get("GENLIP_WRITE_GOLDENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


# ---------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("verb", Verb)
def test_kubernetes_takes_the_pods_and_the_recipe(verb: Verb) -> None:
    job, *recipe_maps = yaml.safe_load_all(kubernetes.render(recipe(), verb))
    text = kubernetes.render(recipe(), verb)
    for template in pods(text):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert template["spec"]["containers"][0]["image"] == recipe().cluster.image
    for recipe_map in recipe_maps:
        kubernetes_validate.validate(recipe_map, KUBERNETES, strict=True)
    assert (job["kind"], len(recipe_maps)) == (("RayCluster", 0) if verb is Verb.CLUSTER else ("RayJob", 1))


def test_the_pods_read_the_recipe_that_was_submitted(tmp_path: Path) -> None:
    words = ["A photo of a {}.", "😀 'quoted' \\ \u2028 \x85 # {}", "two\nlines: [x] {}\n"]
    given_recipe = recipe(f"eval.class_templates={json.dumps(words)}")
    _, recipe_map = yaml.safe_load_all(kubernetes.render(given_recipe, Verb.TRAIN))
    (tmp_path / "recipe.yaml").write_text(recipe_map["data"]["recipe.yaml"], encoding="utf-8")
    read = load_recipe(tmp_path / "recipe.yaml")
    assert (read.run.ray_address, read.run.workers) == ("auto", 64)
    assert read.model_copy(update={"run": given_recipe.run}) == given_recipe


def test_only_the_groups_that_a_verb_needs_are_asked_for() -> None:
    def groups(verb: Verb) -> list[str]:
        cluster = next(yaml.safe_load_all(kubernetes.render(recipe(), verb)))["spec"]
        return [group["groupName"] for group in cluster.get("rayClusterSpec", cluster)["workerGroupSpecs"]]

    assert {verb: groups(verb) for verb in Verb} == {
        Verb.INGEST: ["cpu"],
        Verb.CURATE: ["cpu"],
        Verb.TOKENIZER: ["cpu"],
        Verb.TRAIN: ["gpu"],
        Verb.EVAL: ["gpu"],
        Verb.COMPARE: ["gpu"],
        Verb.CLUSTER: ["cpu", "gpu"],
    }


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("cluster.image=''", "cluster.image"),
        ("runs=runs", "where: runs"),
        ("store=/elsewhere/store", "where: store"),
        ("cluster.volume_claim=null", "volume_claim"),
        (f"name={'x' * 60}", "shorter name"),
    ],
)
def test_what_could_not_run_there_is_refused(override: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        kubernetes.render(recipe(override), Verb.INGEST)


@pytest.mark.parametrize("path", ["store=out/store", "runs=runs", "ingest.source.urls=urls.parquet"])
def test_a_ray_job_refuses_paths_of_its_own_folder(path: str) -> None:
    with pytest.raises(UserError, match=f"where: {path.partition('=')[0]}"):
        make_request(recipe(path), Verb.INGEST)


# ---------------------------------------------------------------- SLURM


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.name)
def test_bash_and_shellcheck_take_the_scripts(script: slurm.Script, tmp_path: Path) -> None:
    path = tmp_path / "script.sbatch"
    path.write_text(script.text, encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
        # SC2016: the variables are for the processes that srun starts. SC1091: the environment is elsewhere.
        assert [line for line in done.stdout.splitlines() if "(warning)" in line or "(error)" in line] == []


def test_the_directives_stand_before_the_first_command() -> None:
    for script in scripts():
        lines = script.text.splitlines()
        first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")]


# ---------------------------------------------------------------- quoting


@pytest.mark.parametrize(
    "override",
    [
        'name="a\'b"',
        'name="a\\nb"',
        "name=a b",
        "name=../up",
        "cluster.namespace='a: b'",
        "cluster.secrets=['a\"}]']",
        'cluster.slurm.account="x\\n#SBATCH --uid=0"',
        "cluster.slurm.environment='$(id)'",
        "cluster.slurm.time_limit='1:00 --uid=0'",
        "cluster.image=genlip:latest",
        "cluster.image=genlip",
        "cluster.image='genlip:1 x'",
    ],
)
def test_a_recipe_with_more_than_a_value_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0].replace(".", r"\.")):
        recipe(override)


@given(st.text())
@example("a: b # c")
@example("'\"\\\n\r\t\x00\x85\u2028😀")
def test_yaml_reads_a_quoted_value_as_it_was(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text
    quoted = quote_yaml(text)
    assert "\n" not in quoted
    assert yaml.safe_load(f"key: {{inner: {quoted}}}") == {"key": {"inner": text}}


@given(st.lists(st.text(), min_size=1))
def test_the_shell_reads_quoted_words_as_they_were(words: list[str]) -> None:
    assert shlex.split(quote_shell(words)) == words


# ---------------------------------------------------------------- files that are as they are


@pytest.mark.parametrize("name", ["ray_up_aws.yaml", "ray_up_gcp.yaml"])
def test_ray_up_takes_the_cluster_files(name: str) -> None:
    schema = json.loads((RAY / "autoscaler" / "ray-schema.json").read_text())
    content = yaml.safe_load((CLUSTER / name).read_text())
    jsonschema.validate(content, schema)
    assert content["head_node_type"] in content["available_node_types"]


def test_the_image_is_built_of_files_that_are_there() -> None:
    copied = [line.split()[1:-1] for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line[:5] == "COPY "]
    assert [name for names in copied for name in names if not (CLUSTER.parents[1] / name).exists()] == []
    assert ["constraints.txt" in name for names in copied for name in names].count(True) == 1
