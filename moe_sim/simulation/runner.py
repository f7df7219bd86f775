"""From a study to results: draws, fits and measures losses, chunk by chunk, keeping each as soon as it is done."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from moe_sim.data.cells import cells_in_box, with_density
from moe_sim.data.draw import sampler
from moe_sim.data.samples import at as samples_at
from moe_sim.errors import InputError
from moe_sim.fitting.batching import compile_together
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.memory import bound_memory
from moe_sim.fitting.multistart import CERTIFICATES, Fits, Fitter
from moe_sim.models.base import Density, Parameters
from moe_sim.models.coordinates import element, lists
from moe_sim.models.loading import Outside, blamed, named_outside
from moe_sim.models.remembered import remembered
from moe_sim.models.sources import Sources
from moe_sim.simulation.cluster import compute
from moe_sim.simulation.progress import Progress, Tally
from moe_sim.simulation.store import RunFolder, platform_facts
from moe_sim.solvers.solution import Status
from moe_sim.study.controls import CONTROLS, control, names
from moe_sim.study.study import Problem, Study
from moe_sim.theory.least_favourable import least_favourable
from moe_sim.theory.projection import projection
from moe_sim.theory.two_point import two_point
from moe_sim.theory.unseen import elsewhere, unseen

REPLICATES_PER_CHUNK = 100
_FAR = 4  # estimates, those with the largest losses, that are asked whether they lie at another measure
Truths = dict[str, Any]  # parameters (lists) by size (strings), where the truth moves; empty where it does not
_Chunks = Generator[tuple[int, np.ndarray, pd.DataFrame], None, None]


@dataclass
class Results:
    """study; frame: one row a replicate; evidence: of lower-bound claims, by loss; truths: those of each size (a
    string, as in JSON), where they move (``least_favourable``), their arrays as lists; unseen: directions of the truth
    that samples of its sizes do not see, and other measures with its function, by claimed loss (``theory.unseen``);
    folder: where it is kept; controls: results of the controls that have been run, by name (``controls.CONTROLS``)."""

    study: Study
    frame: pd.DataFrame
    evidence: dict[str, Any]
    truths: Truths = field(default_factory=dict)
    unseen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    folder: Path | None = None
    controls: dict[str, Results] = field(default_factory=dict)

    def truth(self, n: float) -> Parameters:
        """The truth that samples of size n come from, and that their losses are distances from."""
        return truth_of(self.study, n, self.truths)

    def ceiling(self, n: float) -> float | None:
        """``Study.ceiling`` of the truth of this size; of a model that is not loaded as the folder remembers it."""
        told = self.study.outside.facts
        if told is None:
            return self.study.ceiling(self.truth(n))
        return told["ceilings"].get(str(int(n)), told["ceilings"].get("given"))


def run(
    study: Study, out: str | Path | None = None, progress: Callable[[Progress], None] | None = None,
    client: Any = None,
) -> Results:  # fmt: skip
    """Run a study, all of it or what a folder ``out`` lacks, and return its ``Results``.

    Without ``out`` nothing is written. A replicate depends only on the seed, its cell and its index, so adding
    sizes or replicates moves nothing that is there. Ctrl-C loses the chunk in flight at most.

    client: a ``distributed.Client`` whose workers compute the chunks; on this machine without. What comes out is the
    same, bit for bit on the same kind of machine.
    """
    return _run(study, out, progress, client, {})


def _run(study: Study, out, progress, client, truths: Truths) -> Results:
    """``run``, where the truths of the sizes are known already."""
    if study.problem.grid:
        raise InputError("[truth.grid] has many truths: pass the study to moe-sim worst-case, or ms.worst_case")
    if out is None:
        frames: list[pd.DataFrame] = []
        evidence, truths, hidden = _fill(study, None, progress, client, truths, lambda n, first, f: frames.append(f))
        frame = pd.concat(frames, ignore_index=True).sort_values(["n", "replicate"], ignore_index=True)
        return Results(study, frame, evidence, truths, hidden | _elsewhere(study, frame, hidden))
    folder = RunFolder(out)
    source = kept_source(study)
    folder.check(study.tables, source)
    with folder.writing():
        folder.create(study.to_toml(), study.tables, study.digest, study.problem.seed, source=source)
        _, _, hidden = _fill(study, folder, progress, client, truths, folder.write_chunk)
        results = _read(folder, lambda text: study)
        asked = {"sizes": study.problem.sizes, "replicates": len(results.frame)}
        known = folder.read_json("elsewhere.json")
        if {name: known.get(name) for name in asked} != asked:
            known = asked | {"losses": _elsewhere(study, results.frame, hidden)}
            folder.write_json("elsewhere.json", known)
    results.unseen = hidden | known["losses"]
    return results


def kept_source(study: Study) -> dict[str, str]:
    """What a run folder keeps of the source of a model. Raises ``InputError`` where it cannot keep the model."""
    if study.outside.refused is not None:
        raise InputError(study.outside.refused)
    return dict(study.outside.sources.texts)


def _fill(
    study: Study, folder: RunFolder | None, progress, client, truths: Truths, keep: Callable
) -> tuple[dict[str, Any], Truths, dict[str, list[dict[str, Any]]]]:
    """Compute the chunks of a study that the folder lacks, ``keep(n, first replicate, frame)``; evidence, truths, and
    what is unseen."""
    bound_memory()
    problem = study.problem
    given = _machine(problem, problem.truth)
    lower = [loss for loss in problem.losses if any(c.kind == "lower" and c.loss == loss.name for c in study.claims)]
    evidence = two_point(
        problem.model, problem.truth, problem.law, problem.options, lower, given.fitter.flatten, given.fitter.unflatten
    )
    hidden = _unseen(study, folder)
    kept = {n: folder.kept(n) if folder else set() for n in problem.sizes}
    todo = [(n, index) for n in problem.sizes for index in _missing(problem.replicates, kept[n])]
    if problem.moves:
        truths = _moving(problem, truths or (folder.evidence()[1] if folder is not None else {}))
    if folder is not None:
        folder.write_evidence(evidence, truths)
        if study.is_outside:
            folder.write_json("model.json", _facts(study, truths))
    if not todo:
        return evidence, truths, hidden
    done = _here(study, given, todo, truths) if client is None else _there(study, client, todo, truths)
    tally = None
    if progress is not None:
        tally = Tally(study, folder.read()[1] if folder is not None and any(kept.values()) else None)
    with closing(done):
        for n, index, frame in done:
            keep(n, int(index[0]), frame)
            if tally is not None and progress is not None:
                progress(tally.add(n, frame))
    return evidence, truths, hidden


def _unseen(study: Study, folder: RunFolder | None) -> dict[str, list[dict[str, Any]]]:
    """What samples of the study's sizes do not see, by loss with a claim on a rate; as the folder has it, if it does.

    Nothing where the truth moves: it may go where it cannot be seen.
    """
    problem = study.problem
    claimed = {claim.loss for claim in study.claims if claim.kind != "lower"}
    losses = [loss for loss in problem.losses if loss.name in claimed]
    if problem.moves or not losses:
        return {}
    n = max(problem.sizes)
    kept = folder.read_json("unseen.json") if folder is not None else {}
    if kept.get("n") == n:
        return kept["losses"]
    found = unseen(problem.model, problem.truth, problem.law, problem.options, losses, n)
    told = {loss: [u.to_json() for u in directions] for loss, directions in found.items()}
    if folder is not None:
        folder.write_json("unseen.json", {"n": n, "losses": told})
    return told


def _elsewhere(study: Study, frame: pd.DataFrame, hidden: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Measures that have the function of the truth and are not near it, by claimed loss of which the fits say that
    there may be one: its mean falls less than half as fast as claimed, and nothing ``hidden`` explains that.

    Only of as many atoms as the truth has: with more of them, whether one is mute or split is what claims are about.
    """
    problem, sizes = study.problem, study.problem.sizes
    model, options = problem.model, problem.options
    if problem.moves or model.sizes(options.atoms) != model.sizes_of(problem.truth):
        return {}
    fitter, far = Fitter(model, problem.truth, options), dict[str, np.ndarray]()
    for claim in study.claims:
        if claim.kind == "lower" or claim.loss == "function" or claim.loss in hidden:
            continue
        first, last = (frame.loc[frame["n"] == n, f"loss:{claim.loss}"] for n in (min(sizes), max(sizes)))
        if last.mean() > first.mean() * (max(sizes) / min(sizes)) ** (-0.5 * float(claim.exponent or 0.0)):
            rows = frame.loc[last.nlargest(_FAR).index]
            far[claim.loss] = np.stack([_theta(fitter, row) for _, row in rows.iterrows()])
    losses = [loss for loss in problem.losses if loss.name in far]
    found = elsewhere(model, problem.truth, problem.law, options, losses, far) if losses else {}
    return {loss: [u.to_json() for u in measures] for loss, measures in found.items()}


