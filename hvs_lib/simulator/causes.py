"""What happens to a site: hazards and look-alikes, as a table of causes, ranges and effects.

Edit the table ``CAUSES`` to change what a fleet goes through. A cause has a physical effect, which
drives the rack (heat, current, air), or is an instrument fault, which changes the readings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.signal import lfilter

from hvs_lib import columns as col
from hvs_lib.simulator.battery import Battery
from hvs_lib.simulator.physics import DT_S, G_CASE_AIR_NO_FAN

HAZARDS_PER_SITE, LOOK_ALIKES_PER_SITE = 7.0, 10.0  # per six hours
HAZARD_ONSET, LOOK_ALIKE_ONSET = (0.03, 0.66), (0.03, 0.90)  # share of the simulated time
N_RACKS, RACKS_PER_ROW = 8, 4
SENSOR = {name: i for i, name in enumerate(col.SENSORS)}  # index in an array of readings


@dataclass(frozen=True)
class Event:
    """One occurrence of a cause; ``row``, ``rack`` or ``module`` is -1 if it covers several."""

    cause: str
    onset: int  # sample
    row: int = -1
    rack: int = -1
    module: int = -1
    params: dict[str, float] = field(default_factory=dict)
    seed: int = 0  # of the event's noise
    dt_s: float = DT_S  # between samples

    def covers(self, rack: int) -> bool:
        """Return whether the event affects a rack."""
        if self.rack >= 0:
            return rack == self.rack
        return self.row < 0 or rack // RACKS_PER_ROW == self.row

    def rng(self, rack: int = 0) -> np.random.Generator:
        """Return the event's own generator, one per rack."""
        return np.random.default_rng([self.seed, rack])

    def sampled(self, interval_s: float) -> "Event":
        """Return the event in samples of another interval."""
        onset = int(np.ceil(self.onset * self.dt_s / interval_s))
        return replace(self, onset=onset, dt_s=interval_s)

    def rows(self, n_steps: int) -> slice:
        """Return the samples from the onset to the end of the event."""
        minutes = self.params.get("lasts_min", np.inf)
        return slice(self.onset, int(min(n_steps, self.onset + minutes * 60.0 / self.dt_s)))

    def minutes(self, n_steps: int) -> np.ndarray:
        """Return the time since the onset [min], shape (n_steps - onset,)."""
        return np.arange(n_steps - self.onset) * (self.dt_s / 60.0)


@dataclass
class RackPlan:
    """The inputs of a rack's simulation; the effects of events write into them."""

    rack: int
    c_rate: np.ndarray  # (n_steps,) requested by the site
    soc_limit: np.ndarray  # (n_steps,)
    soc_at: tuple[int, float]  # a sample, and the string's state of charge there
    drive: np.ndarray  # DRIVE, (n_modules, n_steps)
    around: np.ndarray  # SURROUNDINGS, (n_steps,)
    traits: np.ndarray  # TRAITS, (n_modules,)


def wander(rng: np.random.Generator, n: int, tau_s: float) -> np.ndarray:
    """Return an Ornstein-Uhlenbeck path of unit variance, shape (n,), sampled every ``DT_S``."""
    keep = float(np.float32(np.exp(-DT_S / tau_s)))  # rounded: processors differ in the last bit
    shocks = rng.standard_normal(n) * np.sqrt(1.0 - keep**2)
    shocks[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -keep], shocks)


# --- physical effects: (event, plan) -> None -----------------------------------------------------


def growing_short(event: Event, plan: RackPlan) -> None:
    """Let a resistance across a cell group fall log-linearly, with noise, then level off."""
    p, m = event.params, event.module
    done = np.minimum(event.minutes(plan.c_rate.size) / p["ramp_min"], 1.0)
    ohm = p["start_ohm"] * np.power(p["final_ohm"] / p["start_ohm"], done)
    noise = wander(event.rng(), done.size, 240.0)
    plan.drive["short_ohm"][m, event.onset :] = ohm * np.exp(0.06 * noise)
    plan.traits["short_opens_C"][m] = p["opens_C"]


