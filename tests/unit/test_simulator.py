"""The simulator: physics against closed sums and another solver, fleets against their rules."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numba import njit
from scipy.integrate import solve_ivp
from sklearn.metrics import average_precision_score

from hvs_lib import columns as col
from hvs_lib.simulator import fleet as simulated
from hvs_lib.simulator import physics as ph
from hvs_lib.simulator.battery import BATTERIES, MIX, battery_of
from hvs_lib.simulator.causes import CAUSES, HAZARDS, LOOK_ALIKES, make_event
from hvs_lib.simulator.fleet import simulate_fleet, simulate_site
from hvs_lib.simulator.rack import draw_dispatch, draw_room, fates, plan_rack
from hvs_lib.telemetry.files import save_telemetry
from hvs_lib.telemetry.read import load_telemetry

# --- the reactions, in the oven test of an 18650 cell ---------------------------------------------

VOLUME_M3 = np.pi * 0.009**2 * 0.065
AREA_M2 = 2 * np.pi * 0.009 * 0.065 + 2 * np.pi * 0.009**2
OVEN_J_K = 2580.0 * 830.0 * VOLUME_M3
OVEN_W_K = 7.17 * AREA_M2  # convection alone
OVEN_KG = tuple(density * VOLUME_M3 for density in (610.0, 1220.0, 407.0))  # graphite, cathode, ...
OVEN_START_C = 28.0
# Oven [degC]: time to 140 degC [s], time to the steepest rise [s], peak [degC]
OVEN_CASES = {155.0: (1839, 2649, 581.9), 150.0: (2015, 2998, 574.0), 145.0: (2245, 3525, 562.2)}


@njit
def heat_in_oven(oven_C, share, until_s):
    """Heat a cell with the scheme of the simulator; return times, temperatures and its state."""
    x = np.zeros(ph.N_STATES)
    x[ph.SEI], x[ph.ANODE], x[ph.THICK], x[ph.CATHODE], x[ph.ELYTE] = 0.15, 1.0, 0.033, 0.04, 1.0
    temp, now, step, released, gained = OVEN_START_C, 0.0, 1.0, 0.0, 0.0
    times, temps = [now], [temp]
    while now < until_s:
        step = min(2.0 * step, ph.DT_S)
        while True:
            half = ph.reaction_heat(ph.reaction_extents(x, temp, 1.0, 0.5 * step), 1.0, *OVEN_KG)
            rise = (OVEN_W_K * (oven_C - temp) * step + 2.0 * half) / OVEN_J_K
            limit = share * ph.R_GAS * (temp + ph.KELVIN) ** 2 / ph.E_SEI
            if abs(rise) <= limit or step <= 1e-3:
                break
            step = max(0.9 * step * limit / abs(rise), 1e-3)
        middle = temp + 0.5 * OVEN_W_K * (oven_C - temp) * step / OVEN_J_K + half / OVEN_J_K
        extents = ph.reaction_extents(x, middle, 1.0, step)
        heat = ph.reaction_heat(extents, 1.0, *OVEN_KG)
        x[ph.SEI] -= extents[0]
        x[ph.ANODE] -= extents[1] / ph.LITHIUM_0
        x[ph.THICK] += extents[1]
        x[ph.CATHODE] += extents[2]
        x[ph.ELYTE] -= extents[3]
        outside = OVEN_W_K * (oven_C - middle) * step
        temp += (outside + heat) / OVEN_J_K
        now += step
        released += heat
        gained += outside
        times.append(now)
        temps.append(temp)
    return np.array(times), np.array(temps), x, released, gained


def figures(times, temps):
    """Return time to 140 degC, time to the steepest rise, peak."""
    i = np.argmax(temps >= 140.0)
    to_140 = np.interp(140.0, temps[i - 1 : i + 1], times[i - 1 : i + 1])
    k = np.argmax(np.diff(temps) / np.diff(times))
    return to_140, 0.5 * (times[k] + times[k + 1]), temps.max()


@pytest.mark.parametrize("oven_C", OVEN_CASES)
def test_oven_reaches_the_published_figures(oven_C):
    to_140, to_steepest, peak = figures(*heat_in_oven(oven_C, ph.MAX_CHANGE, 4500.0)[:2])
    expected = OVEN_CASES[oven_C]
    assert to_140 == pytest.approx(expected[0], rel=0.015)
    assert to_steepest == pytest.approx(expected[1], rel=0.002)
    assert peak == pytest.approx(expected[2], abs=1.0)


def reactions(_, y, oven_C):
    """Return the plain differential equations of the oven, without the simulator's functions."""
    temp, sei, lithium, thick, alpha, elyte = y
    rt = 8.314 * (temp + 273.15)
    d_sei = 1.667e15 * np.exp(-1.3508e5 / rt) * sei
    d_an = 2.5e13 * np.exp(-1.3508e5 / rt) * lithium * np.exp(-thick / 0.033)
    d_cat = 6.667e13 * np.exp(-1.396e5 / rt) * alpha * (1.0 - alpha)
    d_el = 5.14e25 * np.exp(-2.74e5 / rt) * elyte
    heat = OVEN_KG[0] * (257e3 * d_sei + 1714e3 * d_an)
    heat += OVEN_KG[1] * 314e3 * d_cat + OVEN_KG[2] * 155e3 * d_el
    return [(heat + OVEN_W_K * (oven_C - temp)) / OVEN_J_K, -d_sei, -d_an, d_an, d_cat, -d_el]