def _theta(fitter: Fitter, row: pd.Series) -> np.ndarray:
    """The free coordinates (P,) of a replicate, from what ``_estimate_columns`` has written."""
    shapes = {k: np.shape(v) for k, v in fitter.unflatten(fitter.lower).items()}
    every = {
        name: [row[f"estimate:{element(name, where)}"] for where in np.ndindex(*shape)]
        for name, shape in shapes.items()
    }
    params = {name: np.reshape(np.asarray(values, float), shapes[name]) for name, values in every.items()}
    return np.clip(fitter.flatten(params), fitter.lower, fitter.upper)


def _facts(study: Study, truths: Truths) -> dict[str, Any]:
    """What judging and drawing ask of a model from outside, so that they need not run it."""
    asked = {"given": study.problem.truth}
    if truths:
        asked |= {str(n): truth_of(study, n, truths) for n in study.problem.sizes}
    return study.facts() | {"ceilings": {size: study.ceiling(truth) for size, truth in asked.items()}}


def _here(study: Study, given: _Machine, todo, truths: Truths) -> _Chunks:
    """Compute chunks on this machine's devices; what one starts from is made while they compute the one before."""
    at = lru_cache(maxsize=1)(lambda n: _machine(study.problem, truth_of(study, n, truths)))
    size = lambda n: study.problem.sizes[0] if study.problem.projected else n  # noqa: E731  (one truth for all)
    ready = None
    for begun in _ahead(lambda n, index: _begin(study, at(size(n)) if truths else given, n, index), todo):
        if begun.machine is not ready:
            ready = begun.machine
            jobs = ready.fitter.jobs(begun.samples)
            compile_together([*jobs, ready.losses.job(np.asarray(ready.fitter.lower))])
        yield begun.n, begun.replicates, _finish(begun)[0]


