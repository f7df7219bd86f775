"""A study small enough to be run many times (one prefix, d = 1, two parameters)."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import tomli_w

import moe_sim as ms
from moe_sim.cli.main import main
from moe_sim.simulation import runner

RUN = runner

GONE = object()  # a change that takes the key away
TABLES = {
    "name": "tiny",
    "model": {
        "family": "prefix",
        "structure": "shared-linear",
        "noise": 0.3,
        "frozen": {"logit_matrix": [[[0.1]]], "logit_bias": [0.0], "output_matrix": [[[0.8]]]},
        "projection": {"key": [[1.0]], "value": [[1.0]]},
    },
    "truth": {"bias": [0.2], "prefix": [[1.0]]},
    "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 10},
    "fit": {"atoms": 1, "estimator": "least-squares", "start": "data", "starts": 2, "bound": 6.0, "bias_bound": 3.0},
    "sample": {"mode": "exact", "sizes": [1e2, 1e3, 1e4], "replicates": 4, "seed": 0},
    "claim": [
        {"loss": "function", "exponent": 0.5, "window": [1e2, 1e4]},
        {"loss": "voronoi", "exponent": 0.5, "log_power": 0.5, "window": [1e2, 1e4]},
    ],
}


def tables(**changes):
    """TABLES with changes named by their path, dots written as double underscores: ``sample__seed=1``."""
    found = copy.deepcopy(TABLES)
    for path, value in changes.items():
        *above, last = path.split("__")
        table = found
        for part in above:
            table = table[int(part) if part.isdigit() else part]
        if value is GONE:
            del table[last]
        else:
            table[int(last) if last.isdigit() else last] = value
    return found


def study(**changes) -> ms.Study:
    return ms.Study(**tables(**changes))


def write(folder: Path, **changes) -> Path:
    """The study as a file."""
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(tables(**changes)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command line."""
    monkeypatch.setattr(sys, "argv", ["moe-sim", *map(str, arguments)])
    capsys.readouterr()
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