def test_oven_agrees_with_an_implicit_solver():
    start = [OVEN_START_C, 0.15, 0.75, 0.033, 0.04, 1.0]
    settings = {"method": "Radau", "rtol": 1e-8, "atol": 1e-10, "args": (150.0,)}
    solved = solve_ivp(reactions, (0.0, 3300.0), start, **settings)
    expected = figures(solved.t, solved.y[0])
    fine = figures(*heat_in_oven(150.0, 0.02, 3300.0)[:2])
    coarse = figures(*heat_in_oven(150.0, ph.MAX_CHANGE, 3300.0)[:2])
    assert fine[0] == pytest.approx(expected[0], rel=1e-4)
    assert fine[2] == pytest.approx(expected[2], abs=0.2)
    assert coarse[1] == pytest.approx(fine[1], rel=1e-3)
    assert coarse[2] == pytest.approx(expected[2], abs=0.8)


def test_oven_heat_is_the_enthalpy_of_what_reacted():
    _, temps, x, released, gained = heat_in_oven(155.0, ph.MAX_CHANGE, 3500.0)
    graphite, cathode, elyte = OVEN_KG
    used = graphite * (257e3 * (0.15 - x[ph.SEI]) + 1714e3 * 0.75 * (1.0 - x[ph.ANODE]))
    used += cathode * 314e3 * (x[ph.CATHODE] - 0.04) + elyte * 155e3 * (1.0 - x[ph.ELYTE])
    assert released == pytest.approx(used, rel=1e-12)
    assert OVEN_J_K * (temps[-1] - temps[0]) == pytest.approx(released + gained, rel=1e-12)


# --- a rack ---------------------------------------------------------------------------------------


def forced_event(cause, onset, rng, *, rack=0, module=3, **params):
    """Return an event with some of its parameters given."""
    event = make_event(cause, onset, rng, rack=rack, module=module)
    assert params.keys() <= event.params.keys()
    return replace(event, params=event.params | params)


def planned_rack(cause, *, battery="module", n_steps=1800, onset=180, seed=3, **params):
    """Return what drives a rack with one forced event, on its fourth or else last module."""
    rng, battery = np.random.default_rng(seed), BATTERIES[battery]
    events = [forced_event(cause, onset, rng, module=min(3, battery.modules - 1), **params)]
    dispatch, room_C = draw_dispatch(n_steps, rng), draw_room(n_steps, rng, battery)
    return plan_rack(0, dispatch, room_C, events, rng, battery)


@njit
def heat_brought_in(module, middle, traits, drive, current_A):
    """Return the heat [W] that enters a module from outside and from currents."""
    part_A = current_A / traits.parallel
    z = np.array([module.soc_f, module.soc])
    ohm = np.empty(2)
    heat = drive.joint_ohm * current_A**2 + ph.BUS_OHM * current_A**2
    heat += drive.cell_W
    heat += drive.case_W
    for c in range(2):
        ohm[c] = traits.resistance * ph.cell_resistance(middle[c], z[c])
        reversible = (middle[c] + ph.KELVIN) * 1e-4 * (0.3 - z[c])
        heat += traits.cells[c] * (ohm[c] * part_A**2 + part_A * reversible)
    if drive.short_ohm < np.inf and module.opened == 0.0 and z[0] > 0.0:
        i = ph.open_circuit_voltage(z[0]) / (drive.short_ohm + ohm[0] / traits.parallel)
        heat += i**2 * (drive.short_ohm + ohm[0] / traits.parallel)
    if current_A > 0.0:
        heat += ph.side_share(z[0]) * current_A * ph.open_circuit_voltage(z[0])
    return heat


