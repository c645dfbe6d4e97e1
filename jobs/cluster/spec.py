"""The recipe's `cluster` section: the machines of a run on Kubernetes or SLURM. It changes nothing that is computed."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pipeline.section import Section

DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""What Kubernetes takes as a name."""
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]*$")]
Folder = Annotated[str, Field(pattern=r"^[^\s'\"\\$`]+$")]


class TolerationSpec(Section):
    """A taint that the workers of a group put up with."""

    key: Label
    value: Word = ""
    """Empty tolerates every value of the taint."""
    effect: Annotated[str, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")] = "NoSchedule"


class WorkersSpec(Section):
    """Workers that are alike: pods of Kubernetes, nodes or array tasks of SLURM."""

    replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=0)] | None = None
    """More than `replicas` lets Ray's autoscaler add workers up to here; by default their number is fixed."""
    cpus: Annotated[int, Field(ge=1)] = 16
    memory_gib: Annotated[int, Field(ge=1)] = 32
    gpus: Annotated[int, Field(ge=0)] = 0
    """Of one worker."""
    node_selector: dict[Label, Word] = {}
    """Labels of the Kubernetes nodes that may take them."""
    tolerations: tuple[TolerationSpec, ...] = ()

    @property
    def most(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas

    @model_validator(mode="after")
    def _in_order(self) -> "WorkersSpec":
        if self.most < self.replicas:
            raise ValueError(f"max_replicas {self.most} is below replicas {self.replicas}")
        return self


class SlurmSpec(Section):
    """Where SLURM runs it. The worker groups say how large: array tasks are CPU workers, nodes are GPU workers."""

    cpu_partition: Word = ""
    """Empty takes the cluster's default."""
    gpu_partition: Word = ""
    account: Word = ""
    time_limit: Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]{1,3}(:[0-9]{2}){0,2}$")] = "24:00:00"
    """As SLURM writes it: [days-]hours:minutes:seconds."""
    gres: Word = "gpu"
    """Name of the GPU resource, with its type where it matters: gpu:h100. The number is `gpu_workers.gpus`."""
    environment: Folder = ".venv"
    """The virtual environment on the shared disk that holds genlip."""


class ClusterSpec(Section):
    """The machines of a run on Kubernetes or SLURM."""

    image: str = ""
    """The container image, by tag or digest; jobs/cluster/Dockerfile builds one."""
    namespace: DnsName = "default"
    service_account: DnsName = "default"
    secrets: tuple[DnsName, ...] = ()
    """Kubernetes Secrets whose keys become environment variables of every pod (AWS_ACCESS_KEY_ID, WANDB_API_KEY)."""
    volume_claim: DnsName | None = None
    """PersistentVolumeClaim (ReadWriteMany) that all pods mount at `mount`: run folders need a file system."""
    mount: Annotated[Folder, Field(pattern="^/")] = "/data"
    cpu_workers: WorkersSpec = WorkersSpec(replicas=2)
    """They download, curate and count tokens."""
    gpu_workers: WorkersSpec = WorkersSpec(cpus=64, memory_gib=512, gpus=8)
    """They train and evaluate."""
    shared_memory_gib: Annotated[int, Field(ge=1)] = 8
    """Of /dev/shm in each worker; it counts as memory of the worker."""
    ttl_s: Annotated[int, Field(ge=0)] = 600
    """How long a finished job's cluster and its logs stay."""
    requeues: Annotated[int, Field(ge=0)] = 3
    """How often a job that was preempted or has failed is started again."""
    slurm: SlurmSpec = SlurmSpec()

    @field_validator("image")
    @classmethod
    def _pinned(cls, image: str) -> str:
        if not image:
            return image
        name, _, tag = image.rpartition(":")
        words = set(image) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@")
        if not words or not name or not tag or "/" in tag or tag == "latest":
            raise ValueError("pin the image: NAME:TAG with another tag than latest, or NAME@sha256:DIGEST")
        return image