def sudden_short(event: Event, plan: RackPlan) -> None:
    """Short a cell group at once, in some cases after a precursor."""
    p, m = event.params, event.module
    strikes = event.onset + int(p["precursor_min"] * 60.0 / DT_S)
    plan.drive["short_ohm"][m, event.onset : strikes] = p["precursor_ohm"]
    plan.drive["short_ohm"][m, strikes:] = p["final_ohm"]
    plan.traits["short_opens_C"][m] = p["opens_C"]


def full_charge(event: Event, plan: RackPlan) -> None:
    """Charge the string from a low state of charge to 97 %; a weak group then exceeds 100 %."""
    p = event.params
    hours = (0.97 - p["from_soc"]) / p["c_rate"]
    until = event.onset + int(hours * 3600.0 / DT_S) + 30
    plan.soc_at = (event.onset, p["from_soc"])
    plan.c_rate[event.onset : until] = p["c_rate"]
    plan.soc_limit[event.onset : until] = 0.97
    if event.module >= 0:
        plan.drive["group_capacity"][event.module, event.onset :] = p["capacity"]


def hot_joint(event: Event, plan: RackPlan) -> None:
    """Let a joint's resistance grow as time to the power 1.5."""
    p, m = event.params, event.module
    done = np.minimum(event.minutes(plan.c_rate.size) / p["ramp_min"], 1.0)
    noise = np.exp(0.15 * wander(event.rng(), done.size, 300.0))
    plan.drive["joint_ohm"][m, event.onset :] = p["joint_ohm"] * np.power(done, 1.5) * noise


def external_heat(event: Event, plan: RackPlan) -> None:
    """Heat a module from outside, ramped up over 5 min; in half of the cases its fan fails too."""
    p, m, rows = event.params, event.module, event.rows(plan.c_rate.size)
    watt = p["heat_W"] * np.minimum(event.minutes(rows.stop) / 5.0, 1.0)
    plan.drive["cell_W"][m, rows] += p["cell_share"] * watt
    plan.drive["case_W"][m, rows] += (1.0 - p["cell_share"]) * watt
    if np.isfinite(p["no_fan_W_K"]):
        plan.drive["case_air_W_K"][m, event.onset :] = p["no_fan_W_K"]


def warm_room(event: Event, plan: RackPlan) -> None:
    """Warm the room towards a higher temperature; it recovers at the same rate."""
    p, t = event.params, event.minutes(plan.c_rate.size)
    rise = p["rise_K"] * -np.expm1(-t / p["tau_min"])
    after = t > p["lasts_min"]
    rise[after] = rise[after][:1] * np.exp((p["lasts_min"] - t[after]) / p["tau_min"])
    plan.around["room_C"][event.onset :] += rise


def set_drive(event: Event, plan: RackPlan) -> None:
    """Set the inputs of one module; the event's parameters are named as in ``DRIVE``."""
    for name in event.params.keys() & plan.drive.dtype.fields:
        plan.drive[name][event.module, event.rows(plan.c_rate.size)] = event.params[name]


def peak_day(event: Event, plan: RackPlan) -> None:
    """Discharge the whole site hard."""
    plan.c_rate[event.rows(plan.c_rate.size)] = -event.params["c_rate"]


def balancing(event: Event, plan: RackPlan) -> None:
    """Warm a module's case with its balancing resistors."""
    rows = event.rows(plan.c_rate.size)
    plan.drive["case_W"][event.module, rows] += event.params["balancing_W"]


def puff(t_min: np.ndarray, decay_min: float, ppm: float) -> np.ndarray:
    """Return a puff of gas in the room air [ppm]: quick rise, slow decay."""
    t = np.maximum(t_min, 0.0)
    return ppm * -np.expm1(-t / 2.0) * np.exp(-t / decay_min)


