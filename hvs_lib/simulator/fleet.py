"""From a seed to a telemetry table: sites, labels, frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from hvs_lib import columns as col
from hvs_lib.progress import steps
from hvs_lib.simulator import physics as ph
from hvs_lib.simulator.events import N_RACKS, Event, draw_events, make_event
from hvs_lib.simulator.physics import DT_S, N_MODULES
from hvs_lib.simulator.sensors import draw_sensors, measure
from hvs_lib.simulator.site import Fate, draw_dispatch, draw_room, fates, plan_rack

START = np.datetime64("2025-01-01T00:00:00", "us")
LABEL_FROM_S = col.LABEL_FROM_MIN * 60.0 + col.LABEL_UNTIL_S  # before the PNR
HORIZON = int(np.ceil(LABEL_FROM_S / DT_S))  # samples past the end: the last labels know them
RACKS = [f"Rack{row}{i}" for row in "AB" for i in range(1, 5)]
MODULES = [f"{rack}_Module{m:02d}" for rack in RACKS for m in range(1, N_MODULES + 1)]


class SiteRun(NamedTuple):
    """The rows of one site in compact columns, and its events.

    ``columns`` holds the sensors by name, ``step`` int32, ``module`` int8 (position in MODULES),
    ``label`` int8 and ``event`` int32 (position in ``events``; -1 = none), each of shape (n,).
    """

    site: int
    columns: dict[str, np.ndarray]
    events: list[tuple]  # rows of the table of events


def simulate_fleet(
    sites: int,
    hours: float,
    seed: int,
    *,
    n_jobs: int = 1,
    drop_lost_racks: bool = True,
    progress: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate the telemetry of a fleet of battery storage sites, sampled every 10 s.

    Parameters
    ----------
    sites : int
        Number of sites of 64 modules.
    hours : float
        Simulated time [h].
    seed : int
        One seed gives the same telemetry whatever ``n_jobs`` or the number of sites beside.
    n_jobs : int
        Threads; -1 = all cores.
    drop_lost_racks : bool
        Leave out all rows of a rack from 30 s before its first point of no return (PNR) on: the
        warning would come too late.
    progress : bool
        Show a progress bar.

    Returns
    -------
    telemetry : DataFrame
        Columns ``col.TELEMETRY``, sorted by site, rack, module and time.
    events : DataFrame
        One row per hazard and look-alike: Event_ID, Event_Type, Site_ID, Rack_ID, Module_ID
        (missing where it covers more than one), Onset, Vent, PNR (NaT = never), Hazard (PNR
        reached), Labelled (rows with label 1 are left).

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _check_arguments(sites, hours, seed)
    if n_jobs == 0:
        raise ValueError("n_jobs must be at least 1, or -1 for all cores, got 0.")
    work = (
        delayed(simulate_site)(site, hours, seed, drop_lost_racks=drop_lost_racks)
        for site in range(sites)
    )
    done = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(work)
    return to_frames(list(steps(done, "sites", total=sites) if progress else done))


def _check_arguments(sites: int, hours: float, seed: int) -> None:
    if sites < 1:
        raise ValueError(f"sites must be at least 1, got {sites}.")
    if not 0.0 < hours < np.inf or round(hours * 3600.0 / DT_S) < 1:
        raise ValueError(f"hours must be finite and at least one sample of 10 s, got {hours}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or greater, got {seed}.")


def simulate_rack(
    cause: str,
    *,
    hours: float = 4.0,
    seed: int = 0,
    onset_min: float = 60.0,
    module: int = 3,
    **params: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate one rack with one event of a given cause, and keep all rows.

    Parameters
    ----------
    cause : str
        A key of ``events.CAUSES``, e.g. ``"slow_short"``.
    hours : float
    seed : int
        Draws the rack, its instruments and the parameters that are not given.
    onset_min : float
        When it begins [min].
    module : int
        Number of the module, from 1.
    **params : float
        Parameters of the cause, e.g. ``final_ohm=0.03``, instead of a draw from its ranges.

    Returns
    -------
    telemetry, events : DataFrame
        As of :func:`simulate_fleet`.
    """
    _check_arguments(1, hours, seed)
    if not 0.0 <= onset_min < hours * 60.0:
        raise ValueError(f"onset_min must lie within the {hours} hours simulated, got {onset_min}.")
    if not 1 <= module <= N_MODULES:
        raise ValueError(f"module must be between 1 and {N_MODULES}, got {module}.")
    rng = np.random.default_rng(seed)
    event = make_event(cause, round(onset_min * 60.0 / DT_S), rng, module=module - 1, **params)
    run = simulate_site(0, hours, seed, events=[event], racks=[0], drop_lost_racks=False)
    return to_frames([run])


