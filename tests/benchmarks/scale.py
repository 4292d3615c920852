"""How time and memory grow with the number of sites, from the simulation to the metrics.

`make bench-scale` runs it for 12 to 768 sites, with one and with two Dask workers of one thread
each; without workers it uses threads. Each size has processes and a project folder of its own, so
that its peak memory is its own and nothing is there beforehand. Memory never falls in the table: it
is the most that the process has used by the end of a stage. Scoring reads each site again and
builds all its features. Compiling and importing are left out.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import product

import click
import joblib
import pandas as pd
import psutil
from distributed import LocalCluster
from xgboost import XGBClassifier

from hvs_lib import cache
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.features import build_features
from hvs_lib.models import XGBOOST_BY_HAND, make_pipeline
from hvs_lib.parallel import cluster, side_by_side
from hvs_lib.project import set_environment
from hvs_lib.simulator.fleet import simulate_site
from hvs_lib.telemetry.fleet import load_fleet

STAGES = ["simulate", "open", "split", "features", "fit", "score", "judge"]
DISTRIBUTED = ["simulate", "features", "score"]  # each site by itself


def measure(sites: int, workers: int) -> pd.Series:
    """Run all stages on a new fleet; seconds, memory [GB] and rows, by measure and stage."""
    seconds, memory = pd.Series(0.0, STAGES), pd.Series(0.0, STAGES)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start
        memory[name] = peak_gb()

    pipeline = make_pipeline(XGBClassifier(**XGBOOST_BY_HAND, random_state=42, n_jobs=1))
    with ExitStack() as stack:
        os.environ["HVS_PROJECT_ROOT"] = stack.enter_context(tempfile.TemporaryDirectory())
        if workers:
            started = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
            stack.enter_context(started)
            stack.enter_context(cluster(started.scheduler_address))
        for _ in side_by_side(warm_up, range(max(workers, 1))):
            pass
        moved = loopback_gb()
        with stage("simulate"):
            load_fleet(sites=sites)
        with stage("open"):
            fleet = load_fleet(sites=sites)
        seconds["simulate"] -= seconds["open"]  # which the first one did as well
        with stage("split"):
            protocol = Protocol(fleet, split_fleet(fleet.rows), memory=cache.memory())
        with stage("judge"):
            # what an alarm would be at each row; the next stage needs it, too
            _ = [outcomes.alarm_on for outcomes in (protocol._cv, protocol._test)]
        with stage("features"):
            rows = protocol.training
        with stage("fit"):
            fits = protocol.fit(pipeline)
        with stage("score"):
            (scores,) = protocol._score([fits])
        sizes = {"rows": len(fleet.rows), "to fit on": len(rows.y)}
        sizes["simulated, built and scored per second"] = sizes["rows"] / seconds[DISTRIBUTED].sum()
        if workers:
            sizes["moved over loopback [GB]"] = loopback_gb() - moved
            with started.get_client() as client:
                sizes["peak memory of a worker [GB]"] = max(client.run(peak_gb).values())
        with stage("judge"):
            protocol._assess(fits, scores)
    per_million = seconds / sizes["rows"] * 1e6
    found = {"": pd.Series(sizes), "seconds": seconds, "seconds per million rows": per_million}
    return pd.concat(found | {"peak memory by then [GB]": memory})


def warm_up(number: int) -> None:
    """Import and load what the stages use, and leave the other workers the time to do so, too."""
    import_module(Protocol.__module__)
    build_features(simulate_site(number, 0.5, 42)[0])
    time.sleep(5)


def peak_gb() -> float:
    """Return the most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def loopback_gb() -> float:
    """Return what all processes of this machine have sent to each other."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent / 1e9


@click.command()
@click.argument("sites", nargs=-1, type=click.IntRange(min=1), required=True)
@click.option("--workers", multiple=True, type=click.IntRange(min=0), default=[0])
def main(sites: tuple[int, ...], workers: tuple[int, ...]) -> None:
    """Measure fleets of so many SITES, such as 12 48 192, and print a column for each.

    With several numbers of workers there is a column for each pair, and the speed-up over the
    first number.
    """
    set_environment()
    fresh = {"max_workers": 1, "max_tasks_per_child": 1}
    pairs = list(product(sites, workers))
    with ProcessPoolExecutor(**fresh, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(pairs, pool.map(measure, *zip(*pairs, strict=True)), strict=True))
    table = pd.DataFrame(found)
    table.columns.names = ["sites", "workers"]
    rate = table.loc["", "simulated, built and scored per second"]
    table.loc[("", "speed-up"), :] = rate / [rate[n, workers[0]] for n, _ in pairs]
    print(f"{joblib.cpu_count()} cores")
    print(table.map(lambda x: f"{x:,.0f}" if x > 100 else f"{x:.3g}").to_string())


if __name__ == "__main__":
    main()
