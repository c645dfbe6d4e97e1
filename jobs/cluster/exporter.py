"""`genlip exporter`: the numbers of a run for Prometheus, from its folder alone, over HTTP or as a text file."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.cluster.run_numbers import METRICS, is_counter, split_key
from jobs.console import say
from jobs.recipe import load_recipe
from jobs.stages import STAGES, Stats
from jobs.status.records import read_records
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.recipe import RECIPE_FILE


class RunCollector(Collector):
    """Reads RUN/stages whenever it is asked. What there is nothing of yet has no metric.

    The commands themselves count: a scrape costs the reading of a few small files however large the store is.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def collect(self) -> Iterator[Metric]:
        run = self._run_dir.resolve().name
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for key, value in read_numbers(self._run_dir).items():
            name, labels = split_key(key)
            if name not in families:
                kind = CounterMetricFamily if is_counter(name) else GaugeMetricFamily
                families[name] = kind(name, METRICS[name], labels=["run", *labels])
            families[name].add_metric([run, *labels.values()], value)
        yield from families.values()


def read_numbers(run_dir: Path) -> dict[str, float]:
    """What the commands of a run have said last; the parts of a job array add up.

    Of an array and a command for the whole, the one that began last says the levels: each knows of all that is there.
    What they count adds up, for each counts only what it does itself.
    """
    stages = [record.stats for record in read_records(run_dir) if record.stats.numbers]
    newest = {stats.verb: stats for stats in stages}  # the last one began last
    numbers: defaultdict[str, float] = defaultdict(float)
    for stats in stages:
        says_levels = _num_parts(stats) == _num_parts(newest[stats.verb])
        for key, value in stats.numbers.items():
            if split_key(key)[0] not in METRICS:
                continue  # of another version of genlip
            if is_counter(key) or (says_levels and not key.endswith("_eta_seconds")):
                numbers[key] += value
            elif says_levels:
                numbers[key] = max(numbers[key], value)
    return numbers


def _num_parts(stats: Stats) -> str:
    return stats.part.partition("/")[2]


def export(run: Path, port: int, textfile: Path | None) -> int:
    """Serve a run's numbers until the process is ended, or write them once. Returns the exit code.

    Args:
        run: A run folder; or, before there is one, the recipe.
        port: To serve at, on all addresses.
        textfile: To write instead.

    Raises:
        UserError: There is no such run, or the port is taken.
    """
    if not run.is_file() and not (run / STAGES).is_dir() and not (run / RECIPE_FILE).exists():
        raise UserError("not a run folder", where=str(run), next_step="name the recipe, until the run has a folder")
    registry = CollectorRegistry()
    registry.register(RunCollector(load_recipe(run).run_dir if run.is_file() else run))
    if textfile:
        write_to_textfile(str(textfile), registry)
        return 0
    try:
        _, thread = start_http_server(port, registry=registry)
    except OSError as error:
        next_step = "choose another: --port PORT"
        why = error.strerror or str(error)
        raise UserError(f"port {port}", why=why, next_step=next_step, exit_code=EXIT_ENVIRONMENT) from error
    say(f"serving http://0.0.0.0:{port}/metrics")
    thread.join()
    return 0
