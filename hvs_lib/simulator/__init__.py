"""The fleet simulator: battery storage sites that heat, vent and burn, as their sensors see it."""
