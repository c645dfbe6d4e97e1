"""The arithmetic of the stages that make a dataset: ingest, curate, shards."""

from jobs.capacity import requests
from jobs.capacity.inputs import Inputs
from jobs.capacity.sheet import Folder, Sheet
from jobs.capacity.terms import Term, count, digits, show_bytes, show_count, show_hours, size
from pipeline.curate.hamming import plan_tables
from pipeline.curate.rows import MAX_PARTS

ADVICE_GET = (
    "the store answers 503 until it has split the folder: at full speed {needed} key ranges are half busy;"
    " capacity.requests.partitions says how many there are, fewer nodes need fewer"
)


def show_samples(value: float) -> str:
    """A number of samples."""
    return f"{value:,.0f} samples"


def show_units(value: float) -> str:
    """A number of work units."""
    return f"{value:,.0f} units"


def plan_ingest(inputs: Inputs) -> Sheet:
    """From rows to raw files and ledgers."""
    recipe, sheet = inputs.recipe, Sheet("ingest", inputs.recipe)
    cores = sheet.machines.cores
    unit_rows = count(recipe.ingest.unit_samples, "rows")
    units = sheet.add("units", inputs.rows / unit_rows, show_units)
    stored = sheet.add("stored", inputs.rows * inputs.success, show_samples)
    raw = sheet.add("raw file", unit_rows * inputs.success * inputs.sample_bytes, show_bytes)
    files = sheet.add("raw files", stored * inputs.sample_bytes, show_bytes)
    ledgers = sheet.add("ledgers", inputs.rows * inputs.ledger_bytes, show_bytes)
    sheet.total("bytes", "storage", files + ledgers, show_bytes)
    ingress = sheet.add("ingress", inputs.rows * inputs.download_bytes, show_bytes)
    raw_put = sheet.add("PUT on raw/", units * uploads(raw), show_count)
    sheet.total("put", "PUT", raw_put + units * count(1, "ledger"), show_count)
    sheet.total("get", "GET", units * count(requests.GETS_PER_UNIT, "for its rows"), show_count)
    per_unit = units * size(requests.DRIVER_BYTES_PER_UNIT)
    sheet.add("memory", size(requests.DRIVER_BYTES) + per_unit, show_bytes, "of the driver")
    folder = Folder("raw/, at the end of its keys", recipe.capacity.requests.put_per_s)
    places = count(recipe.ingest.fetch.in_flight, "downloads") * cores
    limits = {
        "CPU": sheet.hours("CPU", inputs.rows / (inputs.speeds["ingest"] * cores)),
        "network": sheet.hours("network", ingress / sheet.machines.bytes_per_s),
        "requests": sheet.request_hours("requests", raw_put, folder),
        "driver": sheet.hours("driver", units * Term(requests.DRIVER_S_PER_UNIT, f"{requests.DRIVER_S_PER_UNIT:g} s")),
    }
    hosts = sheet.hours("hosts", inputs.rows * inputs.download_s / places)
    sheet.takes(sheet.slowest(limits, {"hosts": hosts}))
    if sheet.limit == "driver":
        sheet.warnings.append("ingest: the driver hands out units too slowly; raise ingest.unit_samples")
    others = [hours for name, hours in limits.items() if name != "requests"]
    sheet.rate("PUT rate", raw_put, folder, others, _advice_put(raw))
    sheet.costs()
    return sheet


def plan_curate(inputs: Inputs) -> Sheet:
    """From raw files to columns and a selection; its steps follow each other."""
    sheet = Sheet("curate", inputs.recipe)
    units = sheet.add("units", inputs.rows / count(inputs.recipe.ingest.unit_samples, "rows"), show_units)
    stored = sheet.add("samples", inputs.rows * inputs.success, show_samples)
    num_annotators = len(inputs.recipe.curate.build_annotators())
    gets = [units * count(requests.SELECT_GETS_PER_UNIT)]
    steps: list[Term] = []
    if num_annotators:
        gets.append(units * count(requests.ANNOTATE_GETS_PER_UNIT + num_annotators))
        gets.append(sheet.add("GET on raw/", stored / count(requests.BATCH_SAMPLES, "samples a batch"), show_count))
        sheet.total("bytes", "storage", stored * inputs.column_bytes, show_bytes)
        put = units * count(2 * num_annotators, "PUT and LIST")
        sheet.total("put", "PUT", put, show_count, f"annotators: {num_annotators}")
        steps.append(_annotate(inputs, sheet, stored, gets[-1]))
    sheet.total("get", "GET", sum(gets[1:], gets[0]), show_count)
    steps.append(_select(inputs, sheet, stored, gets[0]))
    near_bits = inputs.recipe.curate.select.dedup.near_bits
    if near_bits is not None and not stored.missing:
        steps.append(_near(sheet, round(stored.value), near_bits))
    sheet.limit = ""
    sheet.takes(sum(steps[1:], steps[0]))
    sheet.costs()
    return sheet


