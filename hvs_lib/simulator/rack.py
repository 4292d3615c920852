"""One rack of a site: what drives it, what its sensors report, and what became of its events."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from hvs_lib import columns as col
from hvs_lib.simulator import physics as ph
from hvs_lib.simulator.battery import BATTERIES, Battery
from hvs_lib.simulator.causes import CAUSES, HAZARDS, LOOK_ALIKES, SENSOR, Event, RackPlan, wander
from hvs_lib.simulator.physics import DT_S, RackTruth

BACKGROUND_PPM = np.array([[15.0, 5.0], [3.0, 1.0], [1.5, 0.7]])  # VOC, CO, H2: mean, sd
SOC_WINDOW = (0.08, 0.92)
LATE_VENT_C = (140.0, 165.0)

# Instruments of a module: sd of bias and noise, lowest and highest reading, steps per unit. The
# rounding to steps also hides the last digit of the computation, which differs between processors.
INSTRUMENTS = {
    col.TEMP_AVG: (0.25, 0.20, -40, 200, 100),
    col.TEMP_MAX: (0.25, 0.25, -40, 200, 100),
    col.VOLTAGE: (0.02, 0.05, 0, 1000, 1000),
    col.CURRENT: (0.0, 0.10, -1000, 1000, 100),
    col.SOC: (1.0, 0.10, 0, 100, 100),
    col.CO: (6.0, 5.0, 0, 2000, 10),
    col.H2: (6.0, 5.0, 0, 2000, 10),
    col.VOC: (6.0, 5.0, 0, 2000, 10),
    col.AMBIENT: (0.25, 0.10, -40, 200, 100),
}
_TABLE = np.array([INSTRUMENTS[name] for name in col.SENSORS]).T
BIAS_SD, (NOISE_SD, LOWEST, HIGHEST, STEPS) = _TABLE[0], _TABLE[1:].astype(np.float32)
TEMPS = [SENSOR[name] for name in (col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT)]
MISSING, OUTLIERS, OUTLIER_SD = 0.0005, 0.0001, 7.0
# Each gas reading's response to VOC, CO and H2
CROSS_RESPONSE = {col.CO: (0.015, 1.0, 0.25), col.H2: (0.01, 0.05, 1.0), col.VOC: (1.0, 0.10, 0.30)}

# --- what drives a rack ---------------------------------------------------------------------------


def draw_dispatch(n_steps: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw the current that a site's operator requests: blocks, plus frequency regulation.

    Returns the C-rate, > 0 when charging, shape (n_steps,), and the initial state of charge, 0-1.
    """
    c_rate = np.empty(n_steps)
    start = soc = rng.uniform(0.25, 0.8)
    k = 0
    while k < n_steps:
        block = int(rng.uniform(15.0, 75.0) * 60.0 / DT_S)
        sign = 1.0 if rng.random() > soc else -1.0
        rate = 0.0 if rng.random() < 0.12 else sign * rng.uniform(0.25, 0.70)
        c_rate[k : k + block] = rate
        soc = float(np.clip(soc + rate * block * DT_S / 3600.0, *SOC_WINDOW))
        k += block
    return c_rate + 0.04 * wander(rng, n_steps, 120.0), start


def draw_room(n_steps: int, rng: np.random.Generator, battery: Battery) -> np.ndarray:
    """Draw the room's air temperature [degC], shape (n_steps,)."""
    t = np.arange(n_steps) * DT_S
    day = rng.uniform(1.0, 3.0) * np.sin(2 * np.pi * (t / 86400.0 + rng.random()))
    cycling = 0.4 * np.sin(2 * np.pi * (t / (60.0 * rng.uniform(15.0, 30.0)) + rng.random()))
    return rng.uniform(*battery.room_C) + day + 0.35 * wander(rng, n_steps, 900.0) + cycling