@njit
def burn(modules, rack, traits, drive, around):
    """Advance a rack through all samples.

    Return the heat [J] made by reactions, brought in, taken by vapour, lost to the room.
    """
    made = brought = taken = lost = 0.0
    for k in range(around.size):
        current, now, step = around[k].current_A, k * ph.DT_S, ph.DT_S
        while now < (k + 1) * ph.DT_S - 1e-9:
            before, air = modules.copy(), rack.air
            step = min(max(2.0 * step, ph.MIN_STEP_S), (k + 1) * ph.DT_S - now)
            step = ph.advance(modules, rack, traits, drive, around, k, now, step)
            now += step
            middle_air = air - 0.5 * step / ph.AIR_J_K * ph.G_VENTILATION * (air - around[k].room_C)
            for m in range(modules.size):
                old = before[m]
                from_case = drive[m, k].case_air_W_K * (old.temp[2] - air)
                middle_air += 0.5 * step / ph.AIR_J_K * from_case
                middle = modules[m].middle
                brought += step * heat_brought_in(old, middle, traits[m], drive[m, k], current)
                for c in range(2):
                    soc = old.soc if c else old.soc_f
                    charge = min(max(soc, 0.0), 1.0)
                    used = old.cells[c] - modules[m].cells[c]
                    extents = (
                        used[ph.SEI],
                        used[ph.ANODE] * ph.LITHIUM_0 * charge,
                        -used[ph.CATHODE],
                        used[ph.ELYTE],
                    )
                    masses = (ph.GRAPHITE_KG, ph.CATHODE_KG, ph.ELYTE_KG)
                    heat = ph.reaction_heat(extents, soc, *masses)
                    shorted = traits[m].shorted_J * charge * used[ph.CHARGE]
                    made += traits[m].cells[c] * (heat + shorted)
                    vapour = ph.SOLVENT_J_KG * ph.SOLVENT_KG * used[ph.SOLVENT]
                    taken += traits[m].cells[c] * vapour
            lost += step * ph.G_VENTILATION * (middle_air - around[k].room_C)
    return made, brought, taken, lost


def stored_J(modules, rack, traits):
    return ph.AIR_J_K * rack["air"] + (modules["temp"] * traits["heat_J_K"]).sum()


@pytest.mark.parametrize("battery", BATTERIES)
@pytest.mark.parametrize("cause", HAZARDS)
@pytest.mark.slow
def test_energy_balance_of_a_burning_rack_closes(cause, battery):
    plan = planned_rack(cause, battery=battery)
    plan.traits["short_opens_C"] = np.inf
    plan.traits["core_delay_s"] = 100.0
    modules, rack = ph.at_rest(plan.around, plan.traits)
    at_first = stored_J(modules, rack, plan.traits)
    made, brought, taken, lost = burn(modules, rack, plan.traits, plan.drive, plan.around)
    survives = (cause, battery) == ("overcharge", "cell")  # as three in ten do
    assert np.isfinite(modules["pnr_s"]).any() != survives
    assert made > (1.0 if survives else 1e4)
    gained = stored_J(modules, rack, plan.traits) - at_first
    turnover = made + brought + taken + lost
    assert gained == pytest.approx(made + brought - taken - lost, abs=1e-11 * turnover)


@pytest.mark.slow
def test_heat_of_a_burning_rack_is_the_enthalpy_of_what_reacted():
    plan = planned_rack("external_heat", heat_W=2000.0, cell_share=0.2)
    plan.around["current_A"] = 0.0  # the enthalpies depend on the state of charge: keep it
    plan.traits["core_delay_s"] = 100.0
    modules, rack = ph.at_rest(plan.around, plan.traits)
    made = burn(modules, rack, plan.traits, plan.drive, plan.around)[0]
    x, soc = modules["cells"], plan.traits["soc"].astype(float)[:, None]
    heat = ph.GRAPHITE_KG * ph.H_SEI * (ph.SEI_0 - x[..., ph.SEI])
    heat += ph.GRAPHITE_KG * ph.H_ANODE * ph.LITHIUM_0 * soc * (1.0 - x[..., ph.ANODE])
    share = 0.3 + 0.7 * soc
    heat += ph.CATHODE_KG * ph.H_CATHODE * share * (x[..., ph.CATHODE] - ph.ALPHA_0)
    heat += ph.ELYTE_KG * ph.H_ELYTE * (1.0 - x[..., ph.ELYTE])
    heat += plan.traits["shorted_J"][:, None] * soc * (1.0 - x[..., ph.CHARGE])
    used = ph.LITHIUM_0 * soc * (1.0 - x[..., ph.ANODE])
    np.testing.assert_allclose(x[..., ph.THICK], ph.THICK_0 + used, rtol=1e-9)
    total = (heat * plan.traits["cells"]).sum()
    assert total > 5e6
    assert made == pytest.approx(total, rel=1e-9)


def test_resting_rack_settles_at_the_room_temperature():
    plan = planned_rack("stuck", n_steps=6000)
    plan.around["current_A"] = 0.0
    plan.around["room_C"] = 23.0
    truth = ph.simulate(plan.drive, plan.around, plan.traits)
    assert np.abs(truth.temp_C[..., -1] - 23.0).max() < 0.01
    assert np.ptp(truth.soc, axis=1).max() == 0.0


def test_a_room_may_stay_warm_until_the_last_sample():
    until_the_last = (1800 - 180 - 0.5) / 6.0  # minutes from the onset, half a sample of 10 s early
    short, forever = (planned_rack("hot_day", lasts_min=m) for m in (until_the_last, 1e4))
    np.testing.assert_array_equal(short.around["room_C"], forever.around["room_C"])