def _annotate(inputs: Inputs, sheet: Sheet, stored: Term, raw_get: Term) -> Term:
    """Hours until all columns are computed."""
    cores, limit = sheet.machines.cores, inputs.recipe.capacity.requests
    limits = {
        "CPU": sheet.hours("CPU", stored / (inputs.speeds["annotate"] * cores)),
        "network": sheet.hours("network", stored * inputs.sample_bytes / sheet.machines.bytes_per_s),
        "requests": sheet.request_hours("requests", raw_get, Folder("raw/", limit.get_per_s, limit.partitions)),
    }
    waiting = sheet.hours("waiting", raw_get * inputs.get_s / cores, "for the store, one request at a time")
    hours = sheet.slowest(limits, {"waiting": waiting})
    return sheet.add("annotate", hours, show_hours, f"limit: {sheet.limit}")


def _select(inputs: Inputs, sheet: Sheet, stored: Term, get: Term) -> Term:
    """Hours until the samples are selected, near-duplicates aside."""
    cores = sheet.machines.cores
    at_once = cores if cores.value <= MAX_PARTS else count(MAX_PARTS, "parts at a time")
    limits = {"CPU": sheet.hours("CPU", stored / (inputs.speeds["select"] * at_once))}
    waiting = sheet.hours("waiting", get * inputs.get_s / at_once, "for the store, one request at a time")
    hours = sheet.slowest(limits, {"waiting": waiting})
    return sheet.add("select", hours, show_hours, f"limit: {sheet.limit}")


def _near(sheet: Sheet, num_hashes: int, near_bits: int) -> Term:
    """Hours until near-duplicates are found, by the formula of the search itself."""
    tables = plan_tables(num_hashes, near_bits)
    sheet.warnings += [f"curate: {text.removeprefix('WARNING: ')}" for text in (tables.warning(),) if text]
    work = Term(tables.cpu_s, f"{digits(tables.cpu_s / 3600)} core-hours")
    return sheet.hours(
        "near", work / sheet.machines.cores, f"{tables.num_tables:,} tables, {tables.num_candidates:.2g} pairs"
    )


def plan_shards(inputs: Inputs) -> Sheet:
    """From the selection to shuffled shards: every sample is read from where its unit was written."""
    recipe, sheet = inputs.recipe, Sheet("shards", inputs.recipe)
    shard_samples = count(recipe.shards.shard_samples, "samples")
    units = sheet.add("units", inputs.rows / count(recipe.ingest.unit_samples, "rows"), show_units)
    chosen = sheet.add("samples", trained_on(inputs), show_samples)
    shards = sheet.add("shards", chosen / shard_samples, lambda value: f"{value:,.0f} shards")
    shard = sheet.add("shard", shard_samples * inputs.sample_bytes, show_bytes)
    storage = sheet.total("bytes", "storage", chosen * inputs.sample_bytes, show_bytes)
    put = sheet.total("put", "PUT", shards * (uploads(shard) + count(1, "index row")), show_count)
    get = sheet.add("GET on raw/", chosen * count(1, "GET a sample"), show_count)
    sheet.total("get", "GET", get + units * count(requests.SHARD_GETS_PER_UNIT, "for ledger and fates"), show_count)
    limit = recipe.capacity.requests
    raw, folder = (
        Folder("raw/", limit.get_per_s, limit.partitions),
        Folder("shards/", limit.put_per_s, limit.partitions),
    )
    limits = {
        "CPU": sheet.hours("CPU", chosen / (inputs.speeds["shards"] * sheet.machines.cores)),
        "network": sheet.hours("network", storage / sheet.machines.bytes_per_s),
        "GET on raw/": sheet.request_hours("GET limit", get, raw),
        "PUT on shards/": sheet.request_hours("PUT limit", put, folder),
    }
    sheet.takes(sheet.slowest(limits))
    others = [limits["CPU"], limits["network"]]
    sheet.rate("GET rate", get, raw, others, ADVICE_GET)
    sheet.rate("PUT rate", put, folder, others, "raise shards.shard_samples, or use fewer nodes")
    sheet.costs()
    return sheet


def trained_on(inputs: Inputs) -> Term:
    """Samples in the shards."""
    return inputs.rows * inputs.success * inputs.selected


def uploads(file: Term) -> Term:
    """PUT requests of one file."""
    if file.missing or file.value <= requests.PART_BYTES:
        return file if file.missing else count(1)
    num = requests.put_requests(file.value)
    return Term(num, f"{num:,.0f} of parts")


def _advice_put(raw: Term) -> str:
    """What lowers the rate at which raw files are written."""
    part = f"{requests.PART_BYTES / 2**20:.0f} MiB"
    if raw.value > requests.PART_BYTES:
        return f"most are parts of {part}, whose number follows from the bytes: use fewer nodes"
    return f"raise ingest.unit_samples: a raw file of up to {part} is one PUT"