def simulate_site(
    site: int,
    hours: float,
    seed: int,
    *,
    events: Sequence[Event] | None = None,
    racks: Sequence[int] = range(N_RACKS),
    drop_lost_racks: bool = True,
) -> SiteRun:
    """Simulate one site, or some of its racks, optionally with given events.

    Parameters
    ----------
    site : int
        Number of the site, from 0: with the seed it fixes every draw.
    hours : float
    seed : int
    events : sequence of Event, optional
        What happens, instead of a draw.
    racks : sequence of int
        Racks to simulate; a rack's rows do not depend on the others.
    drop_lost_racks : bool

    Returns
    -------
    SiteRun
    """
    n = round(hours * 3600.0 / DT_S)
    streams = np.random.SeedSequence(seed, spawn_key=(site,)).spawn(4)
    rng_site, rng_events = np.random.default_rng(streams[1]), np.random.default_rng(streams[2])
    dispatch, room_C = draw_dispatch(n + HORIZON, rng_site), draw_room(n + HORIZON, rng_site)
    events = draw_events(n, rng_events) if events is None else events
    parameters, sensors = streams[0].spawn(N_RACKS), streams[3].spawn(N_RACKS)

    known = [Fate(event, np.inf, np.inf) for event in events if event.module < 0]
    readings = {}
    for rack in racks:
        here = [event for event in events if event.covers(rack)]
        plan = plan_rack(rack, dispatch, room_C, here, np.random.default_rng(parameters[rack]))
        truth = ph.simulate(plan.drive, plan.around, plan.traits)
        known += fates(rack, here, truth)
        rng = np.random.default_rng(sensors[rack])
        current_A = plan.around["current_A"][:n]
        seen = measure(truth.until(n), current_A, draw_sensors(rng), here, rng)
        lost = drop_lost_racks and np.isfinite(truth.pnr_s.min())
        readings[rack] = seen[:, :, : samples_until(truth.pnr_s.min(), n) if lost else n]
    return _collect(site, known, readings)


def _collect(site: int, known: list[Fate], readings: dict[int, np.ndarray]) -> SiteRun:
    """Number the events in time and lay the racks' rows end to end."""
    known = sorted(known, key=lambda fate: (fate.event.onset, fate.event.rack, fate.event.module))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("step", "module", "label", "event")}
    for rack, seen in readings.items():
        n = seen.shape[2]
        label, event = mark_rows(known, rack, n)
        first = rack * N_MODULES
        parts["step"].append(np.tile(np.arange(n, dtype=np.int32), N_MODULES))
        parts["module"].append(np.repeat(np.arange(first, first + N_MODULES, dtype=np.int8), n))
        parts["label"].append(label.ravel())
        parts["event"].append(event.ravel())
    for i, name in enumerate(col.SENSORS):
        parts[name] = [seen[i].ravel() for seen in readings.values()]
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    labelled = set(np.unique(columns["event"][columns["label"] == 1]).tolist())
    return SiteRun(site, columns, _event_rows(site, known, labelled))


