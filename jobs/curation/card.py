"""The data set card of a selection's shards: a README.md in the form of the Hugging Face hub."""

from typing import Any

import yaml

from jobs.curation.charts import share
from jobs.curation.funnel import steps
from jobs.ingest_report import REPORT
from pipeline.curate.summary import Summary, read_summary
from pipeline.errors import UserError
from pipeline.store import Store

_MIN_LANGUAGE_SHARE = 0.01
_SIZES = (
    "n<1K",
    "1K<n<10K",
    "10K<n<100K",
    "100K<n<1M",
    "1M<n<10M",
    "10M<n<100M",
    "100M<n<1B",
    "1B<n<10B",
    "10B<n<100B",
)


def write_card(store: Store, name: str) -> str:
    """Write shards/NAME/README.md. Returns its path in the store.

    Raises:
        UserError: The selection has not been added up since it was made.
    """
    summary = read_summary(store, name)
    if summary is None:
        raise UserError(
            f"the selection {name!r} has no summary", where=store.root, next_step="run: genlip curate RECIPE"
        )
    path = f"shards/{name}/README.md"
    front = yaml.safe_dump(_front_matter(summary), sort_keys=False, allow_unicode=True)
    body = "\n\n".join([_what(summary), _funnel(summary), _format(), _columns(summary), _made(summary), _owners(store)])
    store.write(path, f"---\n{front}---\n\n{body}\n".encode())
    return path


def _front_matter(summary: Summary) -> dict[str, Any]:
    front: dict[str, Any] = {
        "pretty_name": summary.name,
        "license": "other",
        "task_categories": ["image-to-text"],
        "size_categories": [size_category(summary.num_kept)],
        "tags": ["webdataset", "image-text-pairs"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.tar"}]}],
    }
    languages = [
        value
        for value, (_, kept) in summary.categories.get("lang", [])
        if kept >= _MIN_LANGUAGE_SHARE * summary.num_kept and kept
    ]
    return front | ({"language": languages} if languages else {})


def size_category(num_samples: int) -> str:
    """The hub's name for a size."""
    return next((name for power, name in enumerate(_SIZES, 3) if num_samples < 10**power), "100B<n<1T")


def _what(summary: Summary) -> str:
    return (
        f"# {summary.name}\n\n{summary.fates.get('train', 0):,} image-text pairs for training, chosen from"
        f" {summary.num_samples:,} stored pairs by the recipe below."
    )


def _funnel(summary: Summary) -> str:
    lines = ["| step | condition | leave | remain |", "|---|---|---:|---:|"]
    lines.append(f"| stored | | | {summary.num_samples:,} |")
    for step in steps(summary):
        meaning = step.meaning.replace("|", r"\|").replace("\n", " ")
        leave = f"{step.num_out:,} ({share(step.num_out, summary.num_samples)})"
        lines.append(f"| {step.fate} | `{meaning}` | {leave} | {step.num_left:,} |")
    lines += [f"| **{fate}** | | | {summary.fates[fate]:,} |" for fate in ("train", "heldout") if fate in summary.fates]
    return "## From stored to kept\n\n" + "\n".join(lines)


def _format() -> str:
    return (
        "## Format\n\nWebdataset shards in global random order. A sample is `KEY.jpg` (or `.png`, `.webp`), `KEY.txt`"
        " (the caption) and `KEY.json` (everything else); the `.parquet` beside a shard has the place and size of"
        " each."
    )


def _columns(summary: Summary) -> str:
    folders = summary.selection["folders"]
    known = "\n".join(f"- `{column}`, computed in `{folder}`" for column, folder in sorted(folders.items()))
    return f"## Columns behind the selection\n\nThe ledger's, and:\n\n{known or '- none'}"


def _made(summary: Summary) -> str:
    record = summary.selection
    guard = "" if record.get("holdout_near_bits") is None else f" guarded within {record['holdout_near_bits']} bits,"
    recipe = yaml.safe_dump({"curate": {"select": record["spec"]}}, sort_keys=False, allow_unicode=True)
    return (
        f"## How it was made\n\nBy `genlip curate` with seed {record['seed']}, held-out share {record['holdout']},"
        f"{guard} from units `{record['units_fingerprint']}`.\n\n```yaml\n{recipe}```"
    )


def _owners(store: Store) -> str:
    lines = ["## Licence and opting out", ""]
    lines.append(
        "The licence of each picture and caption is its owner's and is not known here; hence `other`. Whoever publishes"
        " these shards answers for the right to do so, and names here where owners ask for removal."
    )
    if store.exists(REPORT):
        report = store.read_json(REPORT)
        meanings = report.get("meaning", {})
        lines += ["", "Left out before storage, by rule:", ""]
        lines += [f"- `{why}`: {count:,} ({meanings.get(why, '')})" for why, count in report["rejected"].items()]
    return "\n".join(lines)
