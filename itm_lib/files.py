"""Small files, read and written so that a reader sees the old file or the new one, never half of one.

Every error of bad input in itm_lib is an :class:`InputError`: one line that says what, where and what to do.
The command line prints that line alone; a notebook ends with it.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the line, without the library's frames and their paths."""
        return [f"InputError: {self}"]


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error line: ``did you mean 'x'?`` for the closest of ``names``, else all of them."""
    names = [str(known) for known in names]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"


def counted(count: int, what: str) -> str:
    """``1 picture``, ``1,200 pictures``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def one_line(error: Exception | str, length: int = 120) -> str:
    """What a library says went wrong, as a part of an error line: without its line breaks, ``length`` characters at most."""
    return " ".join(str(error).split())[:length]


def validation_line(error: ValidationError, names: Iterable[str] = ()) -> str:
    """A pydantic error as one line; an unknown name gets the nearest of ``names``."""
    parts = []
    for problem in error.errors():
        place = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"unknown {place!r}" + (f": {nearest(place, names)}" if names else ""))
        elif problem["type"] == "missing":
            parts.append(f"{place} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{place} = {problem['input']!r}: {message[:1].lower()}{message[1:]}" if place else message)
    return " ".join("; ".join(parts).split())


def project_root(start: Path | None = None) -> Path:
    """The folder of the checkout: the nearest parent of ``start`` (default: here, then this file) with notebooks/.

    Falls back to the current folder, so an installed itm_lib works outside a checkout too.
    """
    starts = [start] if start else [Path.cwd(), Path(__file__).resolve().parent]
    for first in starts:
        for folder in (first, *first.parents):
            if (folder / "pyproject.toml").is_file() and (folder / "itm_lib").is_dir():
                return folder
    return Path.cwd()


def data_dir() -> Path:
    """Where datasets, caches and results live: ``$ITM_DATA`` or data/ of the checkout."""
    return Path(os.environ["ITM_DATA"]) if os.environ.get("ITM_DATA") else project_root() / "data"


def committed(name: str) -> Path:
    """A file or folder of data/ that comes with the checkout: the one in :func:`data_dir` if it is there, else that of the checkout."""
    own = data_dir() / name
    return own if own.exists() else project_root() / "data" / name


def locked(path: Path, otherwise: str) -> FileLock:
    """The lock file ``path``, held by this process; where another holds it, an :class:`InputError` that says ``otherwise``.

    The system frees it when the process ends, even if it is killed.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(otherwise) from None
    return lock


@contextlib.contextmanager
def held(path: Path, otherwise: str) -> Iterator[None]:
    """:func:`locked` while inside."""
    lock = locked(path, otherwise)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on an error nothing changes.

    The content is flushed to disk before the rename, so a power cut leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # mkstemp makes private files; ours are ordinary ones
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, UTF-8, with the newlines as given."""
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def json_lines(value: Any, width: int = 140, depth: int = 0) -> str:
    """``value`` as JSON in which whatever fits into ``width`` characters stands on one line: short files, and differences that git shows well."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) + depth <= width or not isinstance(value, dict | list):
        return flat
    keys = [f"{json.dumps(str(key), ensure_ascii=False)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    parts = [f"{key}{json_lines(each, width, depth + 1)}" for key, each in zip(keys, value.values() if isinstance(value, dict) else value)]
    first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return first + "\n" + ",\n".join(" " * (depth + 1) + part for part in parts) + "\n" + " " * depth + last


def read_json(path: str | Path) -> Any:
    """The JSON value in ``path``. Raises :class:`InputError` if the file is missing or cut short."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}: check the path, or make the file first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): the file is damaged or cut short, make it again") from None


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_text(path: str | Path) -> str:
    """The text in ``path``, which is UTF-8; a byte order mark is no part of it."""
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no file {path}: check the path, or make the file first") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({one_line(error.strerror or error)}): check the path and its permissions") from None


def read_jsonl(path: str | Path) -> list[Any]:
    """The JSON values of ``path``, one a line. Names the line that is broken."""
    return [value for _, value in numbered_jsonl(path)]


def numbered_jsonl(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The JSON values of ``path``, one a line, each with the number of its line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {number} is not valid JSON ({error.msg}): mend or remove that line") from None
