"""The command line, `hvs`."""

import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from hvs_lib import __version__
from hvs_lib.project import HvsError, is_address, set_environment

_KEEP = click.option(
    "--keep-fill-values", is_flag=True,
    help="Treat 327.67, 65535 and other fill values of absent sensors as readings.",
)  # fmt: skip

_COLUMNS = click.option(
    "--columns", default="", metavar="MAP", type=click.Path(),
    help="YAML map of the file's columns to ours; `hvs map FILE` proposes one.",
)  # fmt: skip


def _on_cluster(command: Callable) -> Callable:
    """Give a command the option `--dask`: the cluster that runs its heavy steps."""

    @click.option(
        "--dask", metavar="ADDRESS", envvar="DASK_SCHEDULER_ADDRESS",
        help="Dask scheduler whose workers do the work; local: start a worker for each core.",
    )  # fmt: skip
    @wraps(command)
    def on_cluster(*args, dask: str | None, **options) -> None:
        from hvs_lib.parallel import cluster

        with cluster(dask):
            command(*args, **options)

    return on_cluster


# Each command imports what it needs, so that `hvs --help` and errors appear at once.


class _Commands(click.Group):
    """Commands that report errors caused by the user or a full disk without a traceback."""

    def main(self, *args, **kwargs) -> None:
        try:
            super().main(*args, **kwargs)
        except (HvsError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="hvs")
def main() -> None:
    """Early warning of thermal runaway in high-voltage battery storage."""
    set_environment()  # before numpy and MLflow are loaded
    sys.stdout.reconfigure(errors="replace")  # not every terminal prints all characters of an id


@main.command()
@click.argument("notebook", nargs=-1)
@click.option(
    "-p", "--param", "params", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter."
)
@click.option("--profile", default="default", show_default=True, help="smoke, default or full.")
@click.option("--fresh", is_flag=True, help="Fit every model again.")
@click.option(
    "--in-place", is_flag=True, help="Write outputs into notebooks/, to commit; implies --fresh."
)
@_on_cluster
def run(notebook: tuple, params: tuple, profile: str, fresh: bool, in_place: bool) -> None:
    """Run all notebooks in order, or only those named. Fitted models are kept and reused."""
    from hvs_lib import runner

    given = dict(params)
    for name in ("data_path", "columns"):
        if given.get(name) and not is_address(given[name]):
            given[name] = str(Path(given[name]).absolute())
    planned = runner.plan(list(notebook), profile=profile, parameters=given)
    for warning in runner.check_telemetry(planned):
        click.echo(f"Warning: {warning}")
    if in_place and any(planned.values()):
        raise runner.RunError("--in-place works only at the defaults: set no parameter.")
    seconds = runner.execute(planned, say=click.echo, in_place=in_place, fresh=fresh or in_place)
    if runner.COMPARISON in planned:
        _show_verdict()
    if runner.FIELD_TRIAL in seconds.index:
        from hvs_lib.tracking.runs import last_trial

        click.echo(f"\nField trial: {last_trial()}")
    click.echo("\n" + runner.timing_report(seconds))
    click.echo("\nEvery run, figure and model: `make ui`, then open http://127.0.0.1:5000")


@main.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--sites", default=8, show_default=True, help="Number of sites, 8 racks each.")
@click.option("--hours", default=6.0, show_default=True, help="Simulated time [h].")
@click.option("--seed", default=42, show_default=True)
@click.option(
    "--battery", default="mix", show_default=True, help="cell, module, block, pack or a mix."
)
@click.option("--jobs", default=-1, show_default=True, help="Sites at once; -1: one per core.")
@_on_cluster
def simulate(output: Path, sites: int, hours: float, seed: int, battery: str, jobs: int) -> None:
    """Simulate a fleet and write its telemetry to OUTPUT, a new CSV or Parquet file."""
    from hvs_lib.simulator.fleet import simulate_fleet
    from hvs_lib.telemetry.files import check_output, save_telemetry
    from hvs_lib.telemetry.summary import format_summary, summarize

    check_output(output)  # before minutes of work
    try:
        telemetry, _ = simulate_fleet(
            sites, hours, seed, battery=battery, n_jobs=jobs, progress=True
        )
        save_telemetry(telemetry, output)
    except MemoryError:
        raise HvsError("the fleet does not fit into memory: take fewer sites or hours.") from None
    except ValueError as error:
        raise HvsError(str(error)) from error
    click.echo(format_summary(summarize(telemetry)))


