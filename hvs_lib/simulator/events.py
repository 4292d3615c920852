"""What happens to a site: hazards and look-alikes, as a table of causes, ranges and effects.

Edit the table ``CAUSES`` to change what a fleet goes through. A cause has physical effects, which
drive the rack (heat, current, air), or instrument faults, which change what a sensor reports.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import lfilter

from hvs_lib.simulator.physics import DT_S, G_CASE_AIR_NO_FAN, N_MODULES

HAZARDS_PER_SITE, LOOK_ALIKES_PER_SITE = 7.0, 10.0  # in six hours
HAZARD_ONSET, LOOK_ALIKE_ONSET = (0.03, 0.66), (0.03, 0.90)  # share of the simulated time
N_RACKS, RACKS_PER_ROW = 8, 4


@dataclass(frozen=True)
class Uniform:
    """A uniform draw between two bounds."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A draw uniform in the logarithm."""

    def draw(self, rng: np.random.Generator) -> float:
        exponent = rng.uniform(np.log(self.low), np.log(self.high))
        return float(np.float32(np.exp(exponent)))  # without the processor's last bit


@dataclass(frozen=True)
class Signed(Uniform):
    """A uniform draw with a random sign."""

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.choice([-1.0, 1.0]) * rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Chance:
    """A draw from ``drawn`` with a probability, else ``otherwise``."""

    probability: float
    drawn: Uniform
    otherwise: float

    def draw(self, rng: np.random.Generator) -> float:
        value = self.drawn.draw(rng)
        return value if rng.random() < self.probability else self.otherwise


Range = Uniform | Chance
LASTS = Uniform(20.0, 110.0)  # minutes, unless a cause says otherwise
NEVER = np.inf


@dataclass(frozen=True)
class Event:
    """One cause at work.

    ``module`` and ``rack`` are -1 where the event covers more than one of them; ``row`` likewise.
    ``onset`` counts samples. ``seed`` makes the noise of the event.
    """

    cause: str
    onset: int
    row: int = -1
    rack: int = -1
    module: int = -1
    params: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def covers(self, rack: int) -> bool:
        """Tell whether the event touches a rack."""
        if self.rack >= 0:
            return rack == self.rack
        return self.row < 0 or rack // RACKS_PER_ROW == self.row

    def rng(self, rack: int = 0) -> np.random.Generator:
        """Return the event's own generator, one per rack."""
        return np.random.default_rng([self.seed, rack])

    def until(self, n_steps: int) -> int:
        """Return the sample at which the event is over."""
        minutes = self.params.get("lasts_min", NEVER)
        return int(min(n_steps, self.onset + minutes * 60.0 / DT_S))


@dataclass
class RackPlan:
    """What will drive a rack; the effects of events write into it.

    ``c_rate`` and ``soc_limit`` (n_steps,) are what the site asks of the string; ``soc_at`` fixes
    its state of charge at one sample.
    """

    rack: int
    c_rate: np.ndarray
    soc_limit: np.ndarray
    soc_at: tuple[int, float]
    drive: np.ndarray  # DRIVE, (n_modules, n_steps)
    around: np.ndarray  # SURROUNDINGS, (n_steps,)
    traits: np.ndarray  # TRAITS, (n_modules,)


def minutes_since(event: Event, n_steps: int) -> np.ndarray:
    """Return the time since the onset at every later sample [min], shape (n_steps - onset,)."""
    return np.arange(n_steps - event.onset) * (DT_S / 60.0)


def wander(rng: np.random.Generator, n: int, tau_s: float) -> np.ndarray:
    """Return an Ornstein-Uhlenbeck path of unit variance, shape (n,), sampled every ``DT_S``."""
    keep = float(np.float32(np.exp(-DT_S / tau_s)))  # without the processor's last bit
    shocks = rng.standard_normal(n) * np.sqrt(1.0 - keep**2)
    if n:
        shocks[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -keep], shocks)


# --- physical effects: (event, plan) -> None -----------------------------------------------------


