"""Which stored samples become training samples: the fate of each, written down.

    selection/NAME/part-000012.parquet  one row per stored sample, in plan order: unit, row, key, fate, detail
    selection/NAME/selection.json       the commit record: spec, thresholds, counts

`detail` is the key of the sample that stayed for a duplicate, that of the held-out image for what is near one, the
evaluation image that a sample shows, "null" where a rule's condition was null, the source of a sample beyond its share.
Draws are a hash of seed and key: adding samples moves nobody's draw. No annotation is computed here.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curate.fates import FOLDER, Decided, Job, advance, count_fates
from pipeline.curate.holdout import hold_out
from pipeline.curate.keep import by_near_label, by_text, by_url, keep_one
from pipeline.curate.near import group_near
from pipeline.curate.quantiles import Keys, float_keys, float_of_key, kth_smallest, rank_of
from pipeline.curate.rows import Part, Rows
from pipeline.curate.shares import balance, limit, mix
from pipeline.curate.spec import (
    DUPLICATE_IMAGE,
    DUPLICATE_KEY,
    DUPLICATE_URL,
    EVALUATION_IMAGE,
    FATES,
    HELDOUT,
    NEAR_DUPLICATE,
    TRAIN,
    SelectSpec,
)
from pipeline.curate.sql import NUMBER, TEXT, Expression, evaluate, parse_expression
from pipeline.each import Each, in_turn
from pipeline.errors import UserError
from pipeline.ledger_sums import read_sums
from pipeline.store import Store

_RECORD = "selection.json"
_KEPT = (TRAIN, HELDOUT)
_EVALUATION_COLUMNS = ["eval_set", "eval_image", "eval_bits"]


@dataclass(frozen=True)
class SelectionSummary:
    """What a selection came to."""

    name: str
    num_samples: int
    counts: dict[str, int]
    """Samples by fate."""
    thresholds: dict[str, dict[str, float | None]]
    """By rule, by the expression of its `top` or `bottom`."""
    rules: dict[str, str]
    num_unhashed: int = 0
    """Kept samples that could not be compared with the held-out images."""

    def lines(self) -> list[str]:
        """The funnel, for the terminal."""
        return [
            f"selection {self.name} of {self.num_samples:,} stored samples",
            *funnel_lines(self.counts, self.num_samples, self.rules),
            *(
                f"  {rule}: the threshold of {text} is {value}"
                for rule, found in self.thresholds.items()
                for text, value in found.items()
            ),
            *(
                [f"  WARNING: {self.num_unhashed:,} have no perceptual hash: near-duplicates may be on both sides"]
                if self.num_unhashed
                else []
            ),
        ]


def funnel_lines(counts: dict[str, int], num_samples: int, rules: dict[str, str]) -> list[str]:
    """How many samples each step left out, in the order of the steps, and how many were left after it."""
    order = [DUPLICATE_KEY, *rules, *(fate for fate in FATES if fate not in (DUPLICATE_KEY, *_KEPT))]
    left, lines = num_samples, []
    for fate in order:
        if counts.get(fate):
            left -= counts[fate]
            why = f"  ({rules[fate]})" if fate in rules else ""
            lines.append(f"  {fate:20} -{counts[fate]:>15,}   {left:>15,} left{why}")
    return lines + [f"  {fate:20}  {counts.get(fate, 0):>15,}" for fate in _KEPT]


def select(
    rows: Rows,
    spec: SelectSpec,
    holdout: float,
    name: str,
    seed: int,
    each: Each,
    holdout_near_bits: int | None = None,
) -> SelectionSummary:
    """Decide the fate of each stored sample, and write it down.

    Args:
        rows: the store's samples and columns.
        spec: what to keep.
        holdout: share of images to hold out.
        name: of the selection; one of this name is replaced when all is decided.
        seed: of the draws.
        each: runs the parts.
        holdout_near_bits: distance to a held-out image within which nothing is trained on; None looks for none.

    Raises:
        UserError: An expression is wrong, or nothing is left.
    """
    fingerprint = units_fingerprint(rows.store, each)
    guard_bits = _guard_bits(holdout, holdout_near_bits)
    job = _parse(Job(rows, spec, holdout, name, seed, sum(1 for _ in rows.parts()), guard_bits))
    rows.store.remove(job.scratch)
    job = replace(job, thresholds=_find_thresholds(job, each))
    job = _decide(job, each)
    counts = dict(sorted(count_fates(job, each).items()))
    num_samples = sum(counts.values())
    if not any(counts.get(fate) for fate in _KEPT):
        raise _nothing_left(job, counts, num_samples)
    record = {
        "spec": spec.model_dump(mode="json"),
        "holdout": holdout,
        "holdout_near_bits": guard_bits,
        "seed": seed,
        "columns": _used_columns(job),
        "folders": _used_folders(rows, _used_columns(job)),
        "units_fingerprint": fingerprint,
        "num_samples": num_samples,
        "counts": counts,
        "num_unhashed": job.num_unhashed,
        "thresholds": _thresholds_by_rule(job),
        "parts": job.num_parts,
    }
    _publish(job, record, each)
    return _summary(name, record)


def is_current(
    rows: Rows, spec: SelectSpec, holdout: float, name: str, seed: int, holdout_near_bits: int | None = None
) -> bool:
    """Whether the selection of this name is what `select` would write."""
    path = f"{FOLDER}/{name}/{_RECORD}"
    if not rows.store.exists(path):
        return False
    known = rows.store.read_json(path)
    asked = {
        "spec": spec.model_dump(mode="json"),
        "holdout": holdout,
        "holdout_near_bits": _guard_bits(holdout, holdout_near_bits),
        "seed": seed,
        "folders": _used_folders(rows, known["columns"]),
    }
    return (
        {key: known.get(key) for key in asked} == asked
        and list(known["spec"]["where"]) == list(spec.where)
        and known["units_fingerprint"] == units_fingerprint(rows.store)
    )


def _guard_bits(holdout: float, holdout_near_bits: int | None) -> int | None:
    """The distance that decides: none where nothing is held out, as in records from before there was a guard."""
    return holdout_near_bits if holdout else None


def _used_folders(rows: Rows, columns: Sequence[str]) -> dict[str, str]:
    """Where the annotations are that a selection depends on."""
    return {column: rows.folders[column] for column in columns if column in rows.folders}


def _used_columns(job: Job) -> list[str]:
    expressions = [*job.rules, *(one for one in (job.keep, job.by) if one)]
    used = {column for expression in expressions for column in expression.columns}
    return sorted(used | {column for column in _EVALUATION_COLUMNS if column in job.rows.types})


def read_record(store: Store, name: str) -> dict[str, Any]:
    """The commit record of a selection.

    Raises:
        UserError: There is none of this name.
    """
    path = f"{FOLDER}/{name}/{_RECORD}"
    if not store.exists(path):
        next_step = "run: genlip select RECIPE"
        raise UserError(f"there is no selection {name!r}", where=store.path(path), next_step=next_step)
    record: dict[str, Any] = store.read_json(path)
    return record


def read_summary(store: Store, name: str) -> SelectionSummary:
    """The numbers of a selection made before."""
    return _summary(name, read_record(store, name))


def units_fingerprint(store: Store, each: Each = in_turn) -> str:
    """A hash of all committed units by what is in them."""
    digests = [one.digest for one in read_sums(store, each, keep=True)]
    # One block's digest is that of all units, as selections from before there were blocks have it.
    joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return joined[:16]


def _summary(name: str, record: dict[str, Any]) -> SelectionSummary:
    return SelectionSummary(
        name,
        record["num_samples"],
        record["counts"],
        record["thresholds"],
        record["spec"]["where"],
        record.get("num_unhashed", 0),
    )


def _parse(job: Job) -> Job:
    spec, at = job.spec, "curate.select"
    rules = tuple(parse_expression(text, job.rows, f"{at}.where.{rule}") for rule, text in spec.where.items())
    keep = parse_expression(spec.dedup.keep, job.rows, f"{at}.dedup.keep", NUMBER)
    by = parse_expression(spec.mix.by, job.rows, f"{at}.mix.by", TEXT) if spec.mix else None
    for expression, where in ((keep, "dedup.keep"), (by, "mix.by")):
        if expression and expression.quantiles:
            next_step = "put the condition into curate.select.where"
            raise UserError("only a rule can have `in top N%`", where=f"{at}.{where}", next_step=next_step)
    return replace(job, rules=rules, keep=keep, by=by)


def _find_thresholds(job: Job, each: Each) -> tuple[tuple[float | None, ...], ...]:
    """The thresholds of each rule's quantiles, over all stored samples; the passes are shared."""
    wanted = [quantile for rule in job.rules for quantile in rule.quantiles]
    if not wanted:
        return tuple(() for _ in job.rules)
    texts = list(dict.fromkeys(quantile.text for quantile in wanted))
    expressions = [parse_expression(text, job.rows, "curate.select.where", NUMBER) for text in texts]

    def ranks(totals: Any) -> list[int]:
        return [rank_of(one.share, one.is_top, total) for one, total in zip(wanted, totals, strict=True)]

    places = [texts.index(quantile.text) for quantile in wanted]
    keys_of = partial(_quantile_keys, rows=job.rows, expressions=expressions, places=places)
    found = iter(kth_smallest(keys_of, ranks, job.rows.parts, each))
    values = [[next(found) for _ in rule.quantiles] for rule in job.rules]
    return tuple(tuple(None if key is None else float_of_key(key) for key in keys) for keys in values)


