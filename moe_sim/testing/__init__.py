"""The contract that a model keeps: ``check_model`` tries all of it, on a user's model as on our own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.fitting.multistart import FitOptions
from moe_sim.models.base import Atoms, Density, Model, ModelError, Parameters, Regression
from moe_sim.models.mixture import MixtureModel
from moe_sim.testing import declaration, densities, gradients, sameness
from moe_sim.testing.asking import asked
from moe_sim.testing.probe import POINTS, Probe
from moe_sim.theory.identifiability import tangent
from moe_sim.theory.search import owners, ways

__all__ = ["ModelReport", "check_model"]


@dataclass(frozen=True)
class ModelReport:
    """What ``check_model`` found of a model that keeps the contract.

    checked: the properties that hold. skipped: those that the model does not have, or that cannot be looked at, and
    why. flat: directions of the free coordinates that move the measure at the truth and leave the function exactly as
    it is, and that no gauge declares: along them there is no rate.
    """

    model: str
    checked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    flat: tuple[str, ...] = field(default=())


def check_model(
    model: Model, truth: Parameters, law: Law | None, atoms: Atoms | None = None, seed: int = 0
) -> ModelReport:
    """Hold a model to what ``Model`` promises, near a truth and within its default bounds.

    truth: named arrays. law: of x, None for a joint density. atoms: as many as are fitted; by default one of each
    group more than the truth has. Raises ``ModelError``, which names the parameter or method, the property that fails,
    the value found and the remedy. What is drawn has a fixed seed; with another one a sound model is refused with
    probability 1e-4.

    >>> import moe_sim as ms
    >>> model = ms.SoftmaxGaussian(1, 1)
    >>> truth = {"gate_bias": [0.2, 0.0], "gate_slope": [[1.0], [0.0]], "slope": [[1.0], [-1.0]],
    ...          "intercept": [0.5, -0.5], "variance": [0.3, 0.4]}
    >>> ms.testing.check_model(model, truth, ms.Uniform(1)).flat
    ()
    """
    if not isinstance(model, Model):
        raise ModelError(f"{model!r} is no model: pass an object of a class that extends ms.Regression or ms.Density")
    truth = declaration.read_truth(model, truth)
    declaration.check_shapes(model, truth, law)
    sizes = {group: size + 1 for group, size in model.sizes_of(truth).items()} if atoms is None else model.sizes(atoms)
    probe = Probe(model, truth, law, sizes, seed)
    declaration.check_free_coordinates(probe)
    densities.check_total(probe)
    declaration.check_pure(probe)
    checked = ["declaration", "free coordinates", "pure functions of arrays", "order of the atoms", "gauge"]
    sameness.check_permutation(probe)
    sameness.check_gauge(probe)
    held = {
        "canonical representative": sameness.check_canonical(probe),
        "split atoms": bool(sameness.check_copies(probe)),
    }
    gradients.check_gradients(probe, _on_more_atoms(probe))
    if isinstance(model, Regression):
        densities.check_noise(probe)
    else:
        densities.check_density(probe)
    held |= {"gradients": True, "density": isinstance(model, Density), "draws": True}
    flat = _flat(probe)
    held |= {"flat directions": flat is not None}
    checked += [name for name, has in held.items() if has]
    skipped = [name for name, has in held.items() if not has]
    return ModelReport(type(model).__name__, tuple(checked), tuple(skipped), tuple(flat or ()))


def _on_more_atoms(probe: Probe) -> Parameters:
    """The truth on as many atoms as are fitted; where no split keeps the function, with atoms repeated as they are."""
    model, truth, true = probe.model, probe.truth, probe.model.sizes_of(probe.truth)
    every = ways(model, truth, probe.atoms)
    if every:
        with asked(model, "overfit"):
            return model.overfit(truth, np.array(owners(every[0])))
    rows = {group: np.arange(size) % true[group] for group, size in probe.atoms.items()}
    return {
        name: truth[name] if p.shared else truth[name][rows[p.group or model.groups[0]]]
        for name, p in probe.declared.items()
    }


def _flat(probe: Probe) -> list[str] | None:
    """Flat directions at the truth; None where the integrals of a model are not known."""
    model, true = probe.model, probe.model.sizes_of(probe.truth)
    if model.joint and not isinstance(model, MixtureModel):
        return None
    free = sum(int(np.prod(shape)) for shape in model.free_shapes(true).values())
    bound, bias_bound = model.default_bounds
    options = FitOptions(true, model.estimators[0], bound=bound, bias_bound=bias_bound)
    with asked(model, probe.method):
        return tangent(
            model, probe.truth, probe.thin(max(POINTS, 2 * free)), options, (1,) * model.count(probe.truth)
        ).flat
