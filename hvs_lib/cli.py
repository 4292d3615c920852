"""The command line, `hvs`."""

import signal
import sys
import time
from pathlib import Path

from hvs_lib import __version__
from hvs_lib.project import MAX_STORE_WAIT_S, STORE_WAIT, StoreError, environment

import click

_KEEP = click.option(
    "--keep-fill-values", is_flag=True,
    help="Take 327.67, 65535 and the like, which stand for absent sensors, as readings.",
)  # fmt: skip

# The imports of each command stand in it, so that `hvs --help` and a refusal answer at once.


class _Commands(click.Group):
    """Commands of which each may meet a file system that refuses, be it under its output."""

    def main(self, *args, **kwargs) -> None:
        try:
            super().main(*args, **kwargs)
        except OSError as error:
            _fail(error)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="hvs")
def main() -> None:
    """Early warning of thermal runaway in high-voltage battery storage."""
    sys.stdout.reconfigure(errors="replace")  # a terminal need not know each character of an id


@main.command()
@click.argument("notebook", nargs=-1)
@click.option(
    "-p", "--param", "params", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter."
)
@click.option("--profile", default="default", show_default=True, help="smoke, default or full.")
@click.option("--fresh", is_flag=True, help="Execute also what was executed before.")
@click.option(
    "--in-place", is_flag=True, help="Keep the outputs in notebooks/, for committing; is fresh."
)
@click.option(
    "--store-wait", default=60.0, show_default=True, envvar=STORE_WAIT,
    type=click.FloatRange(0, MAX_STORE_WAIT_S),
    help="Seconds to wait for a tracking server that has stopped answering.",
)  # fmt: skip
def run(
    notebook: tuple[str, ...],
    params: tuple[tuple[str, str], ...],
    profile: str,
    fresh: bool,
    in_place: bool,
    store_wait: float,
) -> None:
    """Execute all notebooks, or those named, in order; a run that was stopped goes on."""
    from hvs_lib import runner
    from hvs_lib.telemetry.files import DataError

    try:
        given = dict(params)
        if given.get("data_path"):
            given["data_path"] = str(Path(given["data_path"]).absolute())
        planned = runner.plan(list(notebook), profile=profile, parameters=given)
        for warning in runner.check_telemetry(planned):
            click.echo(f"Warning: {warning}")
        if in_place and any(planned.values()):
            raise runner.RunError("--in-place keeps the outputs of the defaults: set no parameter.")
        with environment({STORE_WAIT: str(store_wait)}):
            timings = runner.execute(
                planned, say=click.echo, in_place=in_place, fresh=fresh or in_place
            )
        if runner.COMPARISON in planned:
            _show_verdict()
    except (runner.RunError, DataError, StoreError) as error:
        _fail(error)
    if timings:
        click.echo("\n" + runner.timing_report(timings))
    click.echo("\nEvery run, figure and model: `make ui`, then open http://127.0.0.1:5000")


@main.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--sites", default=8, show_default=True, help="Sites of 64 modules each.")
@click.option("--hours", default=6.0, show_default=True, help="Simulated time.")
@click.option("--seed", default=42, show_default=True)
@click.option("--jobs", default=-1, show_default=True, help="Sites simulated at once; -1: cores.")
def simulate(output: Path, sites: int, hours: float, seed: int, jobs: int) -> None:
    """Simulate a fleet's telemetry into OUTPUT, a CSV or Parquet file that is not there yet."""
    from hvs_lib.simulator import simulate_fleet
    from hvs_lib.telemetry.files import DataError, check_new, save_telemetry
    from hvs_lib.telemetry.summary import summarize

    try:
        check_new(output)  # before minutes of work
        telemetry, _ = simulate_fleet(sites, hours, seed, n_jobs=jobs, progress=True)
        save_telemetry(telemetry, output)
    except MemoryError:
        _fail(ValueError("the fleet does not fit into memory: take fewer sites or hours."))
    except (DataError, ValueError) as error:
        _fail(error)
    _echo_summary(summarize(telemetry))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_KEEP
