"""From a seed to a telemetry table: sites, labels, frames."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from hvs_lib import columns as col
from hvs_lib.parallel import side_by_side
from hvs_lib.progress import steps
from hvs_lib.simulator.battery import BATTERIES, battery_of, check_fleet
from hvs_lib.simulator.causes import N_RACKS, draw_events
from hvs_lib.simulator.physics import DT_S, simulate
from hvs_lib.simulator.rack import Fate, draw_dispatch, draw_room, fates, measure, plan_rack

START = np.datetime64("2025-01-01T00:00:00", "us")
LABEL_FROM_S = col.LABEL_FROM_MIN * 60.0 + col.LABEL_UNTIL_S  # before the PNR
HORIZON = int(np.ceil(LABEL_FROM_S / DT_S))  # samples past the end: a PNR there labels earlier rows
RACKS = [f"Rack{row}{i}" for row in "AB" for i in range(1, 5)]


def simulate_fleet(
    sites: int,
    hours: float,
    seed: int,
    *,
    battery: str = "module",
    n_jobs: int = 1,
    progress: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate the telemetry of a fleet of battery storage sites.

    Parameters
    ----------
    sites : int
        Number of sites, of 8 racks each.
    hours : float
        Simulated time [h].
    seed : int
        Seed of the draws, from 0 to 2**32 - 1; a site's telemetry depends on neither ``n_jobs`` nor
        the other sites.
    battery : str
        Battery of all sites, from ``BATTERIES``: "cell", "module" (14s2p, 8 to a rack, every 10 s),
        "block" or "pack"; or "mix", which draws one for each site from ``MIX``.
    n_jobs : int
        Number of threads; -1 for all cores.
    progress : bool
        Show a progress bar.

    Returns
    -------
    telemetry : DataFrame
        Columns ``col.TELEMETRY`` except PNR, sorted by site, rack, module and time. A rack's rows
        end 30 s before its first point of no return (PNR): a later warning would be too late.
    events : DataFrame
        One row per hazard and look-alike: Event_ID, Event_Type, Site_ID, Rack_ID, Module_ID
        (missing if it covers more than one), Onset, PNR (NaT = never), Hazard (PNR reached),
        Labelled (has rows with label 1).

    Raises
    ------
    ValueError
        If an argument is out of range or the battery is unknown.
    """
    check_fleet(sites, seed, battery)
    if not 0.0 < hours < np.inf or round(hours * 3600.0 / DT_S) < 1:
        raise ValueError(f"hours must be finite and at least one sample of 10 s, got {hours}.")
    if n_jobs == 0:
        raise ValueError("n_jobs must be at least 1, or -1 for all cores, got 0.")
    one = partial(simulate_site, hours=hours, seed=seed, battery=battery)
    done = side_by_side(one, range(sites), n_jobs=n_jobs)
    done = list(steps(done, "sites", total=sites) if progress else done)
    tables = [telemetry for telemetry, _ in done]
    columns = {}
    for name in list(tables[0]):
        parts = [table.pop(name) for table in tables]  # at most one column is held twice
        if parts[0].dtype == "category":
            columns[name] = union_categoricals(parts, sort_categories=name == col.EVENT_TYPE)
        else:
            columns[name] = np.concatenate(parts)
    events = pd.concat([events for _, events in done], ignore_index=True)
    return pd.DataFrame(columns, copy=False), events


