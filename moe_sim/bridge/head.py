"""Rates on real attention heads: frozen experts are the tokens of real sentences, in a head of a pretrained model.

A prefix is one more token, whose state is p = p0 + U z: p0 the mean state of the tokens, U the r directions in which
a state moves the gates of the queries most, scaled so that a unit step moves them by one standard deviation. With the
head's matrices W_K, W_V and score scale s, relative to p0 (a softmax does not see what is added to all its logits, and
what is added to all outputs is added to their mean), the head's output at query q is

    softmax( s q'(k_t - k_0), s q'(W_K'U z_l) + b_l ) @ ( v_t - v_0, W_V'U z_l ),   k_0 = W_K'p0 + b_K, v_0 likewise.

It is observed in r of its h coordinates, an orthonormal basis P of what values W_V'U z can be: a ``PrefixModel`` with
B = s W_K'U, C = P'W_V'U. Tied keys and values have one z for both; free ones have their own each. Real attention has
b_l = 0; the theory fits the b_l too. Tokens keep the positions and states that they have without prefixes.
theory_notes/bridge.md.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_sim.bridge import heads
from moe_sim.bridge.modules import one_thread
from moe_sim.errors import InputError
from moe_sim.rates.judge import judge
from moe_sim.rates.verdicts import Verdict
from moe_sim.simulation.progress import Progress
from moe_sim.simulation.runner import Results, run
from moe_sim.study.study import Study

DIRECTIONS = 2  # r: dimensions that a prefix may move in
LONGEST = 14  # tokens of a sentence at most; longer ones are left out, every query carries all tokens of its sentence
NOISE = 0.3
TRUTH = [[1.5, 0.5], [-1.0, 1.2]]  # z of the planted prefixes, that of the registry's claims
SIZES = [1e6, 1e7, 1e8, 1e9, 1e10]
REPLICATES = 100
TIES = {"shared": "shared-linear", "independent": "independent"}
_DECIMALS = 6  # of what a study says of the head: machines differ in the last bits of a transformer's states
_MOST = 1000  # tokens in all: each is a row of the study file


@dataclass(frozen=True, eq=False)
class RealHead:
    """One head on the M tokens (all of them queries) of sentences of up to T tokens; see the module for the formula.

    x: (M, h + T + T r) query, frozen logits and frozen outputs by token, in the coordinates ``basis``.
    key_projection: B (h, r). value_projection: C (r, r). origin: p0 (m,). directions: U (m, r). basis: (h, r), the
    orthonormal directions of the head's output that values can move in. shift: v_0 (h,).
    """

    model: str
    layer: int
    index: int
    tokens: int
    x: np.ndarray
    key_projection: np.ndarray
    value_projection: np.ndarray
    origin: np.ndarray
    directions: np.ndarray
    basis: np.ndarray
    shift: np.ndarray


def sentences() -> list[str]:
    """The Zen of Python: real sentences that every Python carries."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints itself when it is imported
        import this
    return [line for line in codecs.decode(this.s, "rot13").splitlines() if line]


def short_name(model: str) -> str:
    """What a folder or hub name is called in names of studies: its last part, in letters, digits and ``._-``."""
    last = Path(model).resolve().name if Path(model).exists() else model.rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", last).lstrip(".-")


