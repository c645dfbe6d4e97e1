"""The funnel adds up, whatever the reasons are."""

import json
import uuid
from collections import Counter
from dataclasses import asdict

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.funnel import funnel_of, read_funnel
from pipeline.ledger import CommitRecord
from pipeline.store import Store

REASONS = st.one_of(
    st.just("success"),
    st.builds("{}:{}".format, st.sampled_from(["rejected", "failed"]), st.text("abc:_", min_size=1, max_size=4)),
)
COUNTS = st.dictionaries(REASONS, st.integers(1, 10**9), max_size=8)


@given(COUNTS)
def test_the_parts_are_what_was_seen(counts: dict[str, int]) -> None:
    funnel = funnel_of(Counter(counts))
    assert funnel.seen == sum(counts.values())
    assert funnel.seen == funnel.success + funnel.num_rejected + funnel.num_failed
    by_reason = {f"rejected:{reason}": n for reason, n in funnel.rejected.items()}
    by_reason |= {f"failed:{reason}": n for reason, n in funnel.failed.items()}
    assert by_reason == {reason: n for reason, n in counts.items() if reason != "success"}
    for part in (funnel.rejected, funnel.failed):
        assert list(part.values()) == sorted(part.values(), reverse=True)


@settings(max_examples=20)
@given(st.lists(COUNTS, max_size=4))
def test_a_stores_funnel_is_the_sum_of_its_units(units: list[dict[str, int]]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    for number, reasons in enumerate(units):
        ledger = pa.table({"key": ["k"]}).replace_schema_metadata(
            {"genlip": json.dumps(asdict(CommitRecord("", "", 0, reasons, {})))}
        )
        store.write_table(f"ledger/u{number:08d}.parquet", ledger)
    assert read_funnel(store) == funnel_of(sum((Counter(reasons) for reasons in units), Counter()))
