"""moe_sim: the numerical laboratory for the estimation theory of mixtures of experts.

Importing it switches JAX to double precision, everywhere in the process: rates over twelve decades of n cannot
be measured in single precision. Unless JAX has started already, every CPU core becomes a JAX device.
"""

from moe_sim import _engine as _engine
from moe_sim.data.covariates import Grid, Law, Linspace, Normal, Quadrature, Tokens, Uniform
from moe_sim.data.draw import draw
from moe_sim.errors import InputError
from moe_sim.fitting.estimate import Estimate, fit
from moe_sim.fitting.multistart import FitOptions, Fits, Fitter
from moe_sim.losses.voronoi import Loss, evaluate, parse_loss
from moe_sim.models.base import MixtureModel, Model, RegressionModel
from moe_sim.models.gaussian_gated import GaussianGated
from moe_sim.models.measure import MixingMeasure
from moe_sim.models.prefix import Frozen, PrefixModel
from moe_sim.models.prefix_mixture import PrefixMixture
from moe_sim.models.softmax_gaussian import SoftmaxGaussian
from moe_sim.rates.judge import judge
from moe_sim.rates.verdicts import Verdict
from moe_sim.simulation.adaptive import run_until
from moe_sim.simulation.predictions import check_model, constants, modulus
from moe_sim.simulation.runner import Results, load_results, run, run_controls
from moe_sim.study.schema import Claim
from moe_sim.study.study import Study, load_study, registry

__all__ = [
    "Claim", "Estimate", "FitOptions", "Fits", "Fitter", "Frozen", "GaussianGated", "Grid", "InputError", "Law",
    "Linspace", "Loss", "MixingMeasure", "MixtureModel", "Model", "Normal", "PrefixMixture", "PrefixModel",
    "Quadrature", "RegressionModel", "Results", "SoftmaxGaussian", "Study", "Tokens", "Uniform", "Verdict",
    "check_model", "constants", "draw", "evaluate", "fit", "judge", "load_results", "load_study", "modulus",
    "parse_loss", "registry", "run", "run_controls", "run_until",
]  # fmt: skip