def simulate_site(
    site: int, hours: float, seed: int, battery: str = "module"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate one site; its number (from 0), the seed and the battery fix every draw.

    Returns its telemetry and its events, as `simulate_fleet` does.
    """
    design = BATTERIES[battery_of(battery, site, seed)]
    interval_s, n = design.interval_s, round(hours * 3600.0 / DT_S)
    n_rows = int(np.ceil(n * DT_S / interval_s))
    streams = np.random.SeedSequence(seed, spawn_key=(site,)).spawn(4)
    rng_site, rng_events = np.random.default_rng(streams[1]), np.random.default_rng(streams[2])
    dispatch = draw_dispatch(n + HORIZON, rng_site)
    room_C = draw_room(n + HORIZON, rng_site, design)
    events = draw_events(n, rng_events, design)
    parameters, sensors = streams[0].spawn(N_RACKS), streams[3].spawn(N_RACKS)

    known = [Fate(event) for event in events if event.module < 0]
    readings = []
    for rack in range(N_RACKS):
        here = [event for event in events if event.covers(rack)]
        rng = np.random.default_rng(parameters[rack])
        plan = plan_rack(rack, dispatch, room_C, here, rng, design)
        truth = simulate(plan.drive, plan.around, plan.traits, interval_s)
        known += fates(rack, here, truth)
        rng = np.random.default_rng(sensors[rack])
        seen = measure(truth, plan.around["current_A"], here, n_rows, rng, design)
        readings.append(until_lost(seen, truth.pnr_s, interval_s))
    known.sort(key=lambda fate: (fate.event.onset, fate.event.rack, fate.event.module))

    parts = []
    for rack, seen in enumerate(readings):
        modules, times = np.indices(seen.shape[1:], np.int32)
        label, event = mark_rows(known, rack, seen.shape[1:], interval_s)
        parts.append({"step": times, "module": rack * design.modules + modules, "event": event})
        parts[-1] |= {col.LABEL: label, **dict(zip(col.SENSORS, seen, strict=True))}
    rows = {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}

    name = f"Site{site + 1:02d}"
    names = [f"{rack}_Module{m:02d}" for rack in RACKS for m in range(1, design.modules + 1)]
    events = _events_frame(name, names, known)
    events["Labelled"] = np.isin(events.index, rows["event"][rows[col.LABEL] == 1])
    kinds = pd.Categorical(events[col.EVENT_TYPE])
    kind = np.append(kinds.codes, -1)  # event -1 (none) has no kind
    columns = {
        col.TIMESTAMP: START + rows["step"] * np.timedelta64(int(interval_s), "s"),
        col.SITE: _category(np.zeros(len(rows["step"]), np.int8), [name]),
        col.RACK: _category(rows["module"] // design.modules, RACKS),
        col.MODULE: _category(rows["module"], names),
        **{name: rows[name] for name in col.SENSORS},
        col.LABEL: rows[col.LABEL],
        col.EVENT_ID: _category(rows["event"], events[col.EVENT_ID]),
        col.EVENT_TYPE: _category(kind[rows["event"]], kinds.categories),
    }
    return pd.DataFrame(columns, copy=False), events


def until_lost(seen: np.ndarray, pnr_s: np.ndarray, interval_s: float) -> np.ndarray:
    """Drop a rack's readings from 30 s before its first PNR on: too late for a warning."""
    return seen[..., : samples_until(pnr_s.min(), seen.shape[-1], interval_s)]


def mark_rows(
    known: Sequence[Fate], rack: int, shape: tuple[int, int], interval_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label and event number of a rack's rows, each of shape (n_modules, n_steps).

    Rows from max(onset, PNR - 20.5 min) to PNR - 30 s have label 1.
    """
    label, number, n_steps = np.zeros(shape, np.int8), np.full(shape, -1, np.int32), shape[1]
    for i, fate in sorted(enumerate(known), key=lambda each: each[1].rank):
        event = fate.event.sampled(interval_s)
        if event.covers(rack):
            rows = slice(None) if event.module < 0 else event.module
            number[rows, event.rows(n_steps)] = i
            if fate.hazard:
                number[rows, event.onset :] = i
                start = max(event.onset, int(np.ceil((fate.pnr_s - LABEL_FROM_S) / interval_s)))
                label[rows, start : samples_until(fate.pnr_s, n_steps, interval_s)] = 1
    return label, number


def samples_until(pnr_s: float, n_steps: int, interval_s: float) -> int:
    """Return the number of samples up to 30 s before a PNR, inclusive."""
    last = np.floor((pnr_s - col.LABEL_UNTIL_S) / interval_s)
    return int(np.clip(last + 1, 0, n_steps))


def _events_frame(site: str, modules: Sequence[str], known: Sequence[Fate]) -> pd.DataFrame:
    rows = []
    for i, fate in enumerate(known):
        event, rack, module = fate.event, fate.event.rack, fate.event.module
        place = RACKS[rack] if rack >= 0 else None
        part = modules[rack * len(modules) // N_RACKS + module] if module >= 0 else None
        times = map(_time, (event.onset * DT_S, fate.pnr_s))
        rows.append((f"{site}-E{i + 1:03d}", event.cause, site, place, part, *times, fate.hazard))
    types = dict.fromkeys([col.EVENT_ID, col.EVENT_TYPE, col.SITE, col.RACK, col.MODULE], "str")
    types |= dict.fromkeys(["Onset", "PNR"], "datetime64[us]") | {"Hazard": "bool"}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def _time(seconds: float) -> np.datetime64:
    if not np.isfinite(seconds):
        return np.datetime64("NaT")
    return START + np.timedelta64(round(seconds * 1e6), "us")


def _category(codes: np.ndarray, names: Sequence[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str"))