def check(file: Path, keep_fill_values: bool) -> None:
    """Show what a telemetry FILE holds, or every problem that it has."""
    from hvs_lib.features import check_interval
    from hvs_lib.telemetry.files import DataError
    from hvs_lib.telemetry.read import load_telemetry
    from hvs_lib.telemetry.summary import summarize

    try:
        telemetry = load_telemetry(file, require_label=False, keep_fill_values=keep_fill_values)
        summary = summarize(telemetry)
        summary["warnings"] += check_interval(summary["interval_s"])
    except DataError as error:
        _fail(error)
    _echo_summary(summary)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_KEEP
@click.option(
    "--output", default="alarms.csv", show_default=True, type=click.Path(path_type=Path),
    help="CSV file for the alarms.",
)  # fmt: skip
@click.option("--model", help="URI of another model than the registered champion.")
def score(file: Path, keep_fill_values: bool, output: Path, model: str | None) -> None:
    """Find the alarms in a telemetry FILE with the registered champion."""
    from hvs_lib.progress import ProgressBar
    from hvs_lib.score import CHAMPION_URI, load_champion, score_file
    from hvs_lib.telemetry.files import DataError
    from hvs_lib.tracking import connect
    from hvs_lib.tracking.model_files import ModelError

    bar = ProgressBar(100, "percent")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is unfinished is removed
    try:
        connect()
        champion = load_champion(model or CHAMPION_URI)
        start = time.perf_counter()
        tally = score_file(
            file, output, champion, keep_fill_values=keep_fill_values,
            on_progress=lambda share: bar.update(100 * share - bar.done),
        )  # fmt: skip
    except (DataError, ModelError, StoreError) as error:
        _fail(error)
    finally:
        bar.close()
    speed = tally.rows / (time.perf_counter() - start)
    click.echo(f"{tally.racks} racks, {tally.rows:,} rows, {speed:,.0f} rows/s")
    click.echo(f"{tally.alarms} alarms in {output}")
    for warning in tally.warnings:
        click.echo(f"Warning: {warning}")


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
def push(run_dir: Path) -> None:
    """Log what RUN_DIR, a folder of runs/, keeps because the tracking store had failed."""
    from hvs_lib.tracking import push_unlogged
    from hvs_lib.tracking.model_files import ModelError

    count = 0
    try:
        for run_id in push_unlogged(run_dir):
            click.echo(f"logged as Run ID {run_id}")
            count += 1
    except (StoreError, ModelError, ValueError) as error:
        _fail(error)
    click.echo(f"{count} runs logged" if count else f"{run_dir} keeps no unlogged run")


@main.command()
@click.argument("run_id")
def reproduce(run_id: str) -> None:
    """Execute a run again and compare its metrics with the logged ones."""
    from hvs_lib.reproduce import TOLERANCE
    from hvs_lib.reproduce import reproduce as execute_again
    from hvs_lib.runner import RunError
    from hvs_lib.tracking import store_failures_told

    try:
        with store_failures_told():
            table = execute_again(run_id, say=click.echo)
    except (RunError, StoreError) as error:
        _fail(error)
    for name, metrics in table.groupby("run", sort=False):
        click.echo(f"\n{name}")
        shown = metrics.drop(columns=["run", "same"])
        click.echo(shown.to_string(index=False, float_format=lambda value: f"{value:.12g}"))
    differing = int((~table["same"]).sum())
    if differing:
        click.echo(f"\n{differing} of {len(table)} metrics differ by more than {TOLERANCE:g}")
        sys.exit(1)
    click.echo(f"\nreproduced: all {len(table)} metrics agree within {TOLERANCE:g}")


def _echo_summary(summary: dict) -> None:
    from hvs_lib.telemetry.summary import format_summary

    click.echo(format_summary(summary))


def _show_verdict() -> None:
    """Print the leaderboard and the champion that 04_comparison has logged last."""
    from hvs_lib import tracking

    leaderboard, champion = tracking.verdict()
    click.echo("\nThe test racks, with 95 % intervals; AP is average precision:\n")
    click.echo(leaderboard.to_string(index=False))
    click.echo(
        f"\nChampion: {champion['name']}, Run ID {champion['run_id']}, registered as "
        f"{tracking.REGISTERED_MODEL} version {champion['version']}, alias {tracking.CHAMPION}"
    )


def _fail(error: Exception) -> None:
    click.echo(f"Error: {error}", err=True)
    sys.exit(1)
