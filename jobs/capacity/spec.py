"""The recipe's `capacity` section: machines, prices and limits to plan with. It changes nothing that is computed."""

import difflib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

StageName = Literal["ingest", "curate", "shards", "train"]
Positive = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class NodeSpec(Section):
    """A type of machine."""

    cores: Annotated[int, Field(ge=1)]
    """That compute: of a cloud's vCPUs two are a core, unless `genlip bench` ran on such vCPUs."""
    gpus: Annotated[int, Field(ge=0)] = 0
    network_gbit_per_s: Positive
    """In one direction, to the object store and the internet."""
    interconnect_gbit_per_s: Positive | None = None
    """Between nodes, all adapters together; that of `network_gbit_per_s` by default."""
    price_per_hour: Price | None = None


class NodesSpec(Section):
    """The machines of a stage."""

    node: str
    """A key of `capacity.node_types`."""
    nodes: Annotated[int, Field(ge=1)] = 1


class PricesSpec(Section):
    """Of the object store. What is left out is not counted, and the plan says so; 0 is free."""

    storage_gb_month: Price | None = None
    put_per_1000: Price | None = None
    """PUT, POST and LIST requests, the parts of multipart uploads included."""
    get_per_1000: Price | None = None
    """GET and HEAD requests."""
    egress_per_gb: Price | None = None
    """Read from the store by training; 0 where the GPUs are in the store's region."""


class RequestsSpec(Section):
    """What the object store allows. Amazon documents these two rates for each partitioned prefix of S3."""

    put_per_s: Positive = 3_500
    get_per_s: Positive = 5_500
    partitions: Annotated[int, Field(ge=1)] = 1
    """Key ranges into which the store has split a folder that is read all over. It begins with one, and splits further
    while the load lasts."""


class _Sourced(Section):
    """Numbers that somebody has to answer for."""

    source: str = ""
    """Where the numbers are from; asked for where there is one."""

    @model_validator(mode="after")
    def _says_whence(self) -> "_Sourced":
        given = [name for name, value in self if name != "source" and value is not None]
        if given and not self.source:
            raise ValueError(f"say in `source` where {', '.join(given)} comes from")
        return self


class AssumedSpec(_Sourced):
    """What is not known before there is a store; the store's own numbers go before these."""

    success_share: Share | None = None
    """Of the input's rows that become stored samples."""
    selected_share: Share | None = None
    """Of the stored samples that become training samples."""
    sample_bytes: Positive | None = None
    """Of a stored sample in its tar."""
    download_bytes: Positive | None = None
    """That come over the network for one row."""
    download_s: Positive | None = None
    """Mean time that a row occupies its place among `fetch.in_flight` downloads, time-outs included."""


class ThroughputSpec(_Sourced):
    """Speeds that go before those of `genlip bench`."""

    ingest_rows_per_s_core: Positive | None = None
    annotate_samples_per_s_core: Positive | None = None
    select_samples_per_s_core: Positive | None = None
    shards_samples_per_s_core: Positive | None = None
    train_samples_per_s_device: Positive | None = None
    """Of one GPU; of one core on nodes without GPUs."""
    train_efficiency: Share | None = None
    """On the planned number of devices, for what one device does alone; by default computed from the network."""


class CapacitySpec(Section):
    """What `genlip plan --scale` plans with."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    node_types: dict[str, NodeSpec] = {}
    """Machines by names of your choice."""
    stages: dict[StageName, NodesSpec] = {}
    """Which and how many run each stage; a stage without machines has no hours."""
    storage_months: Annotated[float, Field(ge=0)] = 1
    """How long the data is kept."""
    prices: PricesSpec = PricesSpec()
    requests: RequestsSpec = RequestsSpec()
    assumed: AssumedSpec = AssumedSpec()
    throughput: ThroughputSpec = ThroughputSpec()

    @model_validator(mode="after")
    def _machines_exist(self) -> "CapacitySpec":
        for stage, group in self.stages.items():
            if group.node not in self.node_types:
                close = difflib.get_close_matches(group.node, self.node_types, n=1)
                known = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.node_types) or 'none'}"
                raise ValueError(f"stages.{stage}.node: no node type is called {group.node!r}; {known}")
        return self
