"""How time and memory grow with the number of sites, from the simulation to the metrics.

`make bench-scale` runs it for 12, 48 and 192 sites. Each size has a process and a project folder of
its own, so that its peak memory is its own and nothing is there beforehand. Memory never falls in
the table: it is the most that the process has used by the end of a stage. Scoring reads each site
again and builds all its features. After a change of the simulator the first run compiles it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import click
import joblib
import pandas as pd
from xgboost import XGBClassifier

from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import XGBOOST_BY_HAND, make_pipeline
from hvs_lib.project import set_environment
from hvs_lib.telemetry.fleet import load_fleet

STAGES = ["simulate", "open", "features, thinned", "fit", "score", "judge"]


def measure(sites: int) -> pd.Series:
    """Run all stages on a new fleet; seconds, memory [GB] and rows, by measure and stage."""
    seconds, memory = pd.Series(0.0, STAGES), pd.Series(0.0, STAGES)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start
        memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    pipeline = make_pipeline(XGBClassifier(**XGBOOST_BY_HAND, random_state=42, n_jobs=1))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HVS_PROJECT_ROOT"] = folder
        with stage("simulate"):
            load_fleet(sites=sites)
        with stage("open"):
            fleet = load_fleet(sites=sites)
        seconds["simulate"] -= seconds["open"]  # which the first one did as well
        with stage("features, thinned"):
            protocol = Protocol(fleet, split_fleet(fleet.rows))
        with stage("judge"):
            _ = protocol._parts  # what an alarm would be at each row; the next stage needs it, too
        with stage("features, thinned"):
            rows = protocol.training
        with stage("fit"):
            fits = protocol.fit(pipeline)
        with stage("score"):
            (scores,) = protocol._score([fits])
        with stage("judge"):
            protocol._assess(fits, scores)
    n_rows = len(fleet.rows)
    rate = n_rows / seconds["score"] / joblib.cpu_count()
    sizes = {"rows": n_rows, "to fit on": len(rows.y), "scored per second and core": rate}
    per_million = seconds / n_rows * 1e6
    found = {"rows": pd.Series(sizes), "seconds": seconds, "seconds per million rows": per_million}
    return pd.concat(found | {"peak memory by then [GB]": memory})


@click.command()
@click.argument("sites", nargs=-1, type=click.IntRange(min=1), required=True)
def main(sites: tuple[int, ...]) -> None:
    """Measure fleets of so many SITES, such as 12 48 192, and print a column for each."""
    set_environment()
    fresh = {"max_workers": 1, "max_tasks_per_child": 1}
    with ProcessPoolExecutor(**fresh, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip((f"{n} sites" for n in sites), pool.map(measure, sites), strict=True))
    print(f"{joblib.cpu_count()} cores")
    print(pd.DataFrame(found).map(lambda x: f"{x:,.0f}" if x > 100 else f"{x:.3g}").to_string())


if __name__ == "__main__":
    main()