def _quantile_keys(part: Part, rows: Rows, expressions: list[Expression], places: list[int]) -> list[Keys]:
    columns = sorted({column for expression in expressions for column in expression.columns})
    keys = [float_keys(values) for values in evaluate(rows.read(part, columns), expressions)]
    return [keys[place] for place in places]


def _thresholds_by_rule(job: Job) -> dict[str, dict[str, float | None]]:
    return {
        name: dict(zip(rule.threshold_names, values, strict=True))
        for name, rule, values in zip(job.spec.where, job.rules, job.thresholds, strict=True)
        if rule.quantiles
    }


def _decide(job: Job, each: Each) -> Job:
    """All steps in their order."""
    job = keep_one(job, DUPLICATE_KEY, [], by_text("key"), False, each)
    job = advance(job, _apply_rules, each)
    for kind in job.spec.dedup.exact:
        if kind == "sha256":
            job = keep_one(job, DUPLICATE_IMAGE, ["sha256"], by_text("sha256"), True, each)
        else:
            job = keep_one(job, DUPLICATE_URL, ["url"], by_url, True, each)
    if job.spec.dedup.near_bits is not None:
        job = replace(job, near=group_near(job.rows, job.spec.dedup.near_bits, each))
        job = keep_one(job, NEAR_DUPLICATE, ["phash"], by_near_label, True, each)
    for wanted, step in ((job.spec.balance, balance), (job.spec.mix, mix), (job.spec.max_samples, limit)):
        if wanted is not None:
            job = step(job, each)
    return hold_out(job, each)