def forced_site(monkeypatch, events, site=0, hours=6.0):
    """Return telemetry and events table of a site that goes through the events, all rows kept."""
    monkeypatch.setattr(simulated, "draw_events", lambda *_: events)
    monkeypatch.setattr(simulated, "until_lost", lambda seen, *_: seen)
    return simulate_site(site, hours, 5)


def forced_events(monkeypatch, cause, n_racks=16, **params):
    """Return the events table of racks that each go through one event of a cause."""
    tables = []
    for site in range(n_racks // 8):
        rng = np.random.default_rng([11, site])
        modules = rng.integers(8, size=8)
        events = [
            forced_event(cause, 360, rng, rack=rack, module=int(module), **params)
            for rack, module in enumerate(modules)
        ]
        _, table = forced_site(monkeypatch, events, site)
        tables.append(table[table[col.EVENT_TYPE] == cause])
    return pd.concat(tables)


@pytest.mark.parametrize("cause", HAZARDS)
@pytest.mark.slow
def test_hazards_reach_their_point_of_no_return(monkeypatch, cause):
    stays = {"opens_C": np.inf} if "opens_C" in CAUSES[cause].ranges else {}
    events = forced_events(monkeypatch, cause, n_racks=24, **stays)
    assert events["Hazard"].mean() >= 0.85
    assert (events.loc[events["Hazard"], "PNR"] > events.loc[events["Hazard"], "Onset"]).all()
    if cause != "fast_short":  # most are over before the label's end, 30 s before the PNR
        assert events.loc[events["Hazard"], "Labelled"].mean() >= 0.9


@pytest.mark.parametrize("cause", LOOK_ALIKES)
def test_look_alikes_stay_harmless_and_unlabelled(monkeypatch, cause):
    events = forced_events(monkeypatch, cause)
    assert len(events) == 16
    assert not events["Hazard"].any()
    assert not events["Labelled"].any()
    assert events["PNR"].isna().all()


def test_burning_short_that_opens_is_no_hazard(monkeypatch):
    event = forced_event("slow_short", 360, np.random.default_rng(0), opens_C=50.0)
    _, events = forced_site(monkeypatch, [event], hours=4.0)
    assert events[col.EVENT_TYPE].tolist() == ["slow_short"]
    assert not events["Hazard"].any()


def test_look_alike_that_reaches_its_point_of_no_return_is_a_hazard(monkeypatch):
    forced = {"final_ohm": 0.03, "opens_C": np.inf}
    event = forced_event("soft_short", 360, np.random.default_rng(0), **forced)
    telemetry, events = forced_site(monkeypatch, [event], hours=4.0)
    soft = events[events[col.EVENT_TYPE] == "soft_short"].iloc[0]
    assert soft["Hazard"] and soft["Labelled"]
    labelled = telemetry[telemetry[col.LABEL] == 1]
    assert set(labelled[col.EVENT_ID]) == {soft[col.EVENT_ID]}


def test_fire_spreads_to_the_neighbour():
    # A hot fire: a full string, and a core that burns at once
    plan = planned_rack("sudden_short", n_steps=2400, final_ohm=0.03, opens_C=np.inf)
    plan.around["current_A"] = 0.0
    plan.traits["soc"] = 0.95
    plan.traits["core_delay_s"], plan.traits["core_tau_s"] = 90.0, 600.0
    plan.drive["case_air_W_K"] = ph.G_CASE_AIR_NO_FAN
    truth = ph.simulate(plan.drive, plan.around, plan.traits)
    spread = np.flatnonzero(np.isfinite(truth.pnr_s))
    assert {2, 3} <= set(spread) or {3, 4} <= set(spread)
    assert np.argmin(truth.pnr_s) == 3
    plan.traits["core_delay_s"] = np.inf
    truth = ph.simulate(plan.drive, plan.around, plan.traits)
    assert np.flatnonzero(np.isfinite(truth.pnr_s)).tolist() == [3]


def test_propagation_is_a_hazard_of_its_own():
    pnr_s = np.full(8, np.inf)
    pnr_s[[3, 4]] = 5000.0, 7000.0
    event = forced_event("slow_short", 100, np.random.default_rng(0))
    truth = ph.RackTruth(*[None] * 5, pnr_s)
    own, spread = fates(0, [event], truth)
    assert own.event is event and own.pnr_s == 5000.0
    assert spread.event.cause == "propagation"
    assert (spread.event.module, spread.event.onset, spread.pnr_s) == (4, 500, 7000.0)


def test_look_alike_is_not_to_blame_for_a_neighbours_fire():
    pnr_s, rng = np.full(8, np.inf), np.random.default_rng(0)
    pnr_s[[3, 4]] = 5000.0, 7000.0
    first = forced_event("soft_short", 100, rng)
    beside = [forced_event(cause, 100, rng, module=4) for cause in ("stuck", "loose_busbar")]
    found = fates(0, [first, *beside], ph.RackTruth(*[None] * 5, pnr_s))
    hazards = [(fate.event.cause, fate.event.module) for fate in found if fate.hazard]
    assert hazards == [("soft_short", 3), ("propagation", 4)]


# --- a fleet --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet():
    return simulate_fleet(8, 6.0, 42)


def test_columns_types_and_order(fleet):
    telemetry, events = fleet
    assert list(telemetry.columns) == [name for name in col.TELEMETRY if name != col.PNR]
    assert isinstance(telemetry.index, pd.RangeIndex)
    assert telemetry[col.TIMESTAMP].dtype == "datetime64[us]"
    assert all(telemetry[name].dtype == np.float32 for name in col.SENSORS)
    assert telemetry[col.LABEL].dtype == np.int8
    for name in (col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE):
        assert isinstance(telemetry[name].dtype, pd.CategoricalDtype)
    order = telemetry[col.KEYS].sort_values(col.KEYS, kind="stable").index
    assert (order == telemetry.index).all()
    assert not telemetry[col.KEYS].duplicated().any()
    assert events[col.EVENT_ID].is_unique
    assert set(telemetry[col.EVENT_ID].dropna()) <= set(events[col.EVENT_ID])


def test_class_balance(fleet):
    telemetry, events = fleet
    look_alikes = events[col.EVENT_TYPE].isin(LOOK_ALIKES)
    assert 36 <= events["Labelled"].sum() <= 45
    assert 60 <= look_alikes.sum() <= 100  # Poisson, 80 expected
    assert 0.0053 <= telemetry[col.LABEL].mean() <= 0.0068
    assert 0.28 <= 1.0 - len(telemetry) / (8 * 64 * 2160) <= 0.37
    assert events.loc[events["Labelled"], col.EVENT_TYPE].nunique() >= 4


def expected_labels(telemetry, event):
    """Return the label of an event's module, worked out from the events table alone."""
    last = event["PNR"] - pd.Timedelta(seconds=30)
    first = max(event["Onset"], event["PNR"] - pd.Timedelta(minutes=20.5))
    return telemetry[col.TIMESTAMP].between(first, last).astype(np.int8)


def test_label_window_is_exact_to_the_sample(fleet):
    telemetry, events = fleet
    labelled = events[events["Labelled"]]
    rows = 0
    for _, event in labelled.iterrows():
        here = telemetry[
            (telemetry[col.SITE] == event[col.SITE]) & (telemetry[col.MODULE] == event[col.MODULE])
        ]
        assert (here[col.LABEL] == expected_labels(here, event)).all()
        assert (here.loc[here[col.LABEL] == 1, col.EVENT_ID] == event[col.EVENT_ID]).all()
        rows += here[col.LABEL].sum()
    assert rows == telemetry[col.LABEL].sum()


def test_lost_racks_end_thirty_seconds_before_their_first_pnr(fleet):
    telemetry, events = fleet
    last = telemetry.groupby([col.SITE, col.RACK], observed=True)[col.TIMESTAMP].max()
    first_pnr = events.groupby([col.SITE, col.RACK])["PNR"].min().dropna()
    kept = first_pnr.index.intersection(last.index)
    end = last.max()
    limit = (first_pnr[kept] - pd.Timedelta(seconds=30)).clip(upper=end)
    assert (first_pnr[kept] < end).sum() > 10
    assert (limit - last[kept] < pd.Timedelta(seconds=10)).all()
    assert (limit >= last[kept]).all()


def test_kept_racks_hold_the_same_rows(monkeypatch):
    short, _ = simulate_fleet(1, 6.0, 3)
    monkeypatch.setattr(simulated, "until_lost", lambda seen, *_: seen)
    whole, events = simulate_fleet(1, 6.0, 3)
    assert len(short) < len(whole) == 64 * 2160
    assert events["Hazard"].any()
    common = whole.merge(short[col.KEYS], on=col.KEYS)
    pd.testing.assert_frame_equal(common[col.SENSORS], short[col.SENSORS])
    pd.testing.assert_series_equal(common[col.LABEL], short[col.LABEL])


def test_event_rows_begin_at_the_onset(fleet):
    telemetry, events = fleet
    first = telemetry.dropna(subset=[col.EVENT_ID]).groupby(col.EVENT_ID, observed=True)
    first = first[col.TIMESTAMP].min()
    onset = events.set_index(col.EVENT_ID)["Onset"]
    assert (first >= onset[first.index]).all()
    assert (first == onset[first.index]).mean() > 0.9


def test_missing_values_are_those_injected(fleet):
    telemetry, _ = fleet
    lost = telemetry[col.EVENT_TYPE] == "dropout"
    share = telemetry.loc[~lost, col.SENSORS].isna().to_numpy().mean()
    assert 0.0004 < share < 0.0006
    assert telemetry.loc[lost, col.SENSORS].isna().all(axis=1).mean() > 0.1
    assert (
        telemetry.drop(columns=[*col.SENSORS, col.EVENT_ID, col.EVENT_TYPE]).notna().all(axis=None)
    )
    assert np.isfinite(telemetry[col.SENSORS].to_numpy()[~telemetry[col.SENSORS].isna()]).all()


@pytest.mark.slow
def test_no_raw_sensor_gives_the_answer(fleet):
    telemetry, _ = fleet
    for name in col.SENSORS:
        values = telemetry[name].fillna(telemetry[name].median())
        assert average_precision_score(telemetry[col.LABEL], values) < 0.8
        assert average_precision_score(telemetry[col.LABEL], -values) < 0.8


def test_same_telemetry_for_any_number_of_threads_and_sites():
    one, events_one = simulate_fleet(3, 1.0, 7)
    two, events_two = simulate_fleet(3, 1.0, 7, n_jobs=2)
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    pd.testing.assert_frame_equal(events_one, events_two)
    alone, _ = simulate_site(1, 1.0, 7)
    beside = one[one[col.SITE] == "Site02"].reset_index(drop=True)
    assert (alone[col.MODULE].astype(str) == beside[col.MODULE].astype(str)).all()
    pd.testing.assert_frame_equal(alone[col.SENSORS], beside[col.SENSORS], check_exact=True)
    assert (alone[col.EVENT_ID].astype(object) == beside[col.EVENT_ID].astype(object))[
        alone[col.EVENT_ID].notna()
    ].all()


def test_readings_come_in_the_steps_of_an_instrument(fleet):
    telemetry, _ = fleet
    for name, decimals in zip(col.SENSORS, [2, 2, 3, 2, 2, 1, 1, 1, 2], strict=True):
        values = telemetry[name].dropna().to_numpy()
        np.testing.assert_array_equal(
            values, values.astype(np.float64).round(decimals).astype("f4")
        )
        assert len(np.unique(values)) > 100


@pytest.mark.slow
def test_same_telemetry_whatever_the_linear_algebra_library_does():
    """Its kernels for old and new processors add up in other orders; the steps would hide most."""
    digest = (
        "import hashlib; from hvs_lib import columns as col\n"
        "from hvs_lib.simulator import rack\n"
        "from hvs_lib.simulator.fleet import simulate_fleet\n"
        "rack.STEPS[:] = 2**20\n"
        "readings = simulate_fleet(1, 3.0, 42)[0][col.SENSORS].to_numpy()\n"
        "print(hashlib.sha256(readings.tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", digest],
            env=os.environ | {"OPENBLAS_CORETYPE": kernels},
            capture_output=True, text=True, check=True,
        ).stdout
        for kernels in ("Prescott", "Haswell")
    }  # fmt: skip
    assert len(found) == 1