def growing_short(event: Event, plan: RackPlan) -> None:
    """Let a resistance across a cell group fall log-linearly, with noise, then stay."""
    p, m = event.params, event.module
    done = np.minimum(minutes_since(event, plan.c_rate.size) / p["ramp_min"], 1.0)
    ohm = p["start_ohm"] * np.power(p["final_ohm"] / p["start_ohm"], done)
    noise = wander(event.rng(), done.size, 240.0)
    plan.drive["short_ohm"][m, event.onset :] = ohm * np.exp(0.06 * noise)
    plan.traits["short_opens_C"][m] = p["opens_C"]


def sudden_short(event: Event, plan: RackPlan) -> None:
    """Short a cell group at once, after a precursor for some of them."""
    p, m = event.params, event.module
    strikes = event.onset + int(p["precursor_min"] * 60.0 / DT_S)
    plan.drive["short_ohm"][m, event.onset : strikes] = p["precursor_ohm"]
    plan.drive["short_ohm"][m, strikes:] = p["final_ohm"]
    plan.traits["short_opens_C"][m] = p["opens_C"]


def full_charge(event: Event, plan: RackPlan) -> None:
    """Charge the string from a low state of charge to 97 %."""
    p = event.params
    hours = (0.97 - p["from_soc"]) / p["c_rate"]
    until = event.onset + int(hours * 3600.0 / DT_S) + 30
    plan.soc_at = (event.onset, p["from_soc"])
    plan.c_rate[event.onset : until] = p["c_rate"]
    plan.soc_limit[event.onset : until] = 0.97
    if event.module >= 0:
        plan.drive["group_capacity"][event.module, event.onset :] = p["capacity"]


def hot_joint(event: Event, plan: RackPlan) -> None:
    """Let a joint's resistance grow with the power 1.5 of time."""
    p, m = event.params, event.module
    done = np.minimum(minutes_since(event, plan.c_rate.size) / p["ramp_min"], 1.0)
    noise = np.exp(0.15 * wander(event.rng(), done.size, 300.0))
    plan.drive["joint_ohm"][m, event.onset :] = p["joint_ohm"] * np.power(done, 1.5) * noise


def external_heat(event: Event, plan: RackPlan) -> None:
    """Heat a module from outside after a 5 min ramp; half of them lose the fan, too."""
    p, m = event.params, event.module
    end = event.until(plan.c_rate.size)
    watt = p["heat_W"] * np.minimum(minutes_since(event, end) / 5.0, 1.0)
    plan.drive["cell_W"][m, event.onset : end] += p["cell_share"] * watt
    plan.drive["case_W"][m, event.onset : end] += (1.0 - p["cell_share"]) * watt
    if np.isfinite(p["no_fan_W_K"]):
        plan.drive["case_air_W_K"][m, event.onset :] = p["no_fan_W_K"]


def warm_room(event: Event, plan: RackPlan) -> None:
    """Warm the room towards a higher temperature; it recovers alike."""
    p, end = event.params, event.until(plan.c_rate.size)
    t = minutes_since(event, plan.c_rate.size)
    rise = p["rise_K"] * -np.expm1(-t / p["tau_min"])
    after = t > p["lasts_min"]
    if end < plan.c_rate.size:
        rise[after] = rise[after][0] * np.exp((p["lasts_min"] - t[after]) / p["tau_min"])
    plan.around["room_C"][event.onset :] += rise


def fan_fail(event: Event, plan: RackPlan) -> None:
    """Slow the cooling of one module."""
    end = event.until(plan.c_rate.size)
    plan.drive["case_air_W_K"][event.module, event.onset : end] = event.params["case_air_W_K"]


def peak_day(event: Event, plan: RackPlan) -> None:
    """Discharge the whole site hard."""
    plan.c_rate[event.onset : event.until(plan.c_rate.size)] = -event.params["c_rate"]


def puff(t_min: np.ndarray, decay_min: float, ppm: float) -> np.ndarray:
    """Return a puff of gas in the room air [ppm]: quick rise, slow decay."""
    t = np.maximum(t_min, 0.0)
    return ppm * -np.expm1(-t / 2.0) * np.exp(-t / decay_min)


