"""Where the files of a store's dataset are. What is in them: STORE.md."""

HELDOUT_SUFFIX = "-heldout"
"""Dataset NAME-heldout has what was held out of dataset NAME."""


def dataset_file(dataset: str) -> str:
    """What the dataset is made of."""
    return f"shards/{dataset}/dataset.json"


def index_file(dataset: str) -> str:
    """The commit record, without which a dataset does not exist: one row per shard."""
    return f"shards/{dataset}/index.parquet"


def refused_file(dataset: str) -> str:
    """What was left out."""
    return f"shards/{dataset}/refused.parquet"


def foreign_file(dataset: str) -> str:
    """Which files of others a dataset is made of."""
    return f"shards/{dataset}/foreign.parquet"


def shard_tar(dataset: str, number: int) -> str:
    """A shard's samples, where they are our own; shards are numbered as they stand in the dataset's index."""
    return f"shards/{dataset}/shard-{number:06d}.tar"


def shard_file(dataset: str, number: int) -> str:
    """A shard's commit record: where each of its samples is."""
    return f"shards/{dataset}/shard-{number:06d}.parquet"
