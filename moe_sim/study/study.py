"""A study: what is asked, in full. TOML in and out, validation, and the digest that a run is known by."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from moe_sim.errors import InputError
from moe_sim.losses.voronoi import Loss
from moe_sim.models import loading, objects
from moe_sim.models.base import Model, Parameters
from moe_sim.models.loading import Outside
from moe_sim.models.remembered import facts
from moe_sim.study.path import t_name
from moe_sim.study.problem import Problem as Problem
from moe_sim.study.problem import build, draws_x, read_claim
from moe_sim.study.table import check_names, is_table

NAMES = ("name", "model", "truth", "law", "fit", "sample")  # what every study has, but for the law of a joint density


class Study:
    """A validated study. Keywords are the tables of a study file, with plain Python values.

    ``Study(name=..., model={...}, truth={...}, law={...}, fit={...}, sample={...}, claim=[{...}])``. Raises
    ``InputError`` naming the value and the remedy. ``tables`` is what was given, ``problem`` what it means.

    model may be an object too, of a subclass of ``Regression`` or ``Density``. Files that the [model] table names lie
    beside ``folder``, by default the working directory. outside: what is known of them already (``Outside``).
    """

    def __init__(self, *, folder: str | Path | None = None, outside: Outside | None = None, **tables: Any):
        if isinstance(tables.get("model"), Model):
            tables["model"], outside = objects.of_object(tables["model"])
        check_names("", tables, {*NAMES, "claim"})
        for name in NAMES:
            if name not in tables and not (name == "law" and draws_x(tables)):
                raise InputError(
                    f"the study has no {name}: add {'name = ...' if name == 'name' else f'a [{name}] table'}"
                )
            if name != "name" and name in tables:
                is_table(name, tables[name])
        if not isinstance(tables["name"], str) or not re.fullmatch(r"\w[\w.-]*", tables["name"]):
            raise InputError(f"name = {tables['name']!r}: pass letters, digits, '.', '_' and '-' (it names a folder)")
        if not isinstance(tables.get("claim", []), list):
            raise InputError(f"claim = {tables['claim']!r}: write each claim as a [[claim]] table")
        self.tables: dict[str, Any] = _plain(tables)
        self.name: str = tables["name"]
        self.outside = loading.outside(self.tables["model"], folder) if outside is None else outside
        self.problem = build(self.tables, self.outside)
        self.claims = [read_claim(i, c, self.problem) for i, c in enumerate(self.tables.get("claim", []))]

    def __repr__(self) -> str:
        return f"Study({self.name!r}, digest={self.digest[:12]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all but the sizes and the number of replicates, which may grow within a run folder. The source of
        a model from outside counts too, but for comments and blank lines."""
        sample = {k: v for k, v in self.tables["sample"].items() if k not in ("sizes", "replicates")}
        source = self.outside.sources.digest
        return _digest(self.tables | {"sample": sample} | ({"source": source} if source else {}))

    def ceiling(self, truth: Parameters) -> float | None:
        """The largest value of a Voronoi loss, if it has one: where the gates may be translated it never exceeds
        the mass of the truth, its value where the translation sends the fitted mass to 0."""
        model = self.problem.model
        return None if model.gauge is None else float(np.sum(model.measure(truth).weight))

    def leaves_ceiling(self, loss: Loss, ceiling: float) -> float:
        """The n from which a spare atom counts less than the ceiling in a Voronoi loss wherever it is.

        Its mass may be of order n^-1/2, as no sample tells, and its distance as large as the box: from
        (gap^r / ceiling)^2 on, gap^r the largest over blocks, the two together are below the ceiling.
        """
        problem, model = self.problem, self.problem.model
        lower, upper = model.bounds(problem.options.atoms, problem.options.bound, problem.options.bias_bound)
        most = max(1, model.total(problem.options.atoms) - model.count(problem.truth) + 1)  # atoms of a cell
        largest = 1.0
        for block, powers in loss.exponents:
            if block in lower:
                true = np.asarray(problem.truth[block])
                gap = max(np.max(upper[block]) - np.min(true), np.max(true) - np.min(lower[block]))
                largest = max(largest, float(gap) ** max(powers[:most]))
        return (largest / ceiling) ** 2

    def cell_digest(self, n: int, *tables: str) -> list[int]:
        """Eight 32-bit words from size n and the named tables: what the seeds of a cell are made of."""
        mode = self.problem.mode
        text = _digest({"n": int(n), "mode": mode, **{name: self.tables.get(name) for name in tables}})
        return [int(text[i : i + 8], 16) for i in range(0, 64, 8)]

    def to_toml(self) -> str:
        """The study as TOML; ``load_study`` of it gives an equal study."""
        return tomli_w.dumps(self.tables)

    def replace(self, *, sizes=None, replicates=None, seed=None, quick=False, **fit: Any) -> Study:
        """The same study with other sizes, replicates, seed, or ``[fit]`` keys; ``quick`` keeps 20 replicates."""
        tables = copy.deepcopy(self.tables)
        if quick:
            tables["sample"]["replicates"] = min(20, self.problem.replicates)
        changes = {"sizes": sizes, "replicates": replicates, "seed": seed}
        tables["sample"] |= {k: v for k, v in changes.items() if v is not None}
        tables["fit"] |= fit
        return self.with_tables(tables)

    def with_tables(self, tables: dict[str, Any]) -> Study:
        """A study of the same model, wherever that comes from; its [model] and [truth] stay."""
        return Study(outside=replace(self.outside, checked=True), **tables)

    def at_truths(self) -> dict[float, Study]:
        """A study of each truth of [truth.grid], by t; none where there is no grid."""
        return {
            t: self.with_tables(self.tables | {"name": f"{self.name}-{t_name(t)}", "truth": truth})
            for t, truth in self.problem.grid.items()
        }

    @property
    def is_outside(self) -> bool:
        """Whether its model, or a part of it, lies outside the package."""
        return self.outside.given is not None or bool(loading.named_outside(self.tables["model"]))

    def facts(self) -> dict[str, Any]:
        """What a run folder remembers of its model."""
        return facts(self.problem.model)


def _plain(value: Any) -> Any:
    """Tables of plain Python values: what TOML can say."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _digest(value: Any) -> str:
    """Equal numbers give equal digests: 6 and 6.0 are the same study."""

    def normal(v):
        if isinstance(v, dict):
            return {k: normal(u) for k, u in v.items()}
        if isinstance(v, list):
            return [normal(u) for u in v]
        return float(v) if isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**53 else v

    return hashlib.sha256(json.dumps(normal(value), sort_keys=True).encode()).hexdigest()
