"""What a unit, a sample, a shard costs beside its data: requests to an object store, as counted over S3
(tests/jobs/test_capacity_requests.py), and the driver's memory and time.

Whether keys should be spread over prefixes is decided by the plan's arithmetic, not here:

- Units are written in the order of their numbers, `raw/u00000000…` onwards. So all that is written at a time is at the
  end of the key range, where a store that splits ranges by load cannot help: one range has to carry the rate of PUT.
  That rate is bytes a second ÷ `PART_BYTES`, whatever the size of a unit, plus a ledger for each unit.
- Shards are made and read in a random order of the samples, so those GET are spread over all keys of `raw/` and
  `shards/NAME/`, and a store that splits ranges by load does help. How far it has to is what the plan says.
"""

import math

DRIVER_BYTES, DRIVER_BYTES_PER_UNIT = 273e6, 235.0
"""Memory of the ingesting driver, measured with up to 800,000 units: 208 MB of imports and at most 160 B a unit; Ray
adds 65 MB and 75 B a unit, measured with 16,000."""
DRIVER_S_PER_UNIT = 2.4e-3
"""Its CPU time, nearly all of it Ray's: measured with 20,000 units that did nothing."""
PART_BYTES = 5 << 20
"""Larger files go up in parts of this size: obstore's default."""
BATCH_SAMPLES = 64
"""Neighbours that an annotator gets by one request."""
GETS_PER_UNIT = 16
"""To read a unit's rows from a table in the store: size, footer, and each of a dozen columns of a row group."""
ANNOTATE_GETS_PER_UNIT = 3
"""To read a unit's ledger."""
SELECT_GETS_PER_UNIT = 45
"""Ledger and columns of a unit, over all passes of a selection: counted with the demo's rules and annotators."""
SHARD_GETS_PER_UNIT = 8
"""Ledger and fates of a unit, when its samples are sent to their places."""
TRAIN_GETS_PER_SHARD = 6
"""A shard's row of the index and its caption lengths, by each process in each pass."""
LIST_PAGE = 1_000


def put_requests(num_bytes: float) -> float:
    """To write one file: one request, or a beginning, the parts and an end."""
    return 1 if num_bytes <= PART_BYTES else math.ceil(num_bytes / PART_BYTES) + 2
