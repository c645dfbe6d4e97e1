"""Kubernetes, by way of KubeRay: a RayJob for a verb, or a RayCluster that stays."""

import json
import re
import shlex
import shutil
import subprocess
from importlib import metadata

from jobs.cluster.spec import ClusterSpec, WorkersSpec
from jobs.cluster.template import fill_yaml
from jobs.cluster.work import Verb, command, entrypoint_gpus, on_cluster, require_shared, workers_of
from jobs.recipe import Recipe, recipe_yaml
from pipeline.errors import EXIT_ENVIRONMENT, UserError

RECIPE_FOLDER = "/etc/genlip"
MAX_NAME_CHARS = 47
"""KubeRay adds to the name of a RayJob and must stay within 63."""
HEAD = WorkersSpec(cpus=2, memory_gib=8)
"""It holds Ray's tables and the command, whose memory does not grow with the samples."""
HEAD_SHARED_MEMORY_GIB = 1


def render(recipe: Recipe, verb: Verb) -> str:
    """The YAML documents of a verb: its RayJob and the recipe, or a RayCluster.

    Raises:
        UserError: The recipe names no image, its paths are not shared by the pods, or its name does not suit.
    """
    spec = recipe.cluster
    if not spec.image:
        next_step = "build it (jobs/cluster/Dockerfile says how), push it, and --set cluster.image=NAME:TAG"
        raise UserError("the pods need an image with genlip in it", where="cluster.image", next_step=next_step)
    name = job_name(recipe, verb)
    values: dict[str, object] = {"name": name, "namespace": spec.namespace}
    if verb is Verb.CLUSTER:
        return fill_yaml("raycluster.yaml", values, {"cluster": _cluster(recipe, verb, "")})
    _require_mounted(recipe)
    values |= {
        "entrypoint": shlex.join(["genlip", *command(verb, recipe, f"{RECIPE_FOLDER}/recipe.yaml")]),
        "entrypoint_gpus": entrypoint_gpus(verb, recipe),
        "ttl_s": spec.ttl_s,
        "requeues": spec.requeues,
    }
    return fill_yaml("rayjob.yaml", values, {"cluster": _cluster(recipe, verb, name)}) + _recipe_map(recipe, name)


def submit(recipe: Recipe, verb: Verb) -> str:
    """Create what `render` gives, with kubectl. Returns what kubectl says.

    Raises:
        UserError: kubectl is missing, or refuses: a job of this name runs, or has not been cleaned up yet.
    """
    job, _, recipe_map = render(recipe, verb).partition("---\n")
    if not shutil.which("kubectl"):
        raise UserError(
            "kubectl is not installed here",
            next_step="install it, or apply the files elsewhere: add --render",
            exit_code=EXIT_ENVIRONMENT,
        )
    said = _kubectl("create", job)  # first: it refuses a second job of the name, whose recipe then stays as it is
    return said + (_kubectl("apply", recipe_map) if recipe_map else "")


def job_name(recipe: Recipe, verb: Verb) -> str:
    """What Kubernetes calls the run's verb."""
    name = re.sub(r"[._]", "-", f"{recipe.name}-{verb}".lower())
    if len(name) > MAX_NAME_CHARS:
        raise UserError(
            f"{name} is longer than the {MAX_NAME_CHARS} characters that KubeRay allows",
            where="name",
            next_step="give the run a shorter name: --set name=NAME",
        )
    return name


def _kubectl(action: str, document: str) -> str:
    done = subprocess.run(
        ["kubectl", action, "--filename", "-"], input=document, capture_output=True, text=True, check=False
    )
    if done.returncode:
        is_known = "AlreadyExists" in done.stderr
        raise UserError(
            "a job of this name is there already" if is_known else "Kubernetes does not take the job",
            why=done.stderr.strip(),
            next_step="wait for its end, or: kubectl delete rayjob NAME"
            if is_known
            else "see jobs/README.md, Clusters",
            exit_code=EXIT_ENVIRONMENT,
        )
    return done.stdout


def _require_mounted(recipe: Recipe) -> None:
    spec = recipe.cluster
    if spec.volume_claim:
        why = f"the pods share {spec.mount}, the volume of the claim {spec.volume_claim}"
        require_shared(recipe, f"{spec.mount.rstrip('/')}/", why, f"choose a folder in {spec.mount}, or a URL")
    else:
        next_step = "name a ReadWriteMany claim: --set cluster.volume_claim=NAME, and put runs under cluster.mount"
        require_shared(recipe, "\0", "the pods share no volume", next_step)


def _recipe_map(recipe: Recipe, name: str) -> str:
    gpus = recipe.cluster.gpu_workers
    there = on_cluster(recipe, workers=recipe.run.workers or gpus.replicas * gpus.gpus)
    values = {"name": name, "namespace": recipe.cluster.namespace}
    return fill_yaml("recipe.yaml", values, {"recipe": recipe_yaml(there)})


def _cluster(recipe: Recipe, verb: Verb, recipe_map: str) -> str:
    spec = recipe.cluster
    groups = workers_of(verb, recipe)
    workers = [
        fill_yaml(
            "worker_group.yaml",
            {"name": name, "replicas": group.replicas, "max_replicas": group.most},
            {"pod": _pod("ray-worker", group, spec.shared_memory_gib, spec, recipe_map)},
        )
        for name, group in groups.items()
    ]
    values = {
        "ray_version": metadata.version("ray"),
        "is_autoscaling": any(group.most > group.replicas for group in groups.values()),
    }
    blocks = {"head": _pod("ray-head", HEAD, HEAD_SHARED_MEMORY_GIB, spec, recipe_map), "workers": "".join(workers)}
    return fill_yaml("cluster.yaml", values, blocks)


def _pod(container: str, group: WorkersSpec, shared_memory_gib: int, spec: ClusterSpec, recipe_map: str) -> str:
    """The template of a pod. `recipe_map` names the ConfigMap with the recipe, if there is one."""
    mounts, volumes = [], []
    if recipe_map:
        mounts.append(f"- {{name: recipe, mountPath: {json.dumps(RECIPE_FOLDER)}}}")
        volumes.append(f"- name: recipe\n  configMap: {{name: {json.dumps(recipe_map)}}}")
    if spec.volume_claim:
        mounts.append(f"- {{name: shared, mountPath: {json.dumps(spec.mount)}}}")
        volumes.append(f"- name: shared\n  persistentVolumeClaim: {{claimName: {json.dumps(spec.volume_claim)}}}")
    resources = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        resources["nvidia.com/gpu"] = str(group.gpus)
    values = {
        "container": container,
        "image": spec.image,
        "service_account": spec.service_account,
        "node_selector": group.node_selector,
        "tolerations": [
            {"key": one.key, "operator": "Equal" if one.value else "Exists", "effect": one.effect}
            | ({"value": one.value} if one.value else {})
            for one in group.tolerations
        ],
        "resources": resources,
        "secrets": [{"secretRef": {"name": name}} for name in spec.secrets],
        "shared_memory": f"{shared_memory_gib}Gi",
    }
    return fill_yaml("pod.yaml", values, {"mounts": "\n".join(mounts), "volumes": "\n".join(volumes)})