def default_heads(model: Any) -> list[tuple[int, int]]:
    """(layer, head): the first head of the first, the middle and the last layer."""
    layers, _ = heads.layers_and_heads(model)
    return [(layer, 0) for layer in dict.fromkeys((0, layers // 2, layers - 1))]


def encode(tokenizer: Any, texts: list[str], device: Any = "cpu") -> dict[str, Any]:
    """Token ids and attention mask of the texts that have at most ``LONGEST`` tokens.

    Raises ``InputError`` where those are too few or too many tokens in all for a study.
    """
    short = [text for text in texts if len(tokenizer(text)["input_ids"]) <= LONGEST]
    inputs = tokenizer(short or [""], padding=True, return_tensors="pt").to(device)
    count, least = int(inputs["attention_mask"].sum()), 5 * (len(TRUTH) + 1)  # parameters of the largest fit
    if not short or not least <= count <= _MOST:
        raise InputError(
            f"{len(short)} of {len(texts)} sentences have at most {LONGEST} tokens, {count if short else 0} tokens in "
            f"all: pass sentences of that length, with {least} to {_MOST} tokens in all"
        )
    return inputs


def real_head(name: str, model: Any, inputs: dict[str, Any], layer: int, index: int) -> RealHead:
    """Head ``index`` of a layer of ``model`` (float64) on encoded sentences. Raises ``InputError``.

    name: what the model is called in names of studies.
    """
    head = heads.head(model, layer, index)
    with one_thread():  # the number of threads moves last bits
        states = heads.attention_inputs(model, inputs)[layer]
    real = inputs["attention_mask"].cpu().numpy().astype(bool)  # (S, T)
    turn = heads.rotary(model, np.arange(real.shape[1]))
    query = np.einsum("sih,ihg->sig", states @ head.query + head.query_bias, turn)
    origin = states[real].mean(axis=0)
    directions = _directions(head, query[real])
    basis = np.linalg.qr(head.value.T @ directions)[0]
    # Keys turn with their token where positions are rotary, a prefix's does not: k_0 is then seen by prefixes alone.
    key = np.einsum("sth,thg->stg", states @ head.key + head.key_bias, turn) - (origin @ head.key + head.key_bias)
    logits = head.scale * np.einsum("sih,sth->sit", query, key)
    seen = np.broadcast_to(real[:, None, :], logits.shape)
    if heads.is_causal(model):
        seen = seen & np.tri(real.shape[1], dtype=bool)
    logits = np.where(seen, logits, -1e30)
    outputs = ((states - origin) @ head.value) @ basis  # (S, T, r)
    by_query = np.broadcast_to(outputs[:, None], (*logits.shape, DIRECTIONS)).reshape(*logits.shape[:2], -1)
    x = np.concatenate([query, logits, by_query], axis=2)[real]
    return RealHead(
        name, layer, index, real.shape[1], np.round(x, _DECIMALS),
        np.round(head.scale * head.key.T @ directions, _DECIMALS),
        np.round(basis.T @ head.value.T @ directions, _DECIMALS),
        origin, directions, basis, origin @ head.value + head.value_bias,
    )  # fmt: skip


def _directions(head: heads.Head, query: np.ndarray) -> np.ndarray:
    """U (m, r): what moves the gates s q'(W_K'u) of the queries (M, h) most, by one standard deviation a unit."""
    centred = (query - query.mean(axis=0)) / np.sqrt(len(query))
    return heads.leading(head.scale * np.linalg.qr(centred)[1] @ head.key.T, DIRECTIONS)


def head_study(real: RealHead, structure: str, atoms: int) -> Study:
    """The study of a real head: two prefixes planted, ``atoms`` fitted, the claims of the theory.

    structure: ``shared`` (one z for key and value) or ``independent``.
    """
    over, shared = atoms > len(TRUTH), structure == "shared"
    blocks = {"prefix": TRUTH} if shared else {"key": TRUTH, "value": TRUTH}
    tied = {"exponent": 0.5, "log_power": 0.5}
    claims: list[dict[str, Any]] = [{"loss": "function", "exponent": 0.5}, {"loss": "voronoi", **tied}]
    if over and shared:
        claims.append({"loss": "atoms:multi", "exponent": 0.25, "log_power": 0.25})
        claims.append({"loss": "atoms:single", **tied})
    if over and not shared:
        claims.append({"loss": "voronoi:r=2", "kind": "lower"})
    return Study(
        name=f"{real.model}-layer{real.layer}-head{real.index}-{structure}-{'over' if over else 'exact'}",
        model={
            "family": "prefix", "structure": TIES[structure], "noise": NOISE, "frozen": {"tokens": real.tokens},
            "projection": {"key": real.key_projection, "value": real.value_projection},
        },
        truth={"bias": [0.0] * len(TRUTH), **blocks},
        law={"name": "tokens", "x": real.x},
        fit={"atoms": atoms, "start": "data", "starts": 6 if shared else 8, "bound": 6.0, "bias_bound": 3.0},
        sample={"mode": "exact", "sizes": SIZES, "replicates": REPLICATES, "seed": 0},
        claim=claims,
    )  # fmt: skip


def head_studies(real: RealHead) -> list[Study]:
    """Both structures, with as many atoms as the truth and with one more."""
    return [head_study(real, structure, atoms) for structure in TIES for atoms in (len(TRUTH), len(TRUTH) + 1)]


def run_head(
    real: RealHead, runs: Path, progress: Callable[[Progress], None] | None = None, **changes: Any
) -> dict[str, tuple[Results, list[Verdict]]]:
    """Results and verdicts of the head's studies, by the end of their names (``shared-over``); resumed below ``runs``.

    changes: of ``Study.replace``. A folder is called by the digest too: other sentences make other studies.
    """
    found = {}
    for study in head_studies(real):
        results = run(study.replace(**changes), runs / f"{study.name}-{study.digest[:8]}", progress)
        found["-".join(study.name.split("-")[-2:])] = (results, judge(results))
    return found
