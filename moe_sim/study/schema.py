"""What the tables of a study file say: one dataclass a table.

Validation, the reference in the README and the JSON schema for editors are made of it (``reference``). The lists of
names are those of the rooms that know them, and a test holds the two together: what judges claims imports this file,
and must run where there is no JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_sim.study.table import Array, Choice, Flag, Number, OneOrTable, Sizes, Table, Text, Whole, entry

UNFITTED = ("start", "one-step")  # controls that are no fits
FEWEST_SIZES = 3  # that a slope is made of
MARGIN = 0.1  # default margin of a claim, as a part of its exponent
LARGEST = 10**15  # size that a study may have: counts stay exact in double precision

GIVEN = "must be given"
PREFIXES = ("prefix", "prefix-mixture")
SOFTMAX, GATED = ("softmax-gaussian",), ("gaussian-gated",)
GAUSSIANS = SOFTMAX + GATED
COMPOSED = ("moe", "shared-routed", "contaminated", "two-level")
ESTIMATORS = ("least-squares", "mle", "em", "gradient", "steps")
STARTS = ("data", "wide", "truth")
OPTIMIZERS = ("adam", "sgd", "lbfgs")
LAWS = ("grid", "uniform", "normal", "linspace", "ring", "ball", "tokens")
SIDES = ("grid", "linspace", "uniform")
MODES = ("exact", "iid")
TRUTHS = ("given", "least-favourable", "projection")
KINDS = ("upper", "exact", "lower")
MARKS = ("read", "recalled", "ours")
STRUCTURES = ("independent", "shared-linear", "shared-network")


@dataclass(frozen=True, kw_only=True)
class FrozenTable:
    """``[model.frozen]``: N known experts; left out: none."""

    logit_matrix: Any = entry(Array(("N", "d", "d")), "A of their logits x'A x + a", None, "none")
    logit_bias: Any = entry(Array(("N",)), "a of their logits", None, "none")
    output_matrix: Any = entry(Array(("N", "outputs", "d")), "M of their outputs tanh(M x)", None, "none")
    functions: str | None = entry(
        Text(), '`"module:name"` of a `moe_sim.Frozen` of any JAX functions, in place of the three', None, "none"
    )
    tokens: int = entry(
        Whole(0), "x brings N logits and N x outputs outputs along, after its query; in place of the four", 0
    )


@dataclass(frozen=True, kw_only=True)
class ProjectionTable:
    """``[model.projection]``: what keys and values are multiplied with."""

    key: Any = entry(Array(("d", "d_key")), "B, of keys")
    value: Any = entry(Array(("outputs", "d_value")), "C, of values")


@dataclass(frozen=True, kw_only=True)
class NetworkTable:
    """``[model.network]``: structure shared-network only."""

    key: Any = entry(Array(("d_key", "q")), "W1: keys are s(W1 p)")
    value: Any = entry(Array(("d_value", "q")), "W2: values are s(W2 p)")
    activation: str = entry(Choice(("tanh", "identity", "relu", "gelu", "sigmoid")), "the s", "tanh")
    learned: bool = entry(Flag(), "whether W1 and W2 are fitted too", False)
    bound: float = entry(Number(0.0), "with `learned`: bound of every entry of W1 and W2", 3.0)


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """``[model]``. ``family`` is checked by ``models``, and so is what a family has of its own."""

    family: str = entry(
        Text(), "`prefix` (regression), `prefix-mixture` (y is the output of one expert), `softmax-gaussian`, "
        "`gaussian-gated`; `moe` (a gate, an expert and a response put together), `shared-routed`, `contaminated`, "
        '`two-level`; `"file.py:Class"` beside the study, whose other keys are its arguments',
    )  # fmt: skip
    gate: str | None = entry(
        Text(), "`softmax`, `sigmoid`, `normalised-sigmoid`, `laplace`, `cosine`, `perturbed-cosine`, `quadratic`, "
        '`temperature`, `activated-temperature`, `top-k`, `constant`, `gaussian`, or `"file.py:Class"`',
        None, GIVEN, ("moe", "shared-routed"),
    )  # fmt: skip
    expert: str | None = entry(
        Text(), '`affine`, `tanh`, `relu`, `gelu`, `power`, `constant`, or `"file.py:Class"`', None, GIVEN, COMPOSED
    )
    response: str | None = entry(
        Text(), "`least-squares` (the mean is modelled), `gaussian`, `multinomial`, `binomial`, `poisson`, or "
        '`"file.py:Class"`', None, GIVEN, COMPOSED,
    )  # fmt: skip
    gate_options: Any = entry(Table(), "arguments of the gate", None, "none", ("moe", "shared-routed"))
    expert_options: Any = entry(Table(), "arguments of the expert", None, "none", COMPOSED)
    response_options: Any = entry(Table(), "arguments of the response", None, "none", COMPOSED)
    dimension: int | None = entry(Whole(1), "of x", None, "that of the truth", COMPOSED)
    outputs: int | None = entry(Whole(1), "of y", None, "those of the truth", COMPOSED)
    exponents: Any = entry(
        Table(), "exponents of a block in cells of 1, 2, ... atoms, in place of the usual ones", None, "none", COMPOSED
    )
    shared_expert: str | None = entry(Text(), "of the shared experts", None, "`expert`", ("shared-routed",))
    shared_expert_options: Any = entry(Table(), "arguments of it", None, "none", ("shared-routed",))
    proportion: float | None = entry(Number(), "mass of the shared part, known", None, "0.5", ("shared-routed",))
    frozen_density: Any = entry(
        Table(), "the known atom by its parameters, and `law`: `same` or `laplace`", None, GIVEN, ("contaminated",)
    )
    groups: int | None = entry(Whole(1), "groups of the first level", None, GIVEN, ("two-level",))
    outer: str | None = entry(Text(), "gate of the first level: `softmax`, `laplace`", None, GIVEN, ("two-level",))
    inner: str | None = entry(Text(), "gate within a group: `softmax`, `laplace`", None, GIVEN, ("two-level",))
    structure: str | None = entry(Choice(STRUCTURES), "how key and value of a prefix are tied", None, GIVEN, PREFIXES)
    noise: float | None = entry(
        Number(), "standard deviation of y, positive", None, GIVEN, (*PREFIXES, "moe", "two-level")
    )
    frozen: Any = entry(Table(FrozenTable), "known experts", None, "none", PREFIXES)
    projection: Any = entry(Table(ProjectionTable), "known projections", None, GIVEN, PREFIXES)
    network: Any = entry(Table(NetworkTable), "known or learned network", None, "by structure", PREFIXES)
    variance_range: Any = entry(
        Array((2,)), "least and largest variance of an expert", None, "a fourth of the least true one to four times "
        "the largest", GAUSSIANS,
    )  # fmt: skip
    covariance_range: Any = entry(
        Array((2,)), "least and largest squared diagonal of the Cholesky factors of covariances", None,
        "likewise, of the true ones", GATED,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TruthTable:
    """``[truth]``: the true parameters, a row an atom. Which there are is said by the model."""

    bias: Any = entry(Array(("L",)), "biases of the gates", None, GIVEN, PREFIXES)
    prefix: Any = entry(Array(("L", "q")), "tied structures: prefixes", None, GIVEN, PREFIXES)
    key: Any = entry(Array(("L", "d_key")), "independent: keys", None, GIVEN, PREFIXES)
    value: Any = entry(Array(("L", "d_value")), "independent: values", None, GIVEN, PREFIXES)
    W1: Any = entry(Array(("d_key", "q")), "learned network: its true W1", None, "that of the model", PREFIXES)
    W2: Any = entry(Array(("d_value", "q")), "learned network: its true W2", None, "that of the model", PREFIXES)
    gate_bias: Any = entry(Array(("K",)), "biases of the gates", None, GIVEN, SOFTMAX)
    gate_slope: Any = entry(Array(("K", "d")), "slopes of the gates", None, GIVEN, SOFTMAX)
    weight: Any = entry(Array(("K",)), "weights, which add up to 1", None, GIVEN, GATED)
    center: Any = entry(Array(("K", "d")), "centres of the gates", None, GIVEN, GATED)
    covariance: Any = entry(Array(("K", "d", "d")), "covariances of the gates", None, GIVEN, GATED)
    intercept: Any = entry(Array(("K",), ("K", "o")), "intercepts of the experts; o outputs", None, GIVEN, GAUSSIANS)
    slope: Any = entry(Array(("K", "d"), ("K", "o", "d")), "slopes of the experts", None, GIVEN, GAUSSIANS)
    variance: Any = entry(Array(("K",), ("K", "o")), "variances of the experts", None, GIVEN, GAUSSIANS)
    path: Any = entry(
        Table(), "formulas of the size n for some of them, where the truth moves: `slope = \"slope0 * (1 + "
        'n**(-1/8))"`, slope0 the given one', None, "none",
    )  # fmt: skip
    grid: Any = entry(
        Table(), "values of t and formulas of it, for rates that hold at all these truths (`moe-sim worst-case`): "
        '`t = [0.1, 1.0]`, `slope = "slope0 * t"`', None, "none",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LawTable:
    """``[law]``: the law of x; a joint density has its own."""

    name: str = entry(
        Choice(LAWS), "of x; `linspace`: the design i / (n - 1); `ring`, `ball`: uniform in the plane; `tokens`: "
        "equal masses on given points",
    )  # fmt: skip
    low: float = entry(Number(), "lower end of each side", -1.0, of=SIDES)
    high: float = entry(Number(), "upper end of each side", 1.0, of=SIDES)
    points: int | None = entry(
        Whole(2), "points, or quadrature nodes, a side; with `kinks`, of each interval; of a ring along its radius, "
        "and twice as many around", None, "grid 16, ring and ball 12, else 24, with `kinks` 5", LAWS[:-1],
    )  # fmt: skip
    kinks: Any = entry(
        Array(("K",)), "places on a side where functions have edges, as at centres of Laplace gates and borders of "
        "regions: quadrature nodes are graded towards them", None, "none", ("uniform",),
    )  # fmt: skip
    mean: float = entry(Number(), "mean of each coordinate", 0.0, of=("normal",))
    deviation: float = entry(Number(), "standard deviation of each coordinate, positive", 1.0, of=("normal",))
    inner: float = entry(Number(), "radius where it begins; that of `outer`: a circle", 0.0, of=("ring",))
    outer: float = entry(Number(), "radius where it ends", 1.0, of=("ring", "ball"))
    finite: bool = entry(Flag(), "put the law on its quadrature nodes", False, of=("uniform", "normal", "ring", "ball"))
    x: Any = entry(
        Array(("M", "d")), "the points; with `frozen.tokens` a row is query, logits, outputs", None, GIVEN,
        ("tokens",),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitTable:
    """``[fit]``: how each sample is fitted. None: as the model and the estimator have it."""

    atoms: Any = entry(OneOrTable(Whole(1)), "atoms of the fit; for a model with groups of atoms a number for each")
    estimator: str | None = entry(
        Choice(ESTIMATORS), "`mle`, `em` for mixtures; `steps`, a control: cut short after `max_iterations`", None,
        "regression `least-squares`, mixtures `mle`",
    )  # fmt: skip
    start: str = entry(Choice(STARTS), "start rule; `wide` and `truth` know the truth", "data")
    starts: int = entry(Whole(1, 10**4), "starts of a replicate", 8)
    budget: int = entry(
        Whole(1, 100),
        "starts spent on a replicate at most, in units of `starts` (those with a spare atom not counted)",
        4,
    )
    bound: float | None = entry(Number(1e-6), "bound of every free parameter", None, "by family")
    bias_bound: float | None = entry(Number(1e-6), "bound of biases and log-weights", None, "by family")
    max_iterations: int | None = entry(Whole(0), "iterations of the solver; 0 for `steps` only", None, "by estimator")
    tolerance: float | None = entry(
        Number(0.0), "log-likelihood units that a last step may still promise", None, "by estimator"
    )
    spread: Any = entry(
        OneOrTable(Number(0.0)), "noise of a start that knows the truth; or for each of some free coordinates", None,
        "`wide` 1, `truth` 0.01",
    )  # fmt: skip
    spread_exponent: float = entry(
        Number(0.0, 10.0), "start noise shrinks like a power of n, to see what that does", 0.0
    )
    optimizer: str | None = entry(Choice(OPTIMIZERS), "of `gradient`", None, "`adam`")
    learning_rate: float | None = entry(Number(1e-12), "of `gradient`", None, "0.01; `lbfgs` a line search")


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """``[sample]``: what is drawn."""

    mode: str | None = entry(
        Choice(MODES), "any n at the cost of one: means (regression) or counts on cells (density), on a finite law or "
        "without one; or observations one by one", None, "regression `exact`, density `iid`",
    )  # fmt: skip
    sizes: list[int] = entry(Sizes(LARGEST), "sample sizes n")
    replicates: int = entry(Whole(2, 10**7), "replicates a size")
    seed: int = entry(Whole(0, 2**63 - 1), "seed of all samples and starts", 0)
    truth: str = entry(
        Choice(TRUTHS), "`least-favourable`: at each n as far from the given one, in the loss of the first claim, as n "
        "observations cannot tell; `projection`: losses from the best measure of `fit.atoms` atoms, which may be fewer "
        "than the truth has", "given",
    )  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """``loss`` falls like (log n)^log_power n^-exponent over ``window``.

    kind: ``upper`` (at least so fast), ``exact`` (just so fast) or ``lower`` (no estimator has a polynomial
    rate; no slope can show that, it is judged by a pair of measures that no sample tells apart).
    mark: ``read`` or ``recalled``, a paper's claim whose text was read or not, or ``ours``. A verdict says so.
    margin: slopes within it of the claimed one count as the claimed one; a tenth of the exponent by default.
    """

    loss: str = entry(
        Text(), "`voronoi` (the model's exponents), `voronoi:r=2`, `voronoi:untranslated`, `function` (L2 of the law, "
        "or Hellinger), `mass`, `atoms:single`, `atoms:multi`, `atoms:weighted` (each atom counted with its mass), "
        "`atoms:3` (cells of just three), one block of those, `atoms:multi:key`, or several, `atoms:multi:key+value`",
    )  # fmt: skip
    kind: str = entry(Choice(KINDS), "at least so fast; just so fast; no polynomial rate", "upper")
    exponent: float | None = entry(Number(1e-6, 100.0), "of the rate n^-exponent", None, f"{GIVEN}, unless `lower`")
    log_power: float = entry(Number(), "of the factor (log n)^log_power", 0.0)
    window: tuple[float, float] = entry(Array((2,)), "least and largest n", (0.0, float("inf")), "all sizes")
    mark: str = entry(
        Choice(MARKS), "whose it is: a paper's, its text read or recalled from memory, or one's own", "ours"
    )
    margin: float | None = entry(
        Number(0.0), "slopes so close to the claimed one count as it", None, "a tenth of the exponent"
    )

    @property
    def tolerance(self) -> float:
        return self.margin if self.margin is not None else MARGIN * (self.exponent or 0.0)

    def log_shape(self, n) -> np.ndarray:
        """``log_shape`` of the claimed function."""
        return log_shape(n, self.exponent or 0.0, self.log_power)


def log_shape(n, exponent: float, log_power: float) -> np.ndarray:
    """Logarithm of (log n)^log_power n^-exponent."""
    logs = np.log(np.asarray(n, float))
    power = log_power * np.log(logs) if log_power else 0.0  # log log 1 is not defined
    return power - exponent * logs


# Every table of a study file, in the order of the reference.
TABLES: dict[str, type] = {
    "model": ModelTable, "model.frozen": FrozenTable, "model.projection": ProjectionTable,
    "model.network": NetworkTable, "truth": TruthTable, "law": LawTable, "fit": FitTable, "sample": SampleTable,
    "claim": Claim,
}  # fmt: skip