def draw_traits(rng: np.random.Generator, battery: Battery) -> np.ndarray:
    """Draw the traits of a rack's modules: ``TRAITS``, shape (n_modules,)."""
    n, scale, own = battery.modules, battery.thermal_scale, rng.spawn(1)[0]

    def spread(sd: float) -> np.ndarray:
        return np.exp(sd * rng.standard_normal(n))

    traits = np.empty(n, ph.TRAITS)
    traits["resistance"] = spread(0.05)
    traits["capacity"] = 1.0 + 0.012 * rng.standard_normal(n)
    traits["cell_core_W_K"] = ph.G_CELL_CORE * spread(0.18)
    traits["cell_case_W_K"] = ph.G_CELL_CASE * spread(0.20)
    traits["core_case_W_K"] = scale * ph.G_CORE_CASE * spread(0.08)
    traits["separator_C"] = rng.uniform(136.5, 139.5, n)
    traits["vent_Pa"] = 0.70e6 * spread(0.30)
    burns = rng.random(n) < 0.6
    traits["core_delay_s"] = np.where(burns, rng.uniform(90.0, 400.0, n), np.inf)
    traits["core_tau_s"] = 1800.0 * spread(0.35)
    traits["short_opens_C"] = np.inf
    late = own.random(n) < battery.late_vents
    traits["opens_C"] = np.where(late, own.uniform(*LATE_VENT_C, n), -np.inf)
    traits["shorted_s"] = own.uniform(*battery.shorted_s, n)
    charge_J = ph.CELL_AH * 3600.0 * ph.CELL_V
    traits["shorted_J"] = own.uniform(*battery.shorted_share, n) * charge_J
    core = battery.series * battery.parallel - 1
    traits["series"], traits["parallel"] = battery.series, battery.parallel
    traits["cells"] = 1, core
    core_J_K = core * ph.CELL_J_K + ph.CORE_J_K * scale
    traits["heat_J_K"] = ph.CELL_J_K, core_J_K, ph.CASE_J_K * scale
    return traits


@njit(cache=True, nogil=True)
def follow_dispatch(c_rate, soc, high):
    """Return the actual C-rate of a string: zero where it would leave its SOC window."""
    taken = np.empty_like(c_rate)
    for k in range(c_rate.size):
        change = c_rate[k] * DT_S / 3600.0
        outside = soc + change > high[k] if change > 0.0 else soc + change < SOC_WINDOW[0]
        taken[k] = 0.0 if outside else c_rate[k]
        soc += taken[k] * DT_S / 3600.0
    return taken


def string_current(plan: RackPlan, battery: Battery) -> tuple[np.ndarray, float]:
    """Return the string's current [A] and its state of charge at the start.

    If the state of charge is fixed at a later sample, earlier samples are computed backwards.
    """
    at, soc = plan.soc_at
    back = follow_dispatch(-plan.c_rate[:at][::-1], soc, plan.soc_limit[:at][::-1])
    ahead = follow_dispatch(plan.c_rate[at:], soc, plan.soc_limit[at:])
    start = soc + back.sum() * DT_S / 3600.0
    ampere_hours = ph.CELL_AH * battery.parallel
    return ampere_hours * np.concatenate([-back[::-1], ahead]), start


def plan_rack(
    rack: int,
    dispatch: tuple[np.ndarray, float],
    room_C: np.ndarray,
    events: Sequence[Event],
    rng: np.random.Generator,
    battery: Battery,
) -> RackPlan:
    """Draw a rack, apply the events to it and return the inputs of its simulation."""
    n, n_modules = room_C.size, battery.modules
    drive = np.zeros((n_modules, n), ph.DRIVE)
    drive["case_air_W_K"] = ph.G_CASE_AIR * np.exp(0.10 * rng.standard_normal((n_modules, 1)))
    drive["short_ohm"] = np.inf
    drive["group_capacity"] = 1.0
    around = np.empty(n, ph.SURROUNDINGS)
    around["room_C"] = room_C
    for g, (mean, sd) in enumerate(BACKGROUND_PPM):
        around["inlet_ppm"][:, g] = np.maximum(mean + sd * wander(rng, n, 1200.0), 0.0)
    soc = float(np.clip(dispatch[1] + rng.normal(0.0, 0.03), *SOC_WINDOW))
    c_rate, soc_limit = dispatch[0] * rng.normal(1.0, 0.03), np.full(n, SOC_WINDOW[1])
    traits = draw_traits(rng, battery)
    plan = RackPlan(rack, c_rate, soc_limit, (0, soc), drive, around, traits)
    for event in events:
        if CAUSES[event.cause].kind != "instrument":
            CAUSES[event.cause].effect(event, plan)
    for name in ("case_air_W_K", "case_W"):  # events are defined for a module
        drive[name] *= battery.thermal_scale
    around["current_A"], soc = string_current(plan, battery)
    plan.traits["soc"] = soc + 0.012 * rng.standard_normal(n_modules)
    return plan


# --- what its sensors report ----------------------------------------------------------------------