@main.command("map")
@click.argument("file")
@click.option("--output", type=click.Path(path_type=Path), help="New file to write the map to.")
def propose(file: str, output: Path | None) -> None:
    """Propose a column map for telemetry (FILE, a folder or address); review it before use."""
    from hvs_lib.telemetry.proposal import propose_map

    if output and output.exists():
        raise HvsError(f"{output} must be new, but it exists; choose another name.")
    text = propose_map(file)
    if output:
        output.write_text(text, encoding="utf-8")
        text = f"{output} is written: read it, then `hvs check {file} --columns {output}`"
    click.echo(text.rstrip())


@main.command()
@click.argument("file")
@_COLUMNS
@_KEEP
def check(file: str, columns: str, keep_fill_values: bool) -> None:
    """Summarize telemetry (FILE, a folder or s3:// address), or list every problem in it."""
    from hvs_lib.features import NO_SET, check_interval, sensor_sets_of
    from hvs_lib.score import load_champion, sensor_sets_told
    from hvs_lib.telemetry.read import load_telemetry
    from hvs_lib.telemetry.summary import format_summary, summarize
    from hvs_lib.tracking.store import connect

    telemetry = load_telemetry(
        file, columns=columns, require_label=False, keep_fill_values=keep_fill_values
    )
    summary = summarize(telemetry)
    summary["warnings"] += check_interval(summary["interval_s"])
    click.echo(format_summary(summary))
    try:
        connect(create=False)
        champion = load_champion()
    except HvsError:  # none is registered yet, or the store is unavailable
        champion = None
    sets = Counter(sensor_sets_of(telemetry))
    for line in sensor_sets_told(sets, champion):
        click.echo(line)
    if {*sets} == {NO_SET}:
        raise HvsError("no rack can be scored: a module needs both temperatures.")


@main.command()
@click.argument("file")
@_COLUMNS
@_KEEP
@click.option(
    "--output", default="alarms.csv", show_default=True, type=click.Path(path_type=Path),
    help="CSV file for the alarms.",
)  # fmt: skip
@click.option("--model", help="URI or folder of a model to use instead of the champion.")
@_on_cluster
def score(file: str, columns: str, keep_fill_values: bool, output: Path, model: str | None) -> None:
    """Score telemetry (FILE, a folder or s3:// address) with the champion and write the alarms."""
    from hvs_lib.score import (
        CHAMPION_URI,
        is_in_store,
        load_champion,
        score_file,
        sensor_sets_told,
    )
    from hvs_lib.tracking.store import connect

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that unfinished files are removed
    uri = model or CHAMPION_URI
    if is_in_store(uri):
        connect(create=False)
    champion = load_champion(uri)
    start = time.perf_counter()
    tally = score_file(file, output, champion, columns=columns, keep_fill_values=keep_fill_values)
    speed = tally.rows / (time.perf_counter() - start)
    click.echo(f"{tally.racks} racks, {tally.rows:,} rows, {speed:,.0f} rows/s")
    told = ", ".join(f"{count} by {rule}" for rule, count in tally.alarms.items()) or "none"
    click.echo(f"alarms in {output}: {told}")
    warnings = [f"Warning: {warning}" for warning in tally.warnings]
    for line in (*sensor_sets_told(tally.sets, champion), *warnings, *tally.outcomes):
        click.echo(line)


@main.command()
@click.argument("run_id")
def reproduce(run_id: str) -> None:
    """Run the notebook of RUN_ID again and compare its metrics with the logged ones."""
    from hvs_lib import reproduce as reproduction

    table = reproduction.reproduce(run_id, say=click.echo)
    for name, metrics in table.groupby("run", sort=False):
        click.echo(f"\n{name}")
        shown = metrics.drop(columns=["run", "same"])
        click.echo(shown.to_string(index=False, float_format="{:.12g}".format))
    limit = f"{reproduction.TOLERANCE:g}"
    if differing := int((~table["same"]).sum()):
        click.echo(f"\n{differing} of {len(table)} metrics differ by more than {limit}")
        sys.exit(1)
    click.echo(f"\nreproduced: all {len(table)} metrics agree within {limit}")


def _show_verdict() -> None:
    """Print the leaderboard and the champion last logged by 04_comparison."""
    from hvs_lib.tracking.champion import CHAMPION, REGISTERED_MODEL
    from hvs_lib.tracking.runs import last_comparison

    leaderboard, tags = last_comparison()
    click.echo("\nThe test racks, with 95 % intervals; AP is average precision, cv out of fold:\n")
    width = shutil.get_terminal_size().columns
    click.echo(leaderboard.set_index("model").to_string(line_width=width))
    leader = f"{tags['champion_name']}, Run ID {tags['champion_run_id']}"
    if stopped := tags.get("registration_stopped_by"):
        click.echo(f"\nNo version was registered: {leader} leads, but: {stopped}")
        return
    click.echo(
        f"\nChampion: {leader}, registered as {REGISTERED_MODEL} version "
        f"{tags['champion_version']}, alias {CHAMPION}"
    )
