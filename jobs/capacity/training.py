"""The arithmetic of training at a scale: devices and their efficiency, what is read, what is kept."""

from jobs.capacity import requests
from jobs.capacity.inputs import Inputs
from jobs.capacity.sheet import Folder, Sheet
from jobs.capacity.stages import ADVICE_GET, trained_on
from jobs.capacity.terms import Term, count, digits, share, show_bytes, show_count, size, unknown

_STATE_BYTES = 16
"""A parameter in a checkpoint: the weight and AdamW's two moments in fp32, and the weight again in model/."""
_EMA_BYTES = 8
"""Further ones with a moving average."""


def plan_train(inputs: Inputs) -> Sheet:
    """As many samples seen as the input has rows."""
    recipe, sheet = inputs.recipe, Sheet("train", inputs.recipe)
    devices = sheet.machines.devices
    seen = Term(inputs.rows.value, f"{inputs.rows.value:,.0f} samples")
    sheet.add("passes", seen / trained_on(inputs), digits)
    speed = _speed(inputs)
    efficiency = sheet.add("efficiency", _efficiency(inputs, devices, speed), lambda value: share(value).text)
    per_s = sheet.add("speed", speed * devices * efficiency, lambda value: f"{digits(value)} samples/s")
    read = sheet.total("egress", "egress", seen * inputs.sample_bytes, show_bytes, "read from the store")
    of_samples = sheet.add("GET samples", seen * count(1, "GET"), show_count)
    of_shards = sheet.add("GET indexes", _index_requests(inputs, seen, devices), show_count)
    get = sheet.total("get", "GET", of_samples + of_shards, show_count)
    keep = count(_num_checkpoints(inputs), "checkpoints")
    sheet.total("bytes", "storage", keep * _checkpoint(inputs), show_bytes)
    limit = recipe.capacity.requests
    folder = Folder("shards/", limit.get_per_s, limit.partitions)
    limits = {
        "computing": sheet.hours("computing", seen / per_s),
        "network": sheet.hours("network", read / sheet.machines.bytes_per_s),
        "GET on shards/": sheet.request_hours("GET limit", get, folder),
    }
    sheet.takes(sheet.slowest(limits))
    others = [limits["computing"], limits["network"]]
    sheet.rate("GET rate", get, folder, others, f"{ADVICE_GET}, shards on the nodes' disks none")
    sheet.costs()
    return sheet


def _speed(inputs: Inputs) -> Term:
    """Of one device; what was measured without a GPU says nothing of nodes that have some."""
    group = inputs.recipe.capacity.stages.get("train")
    has_gpus = bool(group and inputs.recipe.capacity.node_types[group.node].gpus)
    given = inputs.recipe.capacity.throughput.train_samples_per_s_device
    if given or not inputs.train or bool(inputs.train.machine.gpu) == has_gpus or not group:
        return inputs.speeds["train"]
    there = "with" if inputs.train.machine.gpu else "without"
    return unknown(
        f"speed of {group.node}: train was measured on a machine {there} a GPU",
        "genlip bench RECIPE --only train, on such a node",
    )


def _efficiency(inputs: Inputs, devices: Term, speed: Term) -> Term:
    """What a device does among the others, for what it does alone: the step's computing and its traffic."""
    given = inputs.recipe.capacity.throughput.train_efficiency
    if given:
        return share(given)
    if devices.missing or speed.missing:
        return devices if devices.missing else speed
    if devices.value == 1:
        return share(1)
    spec, num_devices = inputs.recipe.train, round(devices.value)
    if spec.lanes % (num_devices * spec.micro_rows):
        return unknown(
            f"how {spec.lanes} lanes are dealt to {num_devices:,} devices, {spec.micro_rows} at a time",
            "another number of capacity.stages.train.nodes, or of train.lanes",
        )
    if not inputs.train:
        return unknown("size of the model", "genlip bench RECIPE --only train, or capacity.throughput.train_efficiency")
    from train.scaling import efficiency, link_bytes_per_s, step_traffic

    numbers, group = inputs.train.numbers, inputs.recipe.capacity.stages["train"]
    node = inputs.recipe.capacity.node_types[group.node]
    step_samples = numbers["samples_per_row"] * spec.lanes
    compute_s = step_samples / num_devices / speed.value
    traffic = step_traffic(round(numbers["num_parameters"]), spec, num_devices)
    found = efficiency(
        traffic, compute_s, link_bytes_per_s(num_devices, node.interconnect_gbit_per_s or node.network_gbit_per_s)
    )
    waits_s = compute_s / found - compute_s
    text = (
        f"{digits(compute_s)} s ÷ ({digits(compute_s)} s + {digits(waits_s)} s waiting for {traffic.total / 1e9:.2f} GB"
        f" a step of {step_samples:,.0f} samples, ZeRO {spec.zero.stage})"
    )
    return Term(found, text, "product")


def _index_requests(inputs: Inputs, seen: Term, devices: Term) -> Term:
    """Every process reads of each shard that it comes to what it holds and how long its captions are."""
    shard_samples = count(inputs.recipe.shards.shard_samples, "samples a shard")
    return seen / shard_samples * devices * count(requests.TRAIN_GETS_PER_SHARD)


def _num_checkpoints(inputs: Inputs) -> int:
    spec = inputs.recipe.train.checkpoint
    return spec.keep_last + (round(inputs.rows.value) // spec.keep_every if spec.keep_every else 0)


def _checkpoint(inputs: Inputs) -> Term:
    if not inputs.train:
        return unknown("size of the model", "genlip bench RECIPE --only train")
    num_bytes = _STATE_BYTES + (_EMA_BYTES if inputs.recipe.train.ema else 0)
    return count(inputs.train.numbers["num_parameters"], "parameters") * size(num_bytes)
