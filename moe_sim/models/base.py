"""What a regression model must say about itself. It is written for ONE sample; passes do the batching."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from moe_sim.measure import MixingMeasure

Parameters = dict[str, np.ndarray]


class RegressionModel(ABC):
    """``Y = mean(params, X) + noise``, the noise normal with standard deviation ``noise`` a coordinate.

    Parameters are a dict of named float arrays; the names are those of a study's ``[truth]`` table.
    Instances are compared by identity, since jitted code closes over them.

    dimension, outputs: the dimensions of x and of y.
    exponents: per block of the measure, the exponents of the Voronoi loss in cells of 1, 2, ... atoms
        (the last one serves all larger cells).
    gauge: what leaves the function as it is: None, or the name of the block that may be translated along
        with the log-weights (``""``: the log-weights alone).
    mass: the name of the parameter that holds the log-weights.
    """

    dimension: int
    outputs: int
    noise: float
    exponents: dict[str, tuple[float, ...]]
    gauge: str | None = None
    mass: str = "bias"

    @abstractmethod
    def shapes(self, atoms: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter array of a model with ``atoms`` learned experts."""

    @abstractmethod
    def box(self, atoms: int, bound: float, bias_bound: float) -> tuple[Parameters, Parameters]:
        """Lower and upper bound of every parameter: the compact set that the theory asks for."""

    @abstractmethod
    def mean(self, params, x):
        """f_G(x) for one x of shape (dimension,): shape (outputs,)."""

    @abstractmethod
    def measure(self, params) -> MixingMeasure:
        """The mixing measure of the parameters."""

    def known(self) -> Parameters:
        """True values of parameters that a study need not give because the model knows them."""
        return {}

    def cover(self, params: Parameters, atoms: np.ndarray) -> Parameters:
        """Parameters whose atom i sits on atom ``atoms[i]`` of ``params``, masses shared: the same function."""
        shared = {name for name, shape in self.shapes(1).items() if shape == self.shapes(2)[name]}
        found = {k: np.array(v) if k in shared else np.asarray(v)[atoms] for k, v in params.items()}
        found[self.mass] = found[self.mass] - np.log(np.bincount(atoms)[atoms])
        return found

    def split(self, params: Parameters, atom: int, step: float) -> Parameters | None:
        """Parameters with ``atom`` split in two, ``step`` apart, that give the very same function; or None.

        A model for which this exists at step > 0 has no rate for its parameters once over-specified.
        """
        return None