def solvent(event: Event, plan: RackPlan) -> None:
    """Let solvent vapour of cleaning or paint drift over the racks of a row."""
    p, rng = event.params, event.rng(plan.rack)
    t = minutes_since(event, plan.c_rate.size) - rng.uniform(0.0, 3.0)
    voc = puff(t, p["lasts_min"] / 3.0, p["voc_ppm"] * rng.uniform(0.3, 1.0))
    plan.around["inlet_ppm"][event.onset :, 0] += voc


def forklift(event: Event, plan: RackPlan) -> None:
    """Let exhaust of a passing truck drift over the racks of a row."""
    p, rng = event.params, event.rng(plan.rack)
    for i in range(int(p["passes"])):
        arrives = i * p["lasts_min"] / p["passes"] + rng.uniform(0.0, 3.0)
        t = minutes_since(event, plan.c_rate.size) - arrives
        co = puff(t, rng.uniform(3.0, 8.0), p["co_ppm"] * rng.uniform(0.3, 1.0))
        plan.around["inlet_ppm"][event.onset :] += np.array([0.05, 1.0, 0.08]) * co[:, None]


def loose_busbar(event: Event, plan: RackPlan) -> None:
    """Add a small constant resistance in series with a module."""
    end = event.until(plan.c_rate.size)
    plan.drive["joint_ohm"][event.module, event.onset : end] = event.params["joint_ohm"]


def balancing(event: Event, plan: RackPlan) -> None:
    """Warm a module's case with its balancing resistors."""
    end = event.until(plan.c_rate.size)
    plan.drive["case_W"][event.module, event.onset : end] += event.params["balancing_W"]


def elyte_leak(event: Event, plan: RackPlan) -> None:
    """Let electrolyte vapour out of a cell that stays cold."""
    end = event.until(plan.c_rate.size)
    plan.drive["leak_mol_s"][event.module, event.onset : end] = event.params["leak_mol_s"]


# --- instrument faults: (event, readings) -> None; readings (n_sensors, n_modules, n_steps) -------

AVG, MAX, VOLT, AMP, SOC, CO, H2, VOC, AMBIENT = range(9)  # in the order of col.SENSORS


def drift(event: Event, readings: np.ndarray, sensor: int, amount: float) -> None:
    """Let one sensor run away linearly, then stay off."""
    t = minutes_since(event, readings.shape[2])
    ramp = np.minimum(t / event.params["lasts_min"], 1.0)
    readings[sensor, event.module, event.onset :] += (amount * ramp).astype(np.float32)


def gas_drift(event: Event, readings: np.ndarray) -> None:
    """Let one gas sensor drift."""
    drift(event, readings, [CO, H2, VOC][int(event.params["which"])], event.params["drift_ppm"])


def therm_drift(event: Event, readings: np.ndarray) -> None:
    """Let the hottest thermistor drift."""
    drift(event, readings, MAX, event.params["drift_K"])


def stuck(event: Event, readings: np.ndarray) -> None:
    """Freeze one sensor at its last value."""
    sensor, end = int(event.params["which"]), event.until(readings.shape[2])
    row = readings[sensor, event.module]
    row[event.onset : end] = row[event.onset]


def dropout(event: Event, readings: np.ndarray) -> None:
    """Lose a module's telemetry again and again for some minutes."""
    rng, end = event.rng(), event.until(readings.shape[2])
    start = event.onset
    while start < end:
        stop = min(start + int(rng.uniform(3.0, 30.0)), end)
        readings[:, event.module, start:stop] = np.nan
        start = stop + int(rng.uniform(6.0, 90.0))


def volt_offset(event: Event, readings: np.ndarray) -> None:
    """Shift a voltage reading."""
    end = event.until(readings.shape[2])
    readings[VOLT, event.module, event.onset : end] += np.float32(event.params["offset_V"])


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """A row of the table: how often, where, with which ranges and effects."""

    weight: float
    ranges: dict[str, Range]
    physical: Callable[[Event, RackPlan], None] | None = None
    instrument: Callable[[Event, np.ndarray], None] | None = None
    scope: str = "module"  # or "rack", "row", "site"
    hazard: bool = False


