"""What a row of telemetry is of: a single cell under test, a module, a block, or a whole pack.

Edit the table ``BATTERIES``. The events of `causes.py` are those of a module; heat into the case,
cooling and currents then scale with the battery. Voltages are those of 14 cells in series, as a map
of own columns makes them.
"""

from dataclasses import dataclass, field

import numpy as np

from hvs_lib.project import did_you_mean


@dataclass(frozen=True, eq=False)
class Battery:
    """Parameters of a battery; the defaults are those of a storage module.

    Runaway rates and peaks stay hidden: the rows from 30 s before the point of no return are
    dropped, and thermometers end at 200 degC. All others change what is seen.
    """

    series: int = 14  # groups of cells
    parallel: int = 2  # cells in a group, 50 Ah each
    modules: int = 8  # in a rack
    thermistors: int = 8
    thermal_scale: float = 1.0  # mass and cooling of the case, relative to a module's
    room_C: tuple[float, float] = (19.0, 25.0)  # range of the sites' set-points
    interval_s: float = 10.0  # between rows, 1 to 60; divides 10 or is a multiple of it
    whole_degrees: bool = False
    weights: dict[str, float] = field(default_factory=dict)  # of causes, where not `CAUSES`'s
    late_vents: float = 0.0  # share of modules whose cells open at 140-165 degC, not by pressure
    shorted_s: tuple[float, float] = (15.0, 15.0)  # tau of the stored charge's release
    shorted_share: tuple[float, float] = (0.60, 0.60)  # of the stored charge: becomes heat


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
MIX = {"cell": 0.2, "module": 0.5, "pack": 0.3}  # shares of the sites of battery="mix"


def check_battery(name: str) -> None:
    """Refuse an unknown battery with a ValueError that names the nearest."""
    if name not in (known := [*BATTERIES, "mix"]):
        cure = did_you_mean(name, known, "choose one.")
        raise ValueError(f"battery must be one of {', '.join(known)}, got {name!r}: {cure}")


def battery_of(name: str, site: int, seed: int) -> str:
    """Return the name of a site's battery, which "mix" draws for each site from the seed."""
    if name != "mix":
        return name
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(site,)).spawn(5)[4])
    return str(rng.choice(list(MIX), p=list(MIX.values())))
