"""Telemetry at an address that fsspec knows, such as ``s3://bucket/folder``."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hvs_lib.project import is_address
from hvs_lib.telemetry.files import DataError, refusal
from hvs_lib.telemetry.folders import is_hidden, sha256_of_files

_WITHOUT_VERSION = {"name", "size", "type", "url", "mimetype", "partial"}  # as some web servers


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Yield a local path to telemetry; an address is copied there temporarily.

    A DataError raised meanwhile names the address instead of the copy.
    """
    if not is_address(path):
        yield Path(path)
        return
    address = str(path).rstrip("/")
    filesystem, root, entries = _listed(str(path))
    if type(filesystem).__name__ == "LocalFileSystem":  # file://
        yield Path(root)
        return
    with TemporaryDirectory(prefix="hvs-files-") as folder:
        copy = Path(folder, Path(root).name)
        if "" not in entries:
            copy.mkdir(exist_ok=True)
        files = {}
        for name, each in entries.items():
            if each["type"] == "directory":
                (copy / name).mkdir()  # to be refused, like a folder among local files
            else:
                files[each["name"]] = str(copy / name)
        with _refused_if_it_fails(address):
            filesystem.get([*files], [*files.values()])
        try:
            yield copy
        except DataError as error:
            told = [text.replace(str(copy), address) for text in (error.title, *error.problems)]
            raise DataError(told[0], told[1:]) from None


def listing_sha256(address: str) -> str:
    """Return a digest of the names and versions of the files at an address, if possible unread."""
    _, _, entries = _listed(address)
    if any(each.keys() <= _WITHOUT_VERSION for each in entries.values()):
        with local_copy(address) as local:
            return sha256_of_files(local)
    lines = [
        f"{name} {each.get('ETag') or each.get('etag') or sorted(each.items())}"
        for name, each in sorted(entries.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _listed(address: str) -> tuple:
    """Return the filesystem, the path in it, and its files by name; a single file has no name."""
    protocol = address.split("://")[0]
    if re.search(r"://.*:.*@|\?", address):
        problem = (
            "An address must hold no password, key or query, for it is logged; set them as fsspec"
            " takes them, in environment variables or files in ~/.config/fsspec."
        )
        raise refusal(f"{protocol}://...", problem)
    from fsspec.core import url_to_fs  # here, not at the top: few need it

    with _refused_if_it_fails(address):
        # the current listing, not one cached earlier in this process
        filesystem, root = url_to_fs(address, skip_instance_cache=True, use_listings_cache=False)
        info = filesystem.info(root)
        if info["type"] != "directory":
            return filesystem, root, {"": info}
        found = {each["name"].rstrip("/"): each for each in filesystem.ls(root, detail=True)}
    found.pop(root, None)  # a folder made in a browser is also an object
    entries = {name.rsplit("/", 1)[-1]: each for name, each in found.items()}
    return filesystem, root, {k: each for k, each in entries.items() if not is_hidden(k)}


@contextmanager
def _refused_if_it_fails(address: str) -> Iterator[None]:
    """Refuse an address where its filesystem fails."""
    try:
        yield
    except ImportError as error:
        problem = (
            f"The package for this address must be installed, got: {error};"
            " `pip install -e '.[remote]'` brings that for s3://."
        )
        raise refusal(address, problem) from error
    except FileNotFoundError as error:
        problem = "The address must lead to a file or folder, got nothing there; check every part."
        raise refusal(address, problem) from error
    except Exception as error:  # each package raises its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(". ")
        problem = (
            f"The address must be readable, got {reason}; check it and the credentials, which"
            " fsspec takes from environment variables or files in ~/.config/fsspec."
        )
        raise refusal(address, problem) from error