def solvent(event: Event, plan: RackPlan) -> None:
    """Let solvent vapour from cleaning or paint drift over the racks of a row."""
    p, rng = event.params, event.rng(plan.rack)
    t = event.minutes(plan.c_rate.size) - rng.uniform(0.0, 3.0)
    voc = puff(t, p["lasts_min"] / 3.0, p["voc_ppm"] * rng.uniform(0.3, 1.0))
    plan.around["inlet_ppm"][event.onset :, 0] += voc


def forklift(event: Event, plan: RackPlan) -> None:
    """Let the exhaust of a passing truck drift over the racks of a row."""
    p, rng = event.params, event.rng(plan.rack)
    for i in range(int(p["passes"])):
        arrives = i * p["lasts_min"] / p["passes"] + rng.uniform(0.0, 3.0)
        t = event.minutes(plan.c_rate.size) - arrives
        co = puff(t, rng.uniform(3.0, 8.0), p["co_ppm"] * rng.uniform(0.3, 1.0))
        plan.around["inlet_ppm"][event.onset :] += np.array([0.05, 1.0, 0.08]) * co[:, None]


# --- instrument faults: (event, readings) -> None; readings (n_sensors, n_modules, n_steps) -------


def drift(event: Event, readings: np.ndarray) -> None:
    """Let a gas sensor or the hottest thermistor drift linearly, then keep its offset."""
    p, name = event.params, col.TEMP_MAX
    if "which" in p:
        name = (col.CO, col.H2, col.VOC)[int(p["which"])]
    ramp = np.minimum(event.minutes(readings.shape[2]) / p["lasts_min"], 1.0)
    readings[SENSOR[name], event.module, event.onset :] += (p["drift"] * ramp).astype(np.float32)


def stuck(event: Event, readings: np.ndarray) -> None:
    """Freeze one sensor at its last value."""
    row = readings[int(event.params["which"]), event.module]
    row[event.rows(row.size)] = row[event.onset]


def dropout(event: Event, readings: np.ndarray) -> None:
    """Lose a module's telemetry repeatedly, for 3 to 30 rows at a time."""
    rng, rows = event.rng(), event.rows(readings.shape[2])
    start = rows.start
    while start < rows.stop:
        stop = min(start + int(rng.uniform(3.0, 30.0)), rows.stop)
        readings[:, event.module, start:stop] = np.nan
        start = stop + int(rng.uniform(6.0, 90.0))


def volt_offset(event: Event, readings: np.ndarray) -> None:
    """Shift a voltage reading."""
    rows = event.rows(readings.shape[2])
    readings[SENSOR[col.VOLTAGE], event.module, rows] += np.float32(event.params["offset_V"])


# --- ranges: functions that draw a number ---------------------------------------------------------

Range = Callable[[np.random.Generator], float]