def test_other_seed_and_other_site_give_other_telemetry():
    first, _ = simulate_fleet(2, 0.5, 1)
    second, _ = simulate_fleet(1, 0.5, 2)
    values = first[col.TEMP_AVG].to_numpy()
    n = min(len(second), len(values) // 2)
    assert not np.array_equal(values[:n], second[col.TEMP_AVG].to_numpy()[:n])
    sites = [group[col.TEMP_AVG].to_numpy() for _, group in first.groupby(col.SITE, observed=True)]
    assert not np.array_equal(sites[0], sites[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 6.0, 1), "sites must be at least 1, got 0"),
        ((1, 0.0, 1), "hours must be .* got 0.0"),
        ((1, -1.0, 1), "hours must be .* got -1.0"),
        ((1, float("nan"), 1), "hours must be .* got nan"),
        ((1, 6.0, -1), "seed must lie between 0 and .* got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_fleet(*arguments)


# --- batteries ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BATTERIES)
def of_battery(request):
    """Return the name of a battery, and telemetry and events of two sites of it."""
    return request.param, *simulate_fleet(2, 6.0, 42, battery=request.param)


@pytest.mark.slow
def test_default_fleet_is_that_of_before_the_batteries():
    telemetry, events = simulate_site(3, 6.0, 42)
    assert (len(telemetry), telemetry[col.LABEL].sum()) == (122144, 178)
    digest = hashlib.sha256(telemetry[col.SENSORS].to_numpy().tobytes()).hexdigest()
    assert digest == "b66f66936e210aad2093f9d76b5c9f47c88b330de4ffdf8aa6b6f00ca0b7f1c5"
    assert events["PNR"].max().floor("s") == pd.Timestamp("2025-01-01T05:38:38")
    pd.testing.assert_frame_equal(simulate_site(3, 6.0, 42, "module")[0], telemetry)


def test_battery_shapes_what_is_seen(of_battery):
    name, telemetry, _ = of_battery
    battery = BATTERIES[name]
    time = telemetry.groupby([col.SITE, col.MODULE], observed=True)[col.TIMESTAMP]
    assert (time.diff().dropna() == pd.Timedelta(seconds=battery.interval_s)).all()
    siblings = telemetry.groupby([col.SITE, col.RACK], observed=True)[col.MODULE].nunique()
    assert (siblings == battery.modules).all()
    low, high = telemetry[col.VOLTAGE].quantile([0.05, 0.95]) / 14  # of 14 cells in series, all
    assert 3.0 < low < high < 4.3
    temps = telemetry[[col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT]].dropna()
    assert (temps % 1 == 0).all(axis=None) == battery.whole_degrees
    amperes = telemetry[col.CURRENT].abs().quantile(0.99) / battery.parallel
    assert 25.0 < amperes < 70.0  # of a cell of 50 Ah
    rest = telemetry[telemetry[col.EVENT_ID].isna()]
    noise = rest.groupby([col.SITE, col.MODULE], observed=True)[col.VOLTAGE].diff().abs().median()
    assert 0.001 < noise / 14 < 0.006  # the voltmeter fits


def test_sites_lie_within_the_climate_of_their_battery():
    for name, battery in BATTERIES.items():
        room = [draw_room(2, np.random.default_rng(i), battery).mean() for i in range(300)]
        low, high = battery.room_C
        assert low - 6.0 < min(room) < low + 2.0 and high - 2.0 < max(room) < high + 6.0, name
        assert (high - low > 50.0) == (name != "module")


@pytest.mark.parametrize("interval_s", [1.0, 2.0, 10.0, 30.0, 60.0])
def test_labels_are_exact_at_every_interval(monkeypatch, interval_s):
    pack = replace(BATTERIES["pack"], interval_s=interval_s)
    monkeypatch.setitem(BATTERIES, "pack", pack)
    telemetry, events = simulate_site(0, 6.0, 42, "pack")
    assert telemetry[col.TIMESTAMP].max() == pd.Timestamp("2025-01-01T06:00") - pd.Timedelta(
        seconds=interval_s
    )
    labelled = events[events["Labelled"]]
    assert len(labelled) >= 3
    for _, event in labelled.iterrows():
        here = telemetry[telemetry[col.MODULE] == event[col.MODULE]]
        assert (here[col.LABEL] == expected_labels(here, event)).all()
    first = telemetry.dropna(subset=[col.EVENT_ID]).groupby(col.EVENT_ID, observed=True)
    onset = events.set_index(col.EVENT_ID)["Onset"]
    late_s = (first[col.TIMESTAMP].min() - onset).dropna().dt.total_seconds()
    assert late_s.min() >= 0.0 and (late_s < interval_s).mean() > 0.7  # else another covers it


def test_instrument_faults_last_as_long_at_every_interval(monkeypatch):
    lasts = {"which": 0.0, "lasts_min": 60.0}
    for battery in BATTERIES:
        event = forced_event("stuck", 360, np.random.default_rng(0), module=0, **lasts)
        monkeypatch.setattr(simulated, "draw_events", lambda *_, event=event: [event])
        telemetry, _ = simulate_site(0, 3.0, 5, battery)
        stuck = telemetry.loc[telemetry[col.EVENT_TYPE] == "stuck"]
        span = stuck[col.TIMESTAMP].max() - stuck[col.TIMESTAMP].min()
        interval = pd.Timedelta(seconds=BATTERIES[battery].interval_s)
        assert span == pd.Timedelta(hours=1) - interval
        assert stuck[col.TEMP_AVG].std() < 1e-3


@njit
def vent_C(modules, rack, traits, drive, around, m):
    """Return the temperature [degC] of a module's cell f as it vents, NaN if it never does."""
    for k in range(around.size):
        done, step = 0.0, ph.MIN_STEP_S
        while done < ph.DT_S - 1e-9:
            step = min(max(2.0 * step, ph.MIN_STEP_S), ph.DT_S - done)
            step = ph.advance(modules, rack, traits, drive, around, k, k * ph.DT_S + done, step)
            done += step
            if modules[m].vented[0] > 0.0:
                return modules[m].middle[0]
    return np.nan


def heated_cells(battery, n=40):
    """Return where cells under a heater vent [degC], their peak [degC] and rise [K in a second]."""
    found = []
    for seed in range(n):
        heater = {"heat_W": 2000.0, "cell_share": 0.2, "lasts_min": 20.0}
        plan = planned_rack("external_heat", battery=battery, n_steps=420, seed=seed, **heater)
        m = min(3, plan.traits.size - 1)
        modules, rack = ph.at_rest(plan.around, plan.traits)
        vent = vent_C(modules, rack, plan.traits, plan.drive, plan.around, m)
        temp_C = ph.simulate(plan.drive, plan.around, plan.traits, 1.0).temp_C[0, m]
        charged = plan.traits["soc"][m] > 0.4
        found.append((vent, temp_C.max(), np.diff(temp_C).max(), charged))
    vents, peaks, rises, charged = np.array(found).T
    return vents, peaks[charged > 0], rises[charged > 0]


@pytest.mark.parametrize("battery", BATTERIES)
def test_share_of_cells_vents_late(battery):
    vents, _, _ = heated_cells(battery)
    vents = vents[np.isfinite(vents)]
    assert len(vents) > 30
    late = (vents >= 140.0).mean()
    assert (late == 0.0) if battery == "module" else (0.25 < late < 0.6)
    assert vents.min() > 95.0 and np.quantile(vents, 0.9) < 180.0
    assert 105.0 < np.median(vents[vents < 140.0]) < 130.0


@pytest.mark.parametrize("battery", ["cell", "pack"])
def test_runaway_is_as_hot_and_as_fast_as_in_cell_tests(battery):
    """Measured on single cells: peaks of 329 to 1079 degC, 49 to 511 K/s."""
    _, peaks, rises = heated_cells(battery)
    assert ((peaks > 320.0) & (peaks < 1100.0)).mean() > 0.9
    assert ((rises > 40.0) & (rises < 560.0)).mean() > 0.8
    assert rises.max() > 200.0


def test_temperatures_stay_within_the_energy_of_a_cell(of_battery):
    """All chemistry and all charge of a cell would heat it by some 1,100 K."""
    name, *_ = of_battery
    for cause in ("slow_short", "fast_short", "external_heat"):
        plan = planned_rack(cause, battery=name)
        truth = ph.simulate(plan.drive, plan.around, plan.traits)
        assert truth.temp_C.min() > -15.0
        assert truth.temp_C.max() < 1250.0


@pytest.mark.parametrize("battery", ["cell", "pack"])
def test_fast_shorts_leave_at_most_three_minutes(battery):
    seconds = []
    for seed in range(30):
        plan = planned_rack("fast_short", battery=battery, n_steps=400, seed=seed)
        if plan.traits["soc"].min() > 0.5:  # an emptier cell may only get warm
            truth = ph.simulate(plan.drive, plan.around, plan.traits)
            seconds.append(truth.pnr_s.min() - 1800.0)
    assert len(seconds) > 8
    assert 0.0 < min(seconds) < 30.0 and np.median(seconds) < 90.0 and max(seconds) <= 170.0


def test_fast_shorts_come_beside_the_slow_ones(of_battery):
    name, *_ = of_battery
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        found += [event.cause for event in simulated.draw_events(2160, rng, BATTERIES[name])]
    share = found.count("fast_short") / sum(cause in HAZARDS for cause in found)
    assert (share == 0.0) if name in ("module", "block") else (0.1 < share < 0.25)
    assert "slow_short" in found


def test_mix_draws_the_stated_shares_for_each_site_from_the_seed():
    assert MIX.keys() <= BATTERIES.keys()
    drawn = pd.Series([battery_of("mix", site, 42) for site in range(2000)])
    shares = drawn.value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx(MIX, abs=0.04)
    assert drawn.tolist() != [battery_of("mix", site, 43) for site in range(2000)]


def test_mixed_fleet_is_the_same_for_any_number_of_threads():
    one, _ = simulate_fleet(4, 1.0, 7, battery="mix")
    two, _ = simulate_fleet(4, 1.0, 7, battery="mix", n_jobs=2)
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    kinds = [battery_of("mix", site, 7) for site in range(4)]
    assert len(set(kinds)) > 1
    for (_, rows), kind in zip(one.groupby(col.SITE, observed=True), kinds, strict=True):
        interval = rows[col.TIMESTAMP].diff().median() / pd.Timedelta(seconds=1)
        assert interval == BATTERIES[kind].interval_s
        assert rows[col.VOLTAGE].median() / 14 == pytest.approx(3.6, abs=0.5)
    order = one[col.KEYS].sort_values(col.KEYS, kind="stable").index
    assert (order == one.index).all()
    alone, _ = simulate_site(1, 1.0, 7, "mix")
    beside = one[one[col.SITE] == "Site02"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone[col.SENSORS], beside[col.SENSORS], check_exact=True)


@pytest.mark.parametrize("battery", [*BATTERIES, "mix"])
@pytest.mark.slow
def test_saved_fleet_of_any_battery_loads(battery, tmp_path):
    telemetry, _ = simulate_fleet(2, 6.0, 7, battery=battery)
    save_telemetry(telemetry, tmp_path / "fleet.parquet")
    loaded = load_telemetry(tmp_path / "fleet.parquet")
    found = {name for name, *_ in loaded.attrs["findings"]}
    if battery == "module":
        assert found == set()
        pd.testing.assert_frame_equal(loaded[col.SENSORS], telemetry[col.SENSORS])
    else:  # a cell that vents late is taken for burning
        assert col.VOLTAGE not in found
        assert len(loaded) > 0.99 * len(telemetry)


def test_unknown_battery_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"cell, .* mix, got 'modul': did you mean 'mod"):
        simulate_fleet(1, 1.0, 1, battery="modul")
