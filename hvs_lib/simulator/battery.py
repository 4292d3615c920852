"""The battery behind a row of telemetry: a single cell under test, a module, a block or a pack.

Edit the table ``BATTERIES``. The events of `causes.py` are defined for a module; heat into the
case, cooling and currents then scale with the battery. Voltages are converted to 14 cells in
series, as the column map of a user's own telemetry does.
"""

from dataclasses import dataclass, field

import numpy as np

from hvs_lib.project import did_you_mean


@dataclass(frozen=True, eq=False)
class Battery:
    """Parameters of a battery; the defaults are those of a storage module.

    Runaway rates and peaks do not show in the telemetry: rows from 30 s before the point of no
    return on are dropped, and thermometers saturate at 200 degC. All other parameters affect it.
    """

    series: int = 14  # cell groups in series
    parallel: int = 2  # cells per group, 50 Ah each
    modules: int = 8  # per rack
    thermistors: int = 8
    thermal_scale: float = 1.0  # mass and cooling of the case, relative to a module's
    room_C: tuple[float, float] = (19.0, 25.0)  # range of the sites' set-points
    interval_s: float = 10.0  # between rows, 1 to 60; a divisor or a multiple of 10
    whole_degrees: bool = False
    weights: dict[str, float] = field(default_factory=dict)  # of causes, overriding `CAUSES`
    late_vents: float = 0.0  # share of modules whose cells vent at 140-165 degC, not by pressure
    shorted_s: tuple[float, float] = (15.0, 15.0)  # time constant of the stored charge's release
    shorted_share: tuple[float, float] = (0.60, 0.60)  # share of the stored charge released as heat


WIDE = {"room_C": (-10.0, 45.0), "late_vents": 0.4}
HOT = {"shorted_s": (0.4, 4.0), "shorted_share": (0.3, 1.0)}
BATTERIES = {
    "cell": Battery(
        1, 1, 1, 4, 0.06, interval_s=1.0, weights={"fast_short": 0.2, "hot_joint": 0.0},
        **WIDE, **HOT,
    ),
    "module": Battery(),
    "block": Battery(24, 6, 4, 8, 144 / 28, interval_s=5.0, **WIDE, **HOT),
    "pack": Battery(
        96, 2, 2, 24, 192 / 28, interval_s=30.0, whole_degrees=True,
        weights={"fast_short": 0.2}, **WIDE, **HOT,
    ),
}  # fmt: skip
MIX = {"cell": 0.2, "module": 0.5, "pack": 0.3}  # share of sites if battery="mix"


def check_fleet(sites: int, seed: int, battery: str = "mix") -> None:
    """Raise a ValueError for what cannot be simulated; models take the same seeds."""
    if sites < 1:
        raise ValueError(f"sites must be at least 1, got {sites}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and {2**32 - 1}, got {seed}.")
    if battery not in (known := [*BATTERIES, "mix"]):
        cure = did_you_mean(battery, known, "choose one.")
        raise ValueError(f"battery must be one of {', '.join(known)}, got {battery!r}: {cure}")


def battery_of(name: str, site: int, seed: int) -> str:
    """Return the name of a site's battery; "mix" draws one for each site from the seed."""
    if name != "mix":
        return name
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(site,)).spawn(5)[4])
    return str(rng.choice(list(MIX), p=list(MIX.values())))