CAUSES: dict[str, Cause] = {
    # Hazards: labelled before their point of no return. "propagation" follows by physics.
    "slow_short": Cause(
        0.50,
        {
            "start_ohm": LogUniform(2.0, 15.0),
            "final_ohm": LogUniform(0.02, 0.07),
            "ramp_min": Uniform(30.0, 95.0),
            "opens_C": Chance(0.15, Uniform(45.0, 100.0), NEVER),
        },
        growing_short,
        hazard=True,
    ),
    "sudden_short": Cause(
        0.08,
        {
            "final_ohm": LogUniform(0.012, 0.11),
            "precursor_min": Chance(0.5, Uniform(20.0, 70.0), 0.0),
            "precursor_ohm": LogUniform(1.0, 6.0),
            "opens_C": Chance(0.20, Uniform(55.0, 130.0), NEVER),
        },
        sudden_short,
        hazard=True,
    ),
    "overcharge": Cause(
        0.14,
        {
            "c_rate": Uniform(0.6, 1.0),
            "from_soc": Uniform(0.08, 0.20),
            "capacity": Uniform(0.38, 0.58),
        },
        full_charge,
        hazard=True,
    ),
    "hot_joint": Cause(
        0.12,
        {"joint_ohm": LogUniform(0.08, 0.30), "ramp_min": Uniform(40.0, 120.0)},
        hot_joint,
        hazard=True,
    ),
    "external_heat": Cause(
        0.16,
        {
            "heat_W": LogUniform(800.0, 2600.0),
            "lasts_min": Uniform(20.0, 90.0),
            "cell_share": Uniform(0.10, 0.24),
            "no_fan_W_K": Chance(0.5, Uniform(G_CASE_AIR_NO_FAN, G_CASE_AIR_NO_FAN), NEVER),
        },
        external_heat,
        hazard=True,
    ),
    # Look-alikes: never labelled, unless one reaches its point of no return after all.
    "hvac_outage": Cause(
        1.0,
        {"rise_K": Uniform(6.0, 18.0), "tau_min": Uniform(30.0, 90.0), "lasts_min": LASTS},
        warm_room,
        scope="site",
    ),
    "hot_day": Cause(
        0.7,
        {
            "rise_K": Uniform(5.0, 12.0),
            "tau_min": Uniform(90.0, 180.0),
            "lasts_min": Uniform(120.0, 240.0),
        },
        warm_room,
        scope="site",
    ),
    "peak_day": Cause(
        0.7, {"c_rate": Uniform(0.9, 1.3), "lasts_min": LASTS}, peak_day, scope="site"
    ),
    "fan_fail": Cause(1.2, {"case_air_W_K": Uniform(1.5, 4.0), "lasts_min": LASTS}, fan_fail),
    "soft_short": Cause(
        2.2,
        {
            "start_ohm": LogUniform(2.0, 15.0),
            "final_ohm": LogUniform(0.08, 1.2),
            "ramp_min": Uniform(30.0, 95.0),
            "opens_C": Uniform(40.0, 95.0),
        },
        growing_short,
    ),
    "solvent": Cause(
        1.3, {"voc_ppm": LogUniform(40.0, 900.0), "lasts_min": LASTS}, solvent, scope="row"
    ),
    "forklift": Cause(
        1.3,
        {"co_ppm": LogUniform(15.0, 250.0), "passes": Uniform(1.0, 6.0), "lasts_min": LASTS},
        forklift,
        scope="row",
    ),
    "full_charge": Cause(
        1.3,
        {"c_rate": Uniform(0.6, 1.0), "from_soc": Uniform(0.08, 0.20), "lasts_min": LASTS},
        full_charge,
        scope="rack",
    ),
    "loose_busbar": Cause(
        1.5, {"joint_ohm": LogUniform(0.8e-3, 15e-3), "lasts_min": LASTS}, loose_busbar
    ),
    "balancing": Cause(0.8, {"balancing_W": Uniform(5.0, 18.0), "lasts_min": LASTS}, balancing),
    "elyte_leak": Cause(
        1.2, {"leak_mol_s": LogUniform(1e-5, 4e-4), "lasts_min": LASTS}, elyte_leak
    ),
    "gas_drift": Cause(
        1.2,
        {
            "which": Uniform(0.0, 3.0),
            "drift_ppm": Signed(20.0, 160.0),
            "lasts_min": Uniform(60.0, 240.0),
        },
        instrument=gas_drift,
    ),
    "therm_drift": Cause(
        1.6, {"drift_K": Signed(3.0, 40.0), "lasts_min": LASTS}, instrument=therm_drift
    ),
    "stuck": Cause(1.0, {"which": Uniform(0.0, 9.0), "lasts_min": LASTS}, instrument=stuck),
    "dropout": Cause(1.0, {"lasts_min": LASTS}, instrument=dropout),
    "v_offset": Cause(
        1.0, {"offset_V": Signed(0.08, 1.5), "lasts_min": LASTS}, instrument=volt_offset
    ),
}
HAZARDS = [name for name, cause in CAUSES.items() if cause.hazard]
LOOK_ALIKES = [name for name, cause in CAUSES.items() if not cause.hazard]