def noiseless_readings(
    truth: RackTruth, current_A: np.ndarray, rng: np.random.Generator, battery: Battery
) -> np.ndarray:
    """Draw a rack's instruments; return their readings without noise, shaped as in `measure`.

    There are fewer thermistors than cells: the failing cell has its own, is next to one, or is
    far from all. Voltages are converted to those of a module.
    """

    def column(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[..., None]

    f, c, s = truth.temp_C
    n, own = battery.modules, battery.thermistors / (battery.series * battery.parallel)
    where = rng.random(n)
    near, beside, far = (rng.uniform(*span, n) for span in [(0.6, 0.9), (0.12, 0.35), (0.03, 0.10)])
    visibility = np.where(where < own, near, np.where(where < own + 0.45, beside, far))
    bias = rng.standard_normal((len(col.SENSORS), n)) * BIAS_SD[:, None]
    bias[SENSOR[col.AMBIENT]] = bias[SENSOR[col.AMBIENT], 0]  # one thermometer in the rack's air
    average = visibility / battery.thermistors * rng.uniform(0.6, 1.2, n)
    hot_spot_K, core_share = rng.uniform(0.3, 1.8, n), rng.uniform(0.1, 0.6, n)

    warm_core = column(core_share) * np.maximum(c - truth.air_C, 0.0)
    readings = {
        col.TEMP_AVG: s + column(average) * (f - s),
        col.TEMP_MAX: s + column(visibility) * (f - s) + column(hot_spot_K) + warm_core,
        col.VOLTAGE: truth.voltage_V * np.float32(BATTERIES["module"].series / battery.series),
        col.CURRENT: current_A,
        col.SOC: 100.0 * truth.soc,
        col.AMBIENT: truth.air_C,
    }
    for name, response in CROSS_RESPONSE.items():
        # Not as a matrix product, whose last digit depends on the processor's BLAS.
        shares = np.float32(response)
        readings[name] = sum(shares[g] * truth.gas_ppm[:, g] for g in range(3))
    out = column(bias) + np.zeros_like(s)
    for i, name in enumerate(col.SENSORS):
        out[i] += readings[name]
    return out


def scatter(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Return the flat positions of a random share of an array's values."""
    return rng.integers(size, size=rng.binomial(size, share))


def measure(
    truth: RackTruth,
    current_A: np.ndarray,
    events: Sequence[Event],
    n_steps: int,
    rng: np.random.Generator,
    battery: Battery,
) -> np.ndarray:
    """Return what the rack's sensors report, including instrument faults among the events.

    Returns
    -------
    ndarray of shape (n_sensors, n_modules, n_steps), float32
        In the order and units of ``col.SENSORS``.
    """
    drives = (np.arange(truth.air_C.size) * battery.interval_s / DT_S).astype(int)  # a row's sample
    noiseless = noiseless_readings(truth, current_A[drives], rng, battery)[..., :n_steps]
    readings = rng.standard_normal(noiseless.shape, np.float32)
    readings[SENSOR[col.AMBIENT]] = readings[SENSOR[col.AMBIENT], 0]
    wild = scatter(rng, readings.size, OUTLIERS)
    readings.reshape(-1)[wild] = OUTLIER_SD * rng.choice([-1.0, 1.0], wild.size)
    readings *= NOISE_SD[:, None, None]
    readings += noiseless
    for event in events:
        if CAUSES[event.cause].kind == "instrument":
            CAUSES[event.cause].effect(event.sampled(battery.interval_s), readings)
    np.clip(readings, LOWEST[:, None, None], HIGHEST[:, None, None], out=readings)
    per_unit = STEPS[:, None, None].copy()
    if battery.whole_degrees:
        per_unit[TEMPS] = 1.0
    readings *= per_unit
    np.rint(readings, out=readings)
    readings /= per_unit
    readings.reshape(-1)[scatter(rng, readings.size, MISSING)] = np.nan
    return readings


# --- what became of its events --------------------------------------------------------------------


class Fate(NamedTuple):
    """What became of an event."""

    event: Event
    pnr_s: float = np.inf  # point of no return; inf = none

    @property
    def hazard(self) -> bool:
        """Whether the point of no return was reached, whatever the cause."""
        return bool(np.isfinite(self.pnr_s))

    @property
    def rank(self) -> tuple[bool, ...]:
        """Precedence of overlapping events in a row: hazards first, then the most local."""
        cause = self.event.cause
        return self.hazard, cause not in LOOK_ALIKES, self.event.module >= 0, self.event.rack >= 0


def fates(rack: int, events: Sequence[Event], truth: RackTruth) -> list[Fate]:
    """Return what became of every single-module event in a rack, including propagation.

    A module's PNR is attributed to its hazard; else, in the first module to burn, to the latest
    event before it; else to propagation: a look-alike is not to blame for a neighbour's fire.
    """
    result, first_s = [], truth.pnr_s.min()
    for m, pnr_s in enumerate(truth.pnr_s):
        own = [event for event in events if event.module == m]
        begun = [event for event in own if event.onset * DT_S < pnr_s]
        begun = [event for event in begun if event.cause in HAZARDS or pnr_s == first_s]
        blamed = max(begun, key=lambda e: (e.cause in HAZARDS, e.onset), default=None)
        if blamed is None and np.isfinite(pnr_s):
            blamed = Event("propagation", int(np.ceil(first_s / DT_S)), rack=rack, module=m)
            own.append(blamed)
        result += [Fate(e, pnr_s) if e is blamed else Fate(e) for e in own]
    return result