def uniform(low: float, high: float) -> Range:
    """Draw between two bounds."""
    return lambda rng: rng.uniform(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Draw log-uniformly, rounded so that all processors give the same number."""
    return lambda rng: float(np.float32(np.exp(rng.uniform(np.log(low), np.log(high)))))


def signed(low: float, high: float) -> Range:
    """Draw between two bounds, with a random sign."""
    return lambda rng: rng.choice([-1.0, 1.0]) * rng.uniform(low, high)


def perhaps(probability: float, low: float, high: float, otherwise: float) -> Range:
    """Draw between two bounds with the given probability, else return ``otherwise``."""

    def draw(rng: np.random.Generator) -> float:
        value = rng.uniform(low, high)
        return value if rng.random() < probability else otherwise

    return draw


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """A row of the table: how often a cause occurs and where, its effect and its ranges."""

    weight: float
    effect: Callable[[Event, RackPlan], None] | Callable[[Event, np.ndarray], None]
    ranges: dict[str, Range]
    scope: str = "module"  # or "rack", "row", "site"
    kind: str = "look-alike"  # or "hazard"; "instrument": a look-alike in a sensor only


NEVER = np.inf
LASTS = uniform(20.0, 110.0)  # minutes, unless a cause says otherwise
RAMP = uniform(30.0, 95.0)

# fmt: off
CAUSES: dict[str, Cause] = {
    # Hazards: labelled before their point of no return. "propagation" follows from physics.
    "slow_short": Cause(0.50, growing_short, {
        "start_ohm": log_uniform(2.0, 15.0), "final_ohm": log_uniform(0.02, 0.07),
        "ramp_min": RAMP, "opens_C": perhaps(0.15, 45.0, 100.0, NEVER)}, kind="hazard"),
    "sudden_short": Cause(0.08, sudden_short, {
        "final_ohm": log_uniform(0.012, 0.11), "precursor_min": perhaps(0.5, 20.0, 70.0, 0.0),
        "precursor_ohm": log_uniform(1.0, 6.0), "opens_C": perhaps(0.20, 55.0, 130.0, NEVER),
        }, kind="hazard"),
    "overcharge": Cause(0.14, full_charge, {
        "c_rate": uniform(0.6, 1.0), "from_soc": uniform(0.08, 0.20),
        "capacity": uniform(0.38, 0.58)}, kind="hazard"),
    "hot_joint": Cause(0.12, hot_joint, {
        "joint_ohm": log_uniform(0.08, 0.30), "ramp_min": uniform(40.0, 120.0)}, kind="hazard"),
    "external_heat": Cause(0.16, external_heat, {
        "heat_W": log_uniform(800.0, 2600.0), "lasts_min": uniform(20.0, 90.0),
        "cell_share": uniform(0.10, 0.24),
        "no_fan_W_K": perhaps(0.5, G_CASE_AIR_NO_FAN, G_CASE_AIR_NO_FAN, NEVER)}, kind="hazard"),
    # Seconds from first sign to PNR, so some have no labelled row; its weights are in `battery.py`.
    "fast_short": Cause(0.0, sudden_short, {
        "final_ohm": log_uniform(0.001, 0.02), "precursor_min": uniform(0.0, 0.0),
        "precursor_ohm": uniform(1.0, 1.0), "opens_C": uniform(200.0, 250.0)}, kind="hazard"),
    # Look-alikes: never labelled, unless one reaches its point of no return after all.
    "hvac_outage": Cause(1.0, warm_room, {
        "rise_K": uniform(6.0, 18.0), "tau_min": uniform(30.0, 90.0), "lasts_min": LASTS},
        scope="site"),
    "hot_day": Cause(0.7, warm_room, {
        "rise_K": uniform(5.0, 12.0), "tau_min": uniform(90.0, 180.0),
        "lasts_min": uniform(120.0, 240.0)}, scope="site"),
    "peak_day": Cause(0.7, peak_day, {
        "c_rate": uniform(0.9, 1.3), "lasts_min": LASTS}, scope="site"),
    "fan_fail": Cause(1.2, set_drive, {"case_air_W_K": uniform(1.5, 4.0), "lasts_min": LASTS}),
    "soft_short": Cause(2.2, growing_short, {
        "start_ohm": log_uniform(2.0, 15.0), "final_ohm": log_uniform(0.08, 1.2),
        "ramp_min": RAMP, "opens_C": uniform(40.0, 95.0)}),
    "solvent": Cause(1.3, solvent, {
        "voc_ppm": log_uniform(40.0, 900.0), "lasts_min": LASTS}, scope="row"),
    "forklift": Cause(1.3, forklift, {
        "co_ppm": log_uniform(15.0, 250.0), "passes": uniform(1.0, 6.0), "lasts_min": LASTS},
        scope="row"),
    "full_charge": Cause(1.3, full_charge, {
        "c_rate": uniform(0.6, 1.0), "from_soc": uniform(0.08, 0.20), "lasts_min": LASTS},
        scope="rack"),
    "loose_busbar": Cause(1.5, set_drive, {
        "joint_ohm": log_uniform(0.8e-3, 15e-3), "lasts_min": LASTS}),
    "balancing": Cause(0.8, balancing, {"balancing_W": uniform(5.0, 18.0), "lasts_min": LASTS}),
    "elyte_leak": Cause(1.2, set_drive, {
        "leak_mol_s": log_uniform(1e-5, 4e-4), "lasts_min": LASTS}),
    "gas_drift": Cause(1.2, drift, {
        "which": uniform(0.0, 3.0), "drift": signed(20.0, 160.0),  # ppm
        "lasts_min": uniform(60.0, 240.0)}, kind="instrument"),
    "therm_drift": Cause(1.6, drift, {  # K
        "drift": signed(3.0, 40.0), "lasts_min": LASTS}, kind="instrument"),
    "stuck": Cause(1.0, stuck, {
        "which": uniform(0.0, len(col.SENSORS)), "lasts_min": LASTS}, kind="instrument"),
    "dropout": Cause(1.0, dropout, {"lasts_min": LASTS}, kind="instrument"),
    "v_offset": Cause(1.0, volt_offset, {
        "offset_V": signed(0.08, 1.5), "lasts_min": LASTS}, kind="instrument"),
}
# fmt: on
HAZARDS = [name for name, cause in CAUSES.items() if cause.kind == "hazard"]
LOOK_ALIKES = [name for name in CAUSES if name not in HAZARDS]


def make_event(
    cause: str, onset: int, rng: np.random.Generator, *, rack: int, module: int
) -> Event:
    """Draw an event of a cause, covering the module or, by scope, its rack, row or site."""
    params = {name: draw(rng) for name, draw in CAUSES[cause].ranges.items()}
    narrow = ["site", "row", "rack", "module"].index(CAUSES[cause].scope)
    where = [rack // RACKS_PER_ROW, rack, module][:narrow]
    return Event(cause, onset, *where, params=params, seed=int(rng.integers(2**32)))


def draw_events(n_steps: int, rng: np.random.Generator, battery: Battery) -> list[Event]:
    """Draw all hazards and look-alikes of a site, in order of onset.

    A rack has at most one hazard, and two events share a module only if no other is free.
    """
    per_six_hours = n_steps * DT_S / 21600.0
    rng_hazards, rng_look_alikes = rng.spawn(2)
    n_hazards = min(rng_hazards.poisson(HAZARDS_PER_SITE * per_six_hours), N_RACKS)
    n_look_alikes = rng_look_alikes.poisson(LOOK_ALIKES_PER_SITE * per_six_hours)
    hazard_racks = rng_hazards.permutation(N_RACKS)[:n_hazards]
    look_alike_racks = rng_look_alikes.integers(N_RACKS, size=n_look_alikes)
    events: list[Event] = []
    for rng, names, racks, span in (
        (rng_hazards, HAZARDS, hazard_racks, HAZARD_ONSET),
        (rng_look_alikes, LOOK_ALIKES, look_alike_racks, LOOK_ALIKE_ONSET),
    ):
        weights = np.array([battery.weights.get(name, CAUSES[name].weight) for name in names])
        onsets = (rng.uniform(*span, racks.size) * n_steps).astype(int)
        for rack, onset in zip(racks.tolist(), onsets.tolist(), strict=True):
            cause = names[rng.choice(len(names), p=weights / weights.sum())]
            taken = {event.module for event in events if event.rack == rack}
            free = sorted({*range(battery.modules)} - taken) or range(battery.modules)
            events.append(make_event(cause, onset, rng, rack=rack, module=int(rng.choice(free))))
    return sorted(events, key=lambda event: event.onset)