def make_event(
    cause: str,
    onset: int,
    rng: np.random.Generator,
    *,
    rack: int = 0,
    module: int = 0,
    **params: float,
) -> Event:
    """Draw the parameters of one event of a given cause.

    Parameters
    ----------
    cause : str
        A key of ``CAUSES``.
    onset : int
        Sample at which it begins.
    rng : numpy.random.Generator
    rack, module : int
        Where; ignored as far as the cause covers a whole rack, row or site.
    **params : float
        Values instead of a draw from the table's ranges.

    Returns
    -------
    Event
    """
    if cause not in CAUSES:
        raise ValueError(f"cause must be one of {sorted(CAUSES)}, got {cause!r}.")
    table = CAUSES[cause]
    unknown = set(params) - set(table.ranges)
    if unknown:
        raise ValueError(
            f"{cause} has no parameter {sorted(unknown)}: it takes {sorted(table.ranges)}."
        )
    drawn = {name: span.draw(rng) for name, span in table.ranges.items()}
    narrow = ["site", "row", "rack", "module"].index(table.scope)
    return Event(
        cause,
        onset,
        row=rack // RACKS_PER_ROW if narrow >= 1 else -1,
        rack=rack if narrow >= 2 else -1,
        module=module if narrow >= 3 else -1,
        params=drawn | params,
        seed=int(rng.integers(2**32)),
    )


def draw_events(n_steps: int, rng: np.random.Generator) -> list[Event]:
    """Draw all hazards and look-alikes of a site, in order of their onset.

    At most one hazard strikes a rack, and two events share a module only if none is free.
    """
    per_six_hours = n_steps * DT_S / 21600.0
    rng_hazards, rng_look_alikes = rng.spawn(2)
    n_hazards = min(rng_hazards.poisson(HAZARDS_PER_SITE * per_six_hours), N_RACKS)
    n_look_alikes = rng_look_alikes.poisson(LOOK_ALIKES_PER_SITE * per_six_hours)
    racks = rng_hazards.permutation(N_RACKS)[:n_hazards]
    onsets = rng_hazards.uniform(*HAZARD_ONSET, n_hazards) * n_steps
    events = _place(HAZARDS, racks, onsets, [], rng_hazards)
    racks = rng_look_alikes.integers(N_RACKS, size=n_look_alikes)
    onsets = rng_look_alikes.uniform(*LOOK_ALIKE_ONSET, n_look_alikes) * n_steps
    events += _place(LOOK_ALIKES, racks, onsets, events, rng_look_alikes)
    return sorted(events, key=lambda event: event.onset)


def _place(names, racks, onsets, others, rng) -> list[Event]:
    """Draw causes and parameters, and modules that no other event occupies."""
    weights = np.array([CAUSES[name].weight for name in names])
    taken = {(event.rack, event.module) for event in others}
    events = []
    for rack, onset in zip(racks.tolist(), onsets.astype(int).tolist(), strict=True):
        cause = names[rng.choice(len(names), p=weights / weights.sum())]
        free = [m for m in range(N_MODULES) if (rack, m) not in taken] or range(N_MODULES)
        event = make_event(cause, onset, rng, rack=rack, module=int(rng.choice(free)))
        taken.add((event.rack, event.module))
        events.append(event)
    return events
