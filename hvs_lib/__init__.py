"""Early warning of thermal runaway in high-voltage battery storage: the workbook's library."""

from importlib.metadata import version

__version__ = version("hvs-workbook")
