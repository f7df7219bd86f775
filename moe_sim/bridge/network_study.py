"""Studies of whole transformers: prefixes planted in a frozen network, and how well its output tells where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moe_sim.bridge.head import TRUTH, sentences, short_name
from moe_sim.bridge.transformer import ARMS
from moe_sim.rates.judge import judge
from moe_sim.rates.verdicts import Verdict
from moe_sim.simulation.progress import Progress
from moe_sim.simulation.runner import Results, run
from moe_sim.study.study import Study

NOISE = 0.1  # of each number of the label
SIZES = [1e6, 1e7, 1e8, 1e9, 1e10]
REPLICATES = 40
INPUTS = 8


def network_study(network: str, arm: str, atoms: int, layers: Sequence[int], texts: Sequence[str]) -> Study:
    """Two prefixes planted in each of ``layers``, ``atoms`` fitted there, and the claims of the theory.

    network: its name or folder. arm: see ``transformer``. texts: the inputs; all are as likely.
    """
    over, free = atoms > len(TRUTH), arm == "free"
    ends = [""] if len(layers) == 1 else [str(layer) for layer in layers]
    names = ("key", "value") if free else ("prefix",)
    truth = {
        f"{name}{end}": [0.0] * len(TRUTH) if name == "bias" else TRUTH for end in ends for name in ("bias", *names)
    }
    tied = {"exponent": 0.5, "log_power": 0.5}
    claims: list[dict[str, Any]] = [{"loss": "function", "exponent": 0.5}, {"loss": "voronoi", **tied}]
    if over and not free:
        claims += [{"loss": "atoms:multi", "exponent": 0.25, "log_power": 0.25}, {"loss": "atoms:single", **tied}]
    if over and free:
        claims.append({"loss": "voronoi:r=2", "kind": "lower"})
    where = "-".join(map(str, layers))
    return Study(
        name=f"{short_name(network)}-layer{where}-{arm}-{'over' if over else 'exact'}",
        model={
            "family": "transformer", "network": network, "arm": arm, "layers": list(layers), "noise": NOISE,
            "texts": list(texts),
        },
        truth=truth,
        law={"name": "tokens", "x": [[float(i)] for i in range(len(texts))]},
        fit={
            "atoms": atoms if len(layers) == 1 else {f"layer{layer}": atoms for layer in layers},
            "start": "data", "starts": 3, "budget": 8, "bound": 4.0, "bias_bound": 3.0,
        },
        sample={"mode": "exact", "sizes": SIZES, "replicates": REPLICATES, "seed": 0},
        claim=[claim | {"mark": "ours"} for claim in claims],
    )  # fmt: skip


def network_studies(
    network: str, layers: Sequence[int], texts: Sequence[str] | None = None, arms: Sequence[str] = ARMS
) -> list[Study]:
    """All arms with as many atoms as the truth and with one more; a prompt enters at the first of the layers.

    texts: the inputs; by default the 8 shortest lines of the Zen of Python.
    """
    chosen = _shortest(sentences(), INPUTS) if texts is None else list(texts)
    return [
        network_study(network, arm, atoms, layers[:1] if arm == "prompt" else layers, chosen)
        for arm in arms for atoms in (len(TRUTH), len(TRUTH) + 1)
    ]  # fmt: skip


def run_network(
    studies: Sequence[Study], runs: Path, progress: Callable[[Progress], None] | None = None, **changes: Any
) -> dict[str, tuple[Results, list[Verdict]]]:
    """Results and verdicts of the studies, by the end of their names (``simple-over``); resumed below ``runs``.

    changes: of ``Study.replace``. A folder is called by the digest too: other inputs make other studies.
    """
    found = {}
    for study in studies:
        results = run(study.replace(**changes), runs / f"{study.name}-{study.digest[:8]}", progress)
        found["-".join(study.name.split("-")[-2:])] = (results, judge(results))
    return found


def _shortest(texts: Sequence[str], count: int) -> list[str]:
    """The ``count`` shortest of the texts, in their order."""
    kept = sorted(sorted(range(len(texts)), key=lambda i: (len(texts[i].split()), len(texts[i]), i))[:count])
    return [texts[i] for i in kept]