def mark_rows(known: Sequence[Fate], rack: int, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return label and event number of a rack's rows, each of shape (n_modules, n_steps)."""
    label = np.zeros((N_MODULES, n_steps), np.int8)
    number = np.full((N_MODULES, n_steps), -1, np.int32)
    for i in sorted(range(len(known)), key=lambda i: known[i].rank):
        event = known[i].event
        if event.covers(rack):
            rows = slice(None) if event.module < 0 else event.module
            number[rows, event.onset : event.until(n_steps)] = i
            if known[i].hazard:
                number[rows, event.onset :] = i
                label[rows, label_window(known[i], n_steps)] = 1
    return label, number


def label_window(fate: Fate, n_steps: int) -> slice:
    """Return the samples with label 1: from max(onset, PNR - 20.5 min) to PNR - 30 s."""
    start = max(fate.event.onset, int(np.ceil((fate.pnr_s - LABEL_FROM_S) / DT_S)))
    return slice(start, max(samples_until(fate.pnr_s, n_steps), start))


def samples_until(pnr_s: float, n_steps: int) -> int:
    """Return how many of the first samples lie at or before 30 s ahead of a PNR."""
    last = np.floor((pnr_s - col.LABEL_UNTIL_S) / DT_S)
    return int(np.clip(last + 1, 0, n_steps))


def _event_rows(site: int, known: Sequence[Fate], labelled: set[int]) -> list[tuple]:
    """Return the rows of the events table of a site."""
    name = f"Site{site + 1:02d}"
    return [
        (
            f"{name}-E{i + 1:03d}",
            event.cause,
            name,
            RACKS[event.rack] if event.rack >= 0 else None,
            MODULES[event.rack * N_MODULES + event.module] if event.module >= 0 else None,
            _at(event.onset * DT_S),
            _at(vent_s),
            _at(pnr_s),
            known[i].hazard,
            i in labelled,
        )
        for i, (event, vent_s, pnr_s) in enumerate(known)
    ]


def _at(seconds: float) -> np.datetime64:
    if not np.isfinite(seconds):
        return np.datetime64("NaT")
    return START + np.timedelta64(round(seconds * 1e6), "us")


def _events_frame(rows: list[tuple]) -> pd.DataFrame:
    ids = [col.EVENT_ID, col.EVENT_TYPE, col.SITE, col.RACK, col.MODULE]
    frame = pd.DataFrame(rows, columns=[*ids, "Onset", "Vent", "PNR", "Hazard", "Labelled"])
    types = dict.fromkeys(ids, "str") | dict.fromkeys(["Onset", "Vent", "PNR"], "datetime64[us]")
    return frame.astype(types | dict.fromkeys(["Hazard", "Labelled"], "bool"))


def to_frames(runs: list[SiteRun]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join the sites' rows into one telemetry table and one table of events.

    Consumes the columns of the runs, so that no more than one column is ever held twice.
    """
    events = _events_frame([row for run in runs for row in run.events])
    kinds = sorted(events[col.EVENT_TYPE].unique())
    kind = np.append(pd.Categorical(events[col.EVENT_TYPE], categories=kinds).codes, np.int8(-1))
    first = 0
    for run in runs:
        run.columns["event"][run.columns["event"] >= 0] += first
        first += len(run.events)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([run.columns.pop(name) for run in runs])

    lengths = [run.columns["step"].size for run in runs]
    time = joined("step").astype(np.int64)
    time *= int(DT_S * 1e6)
    time += START.astype(np.int64)
    module, number = joined("module"), joined("event")
    columns = {
        col.TIMESTAMP: time.view(START.dtype),
        col.SITE: _category(
            np.repeat(np.arange(len(runs), dtype=np.int16), lengths),
            [f"Site{run.site + 1:02d}" for run in runs],
        ),
        col.RACK: _category(module // N_MODULES, RACKS),
        col.MODULE: _category(module, MODULES),
        **{name: joined(name) for name in col.SENSORS},
        col.LABEL: joined("label"),
        col.EVENT_ID: _category(number, events[col.EVENT_ID].tolist()),
        col.EVENT_TYPE: _category(kind[number], kinds),
    }
    return pd.DataFrame(columns, copy=False), events


def _category(codes: np.ndarray, names: list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(names, dtype="str"))
