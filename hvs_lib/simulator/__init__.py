"""The fleet simulator: battery storage sites that heat, vent and burn, as their sensors see it."""

from hvs_lib.simulator.fleet import simulate_fleet

__all__ = ["simulate_fleet"]