def _apply_rules(part: Part, fates: pa.Table, job: Job) -> list[Decided]:
    evaluation = [name for name in _EVALUATION_COLUMNS if "eval_set" in job.rows.types]
    table = job.rows.read(part, sorted({column for rule in job.rules for column in rule.columns} | set(evaluation)))
    decided: list[Decided] = []
    for rule, values in zip(job.spec.where, evaluate(table, job.rules, job.thresholds), strict=True):
        decided.append((values.is_null().to_numpy(), rule, "null"))
        decided.append((~pc.fill_null(values, False).to_numpy(), rule, None))
    if evaluation:
        bits = pc.binary_join_element_wise(table["eval_bits"].cast(pa.string()), "bits", " ")
        image = pc.binary_join_element_wise(table["eval_set"], table["eval_image"], "/")
        detail = pc.binary_join_element_wise(image, bits, ", ").combine_chunks()
        decided.append((table["eval_set"].is_valid().to_numpy(), EVALUATION_IMAGE, detail))
    return decided


def _publish(job: Job, record: dict[str, Any], each: Each) -> None:
    """Put the fates in the place of those of an earlier selection, which ends to exist first."""
    job.store.remove(f"{job.folder}/{_RECORD}")
    for file in job.store.names(job.folder, ".parquet"):
        job.store.remove(f"{job.folder}/{file}")
    for _ in each(partial(_publish_part, job=job), job.rows.parts()):
        pass
    # Not by `write_json`, which sorts keys: the order of the rules counts.
    job.store.write(f"{job.folder}/{_RECORD}", json.dumps(record, indent=1).encode())
    job.store.remove(job.scratch)


def _publish_part(part: Part, job: Job) -> None:
    fates = job.read_fates(part)
    table = job.rows.read(part, ["key"])
    for name in fates.column_names:
        table = table.append_column(name, fates[name])
    job.store.write_table(f"{job.folder}/{part.name}.parquet", table)


def _nothing_left(job: Job, counts: dict[str, int], num_samples: int) -> UserError:
    if not num_samples:
        next_step = "ingest more, or loosen its filters; see: genlip inspect STORE"
        return UserError("the store has no stored sample", where=job.store.root, next_step=next_step)
    most = max(counts, key=lambda fate: counts[fate])
    funnel = ", ".join(f"{fate} {count:,}" for fate, count in sorted(counts.items(), key=lambda item: -item[1]))
    is_rule = most in job.spec.where
    rule = f"curate.select.where.{most} ({job.spec.where[most]})" if is_rule else f"what leaves out {most}"
    return UserError(
        "no sample is left",
        where="curate.select",
        why=f"of {num_samples:,} stored samples: {funnel}",
        next_step=f"loosen {rule}, then: genlip select RECIPE",
    )