def _ahead(function: Callable, tasks: list[tuple]) -> Iterator:
    """``function(*task)`` for each task in turn, that of the next one in a thread of its own meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(function, *tasks[0])
        for task in tasks[1:]:
            found, coming = coming.result(), thread.submit(function, *task)
            yield found
        yield coming.result()


def _there(study: Study, client, todo, truths: Truths) -> _Chunks:
    """Compute chunks on a cluster: a worker gets the study as text and, where the truth moves, that of the size."""
    sent = {n: json.dumps({str(n): truths[str(n)]} if truths else {}) for n in study.problem.sizes}
    text, versions, source = study.to_toml(), platform_facts()["versions"], json.dumps(kept_source(study))
    tasks = [(text, n, index, sent[n], versions, source) for n, index in todo]
    for (_, n, index, *_), frame in compute(client, on_worker, tasks):
        yield n, index, frame


def on_worker(
    text: str, n: int, index: np.ndarray, truths: str, versions: dict[str, str], source: str = "{}"
) -> pd.DataFrame:
    """A chunk, where a worker of a cluster computes it; truths, source (texts of the model's files): as JSON. Raises
    ``InputError`` where its packages are others."""
    here = platform_facts()["versions"]
    other = [name for name, version in versions.items() if here[name] != version]
    if other:
        name = other[0]
        raise InputError(
            f"a worker has {name} {here[name]} and this process {versions[name]}: install the same on both, or results "
            "differ in their last bits"
        )
    with blamed():  # where tracebacks go no further than the worker
        study, machine = _kept_machine(text, truths, source)
        return _finish(_begin(study, machine, n, index))[0]


@lru_cache(maxsize=4)
def _kept_machine(text: str, truths: str, source: str) -> tuple[Study, _Machine]:
    """What a worker compiles once for a study; truths: of the one size it is about, none where they stay."""
    study = Study(outside=Outside(Sources(json.loads(source)), checked=True), **tomllib.loads(text))
    moving = json.loads(truths)
    return study, _machine(study.problem, truth_of(study, float(next(iter(moving), 0)), moving))


def truth_of(study: Study, n: float, truths: Truths) -> Parameters:
    """The given truth, or that of this size where it moves."""
    return {k: np.asarray(v) for k, v in truths[str(int(n))].items()} if truths else study.problem.truth


def _moving(problem: Problem, known: Truths) -> Truths:
    """The truths of all sizes: the known ones, and what is missing of them."""
    missing = [n for n in problem.sizes if str(n) not in known]
    if not missing:
        return known
    found = {n: problem.truths[n] for n in missing} if problem.truths else {}
    if problem.least_favourable is not None:
        parts = problem.model, problem.truth, problem.law, problem.options, problem.least_favourable
        found = least_favourable(*parts, missing)
    if problem.projected:
        at = (
            next(iter(known.values()), None)
            or projection(problem.model, problem.truth, problem.law, problem.options).parameters
        )
        found = dict.fromkeys(missing, at)
    return known | {str(n): lists(truth) for n, truth in found.items()}


class _Machine(NamedTuple):
    """What is compiled for one truth."""

    truth: Parameters
    fitter: Fitter
    losses: LossFunction
    samples: Callable[[int, list[np.random.SeedSequence]], Any]


def _machine(problem: Problem, truth: Parameters) -> _Machine:
    """truth: what losses are from, and samples too but for a projection, whose samples are those of the given one."""
    fitter = Fitter(problem.model, truth, problem.options)
    drawn, cells, of_losses = problem.truth if problem.projected else truth, None, None
    if isinstance(problem.model, Density) and problem.mode == "exact":
        bounds = problem.options.bound, problem.options.bias_bound
        cells = cells_in_box(problem.model, drawn, problem.law, *bounds)
        of_losses = with_density(problem.model, truth, cells) if problem.projected else cells
    losses = LossFunction(problem.model, truth, problem.law, problem.losses, problem.options.atoms, of_losses)
    samples = sampler(problem.model, drawn, problem.law, problem.mode, cells)
    return _Machine(truth, fitter, losses, samples)


def run_controls(results: Results, progress: Callable[[Progress], None] | None = None, client: Any = None) -> Results:
    """Run the controls of a finished run (or what its folder lacks of them): the same results, with ``controls``."""
    for name in names(results.study):
        folder = None if results.folder is None else results.folder / "controls" / name
        results.controls[name] = _run(control(results.study, name), folder, progress, client, results.truths)
    return results


def load_results(path: str | Path, trust_model: bool = False) -> Results:
    """Results of a run folder. Raises ``InputError`` where there are none.

    A model from outside is not loaded: what verdicts and figures ask of it is kept beside its source. With
    ``trust_model`` it is, from the folder's copy, so that replicates can be computed again.
    """
    folder = RunFolder(path)
    return _read(folder, lambda text: _study_of(folder, tomllib.loads(text), trust_model), trust_model)


def _read(folder: RunFolder, study_of: Callable[[str], Study], trust_model: bool = False) -> Results:
    text, frame = folder.read()
    study = study_of(text)
    wanted = frame["n"].isin(study.problem.sizes) & (frame["replicate"] < study.problem.replicates)
    frame = frame[wanted].reset_index(drop=True)
    folders = {name: folder.path / "controls" / name for name in CONTROLS}
    begun = {name: at for name, at in folders.items() if any(at.glob("chunks/*.parquet"))}
    controls = {name: load_results(at, trust_model) for name, at in begun.items()}
    hidden = {
        k: v for name in ("unseen", "elsewhere") for k, v in folder.read_json(f"{name}.json").get("losses", {}).items()
    }
    return Results(study, frame, *folder.evidence(), hidden, folder.path, controls)


def _study_of(folder: RunFolder, tables: dict[str, Any], trust_model: bool) -> Study:
    """The study of a run folder, its model remembered or, where that is trusted, loaded."""
    if not named_outside(tables.get("model")):
        return Study(**tables)
    place = str((folder.path / "model").absolute())
    sources = Sources(source := folder.source(), dict.fromkeys(source, place))
    if trust_model:
        return Study(outside=Outside(sources, checked=True), **tables)
    told = folder.read_json("model.json")
    remembered(told)
    return Study(outside=Outside(sources, facts=told), **tables)


def _seeds(study: Study, n: int, index: np.ndarray, *tables: str) -> list[np.random.SeedSequence]:
    words = study.cell_digest(n, *tables)
    return [np.random.SeedSequence([study.problem.seed, *words, int(r)]) for r in index]


def _missing(replicates: int, kept) -> list[np.ndarray]:
    """Runs of at most REPLICATES_PER_CHUNK consecutive replicates that are not kept yet."""
    left = np.setdiff1d(np.arange(replicates), list(kept))
    runs = np.split(left, np.flatnonzero(np.diff(left) > 1) + 1)
    return [
        run[first : first + REPLICATES_PER_CHUNK] for run in runs for first in range(0, len(run), REPLICATES_PER_CHUNK)
    ]


def _samples(study: Study, machine: _Machine, n: int, index: np.ndarray):
    """Samples of these replicates, padded to a whole chunk by copies that are never fitted: one shape, one compilation.

    They do not depend on ``[fit]``, so all start rules and estimators meet the same samples.
    """
    seeds = _seeds(study, n, index, "model", "truth", "law")
    fill = np.minimum(np.arange(REPLICATES_PER_CHUNK), len(index) - 1)
    return samples_at(machine.samples(n, seeds), fill)


def fit_chunk(results: Results, n: int, index: np.ndarray) -> tuple[pd.DataFrame, Fits]:
    """Replicates ``index`` of size n as ``run`` computed them, one row each, and their fits."""
    study = results.study
    return _finish(_begin(study, _machine(study.problem, results.truth(n)), n, index))


class _Begun(NamedTuple):
    """What a chunk starts from: replicates of size n, their samples, seeds and first starting points."""

    machine: _Machine
    n: int
    replicates: np.ndarray
    samples: Any
    seeds: list[np.random.SeedSequence]
    points: np.ndarray


def _begin(study: Study, machine: _Machine, n: int, index: np.ndarray) -> _Begun:
    seeds = _seeds(study, n, index, "model", "truth", "law", "fit")
    return _Begun(machine, n, index, _samples(study, machine, n, index), seeds, machine.fitter.first_points(seeds, n))


def _finish(begun: _Begun) -> tuple[pd.DataFrame, Fits]:
    """A data frame with one row a replicate, and the fits."""
    (_, fitter, losses, _), n, index, samples, seeds, points = begun
    # Not where they were drawn: while another thread computes on all devices, a third that waits for one never ends.
    fits = fitter.fit(jax.device_put(samples), seeds, n, points)
    columns: dict[str, Any] = {"n": np.full(len(index), n), "replicate": index, **_fit_columns(fits)}
    columns |= {f"loss:{name}": value for name, value in losses(fits.theta).items()}
    counts = np.array([len(near) for near in fits.near])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for name, value in losses(np.concatenate(fits.near)).items():
        # The worst of the near-minimisers; those without such an atom (NaN) do not speak.
        worst = np.maximum.reduceat(np.where(np.isnan(value), -np.inf, value), first)
        columns[f"near:{name}"] = np.where(np.isneginf(worst), np.nan, worst)
    columns["near:count"] = counts
    columns |= _estimate_columns(fitter, fits.theta)
    return pd.DataFrame(columns), fits


def _fit_columns(fits: Fits) -> dict[str, Any]:
    return {
        "certificate": pd.Categorical(fits.certificate, categories=list(CERTIFICATES)).astype(str),
        "status": [str(Status(int(s))) for s in fits.status],
        "objective": fits.objective, "objective_at_truth": fits.objective_at_truth,
        "promised": fits.promised, "curvature": fits.curvature, "agreeing": fits.agreeing, "starts": fits.starts,
        "iterations": fits.iterations, "passes": fits.passes,
    }  # fmt: skip


def _estimate_columns(fitter: Fitter, theta: np.ndarray) -> dict[str, np.ndarray]:
    """``estimate:prefix[0,1]`` and so on: every parameter of every replicate."""
    params = jax.vmap(fitter.unflatten)(jnp.asarray(theta))
    return {
        f"estimate:{element(name, where)}": np.asarray(values[(slice(None), *where)])
        for name, values in sorted((k, np.asarray(v)) for k, v in params.items())
        for where in np.ndindex(*values.shape[1:])
    }
