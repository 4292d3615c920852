"""What a refusal says, and what is known of a file before it is opened."""

import hashlib
from pathlib import Path

from hvs_lib.project import HvsError

SUFFIXES = (".csv", ".csv.gz", ".parquet")


class DataError(HvsError, ValueError):
    """Telemetry that cannot be used, with every reason at once.

    Parameters
    ----------
    title : str
        What cannot be done, with the name of the file where there is one.
    problems : list of str
        One sentence per problem: the rule, the value found, the cure.
    """

    def __init__(self, title: str, problems: list[str]):
        super().__init__(title, problems)
        self.title = title
        self.problems = list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.title}: {self.problems[0]}"
        lines = [f"  {number}. {text}" for number, text in enumerate(self.problems, start=1)]
        return "\n".join([f"{self.title}, {len(lines)} problems:", *lines])


def refusal(path: Path, *problems: str) -> DataError:
    """Return the error of a file that cannot be loaded."""
    return DataError(f"{path} cannot be used", list(problems))


def count_rows(rows: int) -> str:
    """Return "1 row", "2 rows"."""
    return f"{rows:,} row{'s' if rows > 1 else ''}"


def unknown_format(path: Path) -> str:
    """Say that the suffix is none of SUFFIXES."""
    return (
        f"The format must be one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r};"
        " convert the file, or rename it if it is one of these."
    )


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a whole file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
