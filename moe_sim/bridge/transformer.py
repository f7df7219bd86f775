"""The theorem through a whole network: prefixes planted in layers of a frozen transformer, seen by what it says.

A prefix of layer l is p = p0 + U z (``frozen.place``), of mass e^b, in one of four arms:

    simple  one z: key W_K p + b_K, value W_V p + b_V in all heads of the layer
    free    one z for the key, one for the value
    deep    key and value of p0 + U s(A z) and p0 + U s(B z), A and B known, s = 2 tanh
    prompt  a token more, which enters the layer as p, and every layer above as what the one below made of it

The label is the network's output (mean of the last states; of images the class token beside that mean) plus normal
noise. x is the number of one of finitely many inputs. ``Transformer`` is a ``Regression`` like any other:
family = "transformer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_sim.bridge import require
from moe_sim.bridge.network import Layer, Pooling, log_mass
from moe_sim.errors import InputError, number, one_of, whole
from moe_sim.models.base import Parameters, Regression
from moe_sim.models.parameter import Parameter

ARMS = ("simple", "free", "deep", "prompt")
_DEEP = np.array([[[0.6, 0.2], [-0.3, 0.5]], [[-0.4, 0.5], [0.5, 0.3]]])  # A and B of r = 2


class Transformer(Regression):
    """See the module.

    network: a name (``pretrained.load``). layers: where prefixes are planted, from 0; ``prompt`` enters at one. texts:
    the inputs. noise: standard deviation of each number of the label. directions: r. Raises ``InputError``.
    """

    dimension = 1

    def __init__(
        self, network: str, arm: str, layers: Sequence[int], noise: float, texts: Sequence[str], directions: int = 2
    ):
        require()
        from moe_sim.bridge import frozen

        self.arm = one_of("model.arm", arm, ARMS)
        self.planted = _planted(layers, arm)
        self.noise, r = number("model.noise", noise, 0.0), whole("model.directions", directions, 1)
        if arm == "deep" and r != 2:
            raise InputError(f"model.directions = {r}: the known network of the arm deep has 2, pass that")
        found = frozen.text_network(network, tuple(texts), self.planted[0])
        places = [frozen.place(found, layer, r, residual=arm == "prompt") for layer in self.planted]
        self.origins, self.ways = [p.origin for p in places], [p.directions for p in places]
        self.layers: list[Layer] = list(found.layers)
        if arm == "prompt" and self.layers[0].causal:
            raise InputError(
                f"model.network = {network!r}: prompts of a causal network see only those before them and are no "
                "mixing measure: pass another arm, or a network whose tokens all see each other"
            )
        self.pooling: Pooling = found.pooling
        self.states, self.real = found.states, found.real
        self.directions, self.outputs = r, found.states.shape[2] * (2 if found.pooling.vision else 1)

    def parameters(self):
        declared: dict[str, Parameter] = {}
        blocks = {"key": (1.0,), "value": (1.0,)} if self.arm == "free" else {"prefix": (1.0, 2.0)}
        for end, group in zip(self._ends, self._groups, strict=True):
            declared[f"bias{end}"] = Parameter((), bound="bias_bound", exponents=None, group=group)
            for name, exponents in blocks.items():
                declared[f"{name}{end}"] = Parameter((self.directions,), exponents=exponents, group=group)
        return declared

    @property
    def _ends(self) -> list[str]:
        """What names of parameters end with: the layer, where there are several."""
        return [""] if len(self.planted) == 1 else [str(layer) for layer in self.planted]

    @property
    def _groups(self) -> list[str | None]:
        return [None] if len(self.planted) == 1 else [f"layer{layer}" for layer in self.planted]

    def places(self, params: Parameters, where: int):
        """Log-masses (L,) of the prefixes of planted layer number ``where``, and the places (L, r) in the plane of its
        directions that keys, and that values, are made of."""
        end = self._ends[where]
        mass = jnp.asarray(params[f"bias{end}"])
        if self.arm == "free":
            return mass, jnp.asarray(params[f"key{end}"]), jnp.asarray(params[f"value{end}"])
        z = jnp.asarray(params[f"prefix{end}"])
        if self.arm == "deep":
            return mass, *(2 * jnp.tanh(z @ matrix.T) for matrix in _DEEP)
        return mass, z, z

    def state(self, place, where: int):
        """The states p0 + U z (..., m) of places z (..., r)."""
        return self.origins[where] + place @ self.ways[where].T

    def mean(self, params, x):
        index = x[0].astype(int)
        return self.output(params, jnp.asarray(self.states)[index], jnp.asarray(self.real)[index])

    def output(self, params: Parameters, states, real):
        """What the network says of one input: states (T, m) that enter the first planted layer, real (T,)."""
        return self.run(params, states, real)[0]

    def run(self, params: Parameters, states, real, pushes: Mapping[int, Any] | None = None):
        """``output``, and the states that enter each layer, by its number. pushes: added to what heads of a layer give
        (T, heads, h), by its number; where prompts live, rows are tokens and prompts."""
        masses, tokens, pushes, entering = log_mass(real), len(states), pushes or {}, {}
        if self.arm == "prompt":
            mass, place, _ = self.places(params, 0)
            states = jnp.concatenate([states, self.state(place, 0)])
            masses = jnp.concatenate([masses, mass])
        for number_, layer in enumerate(self.layers, self.planted[0]):
            entering[number_] = states
            push, prefixes = pushes.get(number_, 0.0), tuple[Any, ...]()
            if self.arm != "prompt" and number_ in self.planted:
                where = self.planted.index(number_)
                mass, *pair = self.places(params, where)
                key, value = (self.state(place, where) for place in pair)
                prefixes = layer.keys(key), layer.values(value), mass
            states = layer(states, masses, *prefixes, push=push)
        return self.pooling(states[:tokens], real), entering

    @cached_property
    def sketch(self) -> Regression | None:  # type: ignore[override]
        """See ``sketch``."""
        from moe_sim.bridge.sketch import Sketch

        return Sketch(self)

    def split(self, params: Parameters, atom: int, step: float) -> Parameters | None:
        """Free: the same key twice, values ``step`` apart about the old one, half the mass each. None in other arms."""
        if self.arm != "free" or len(self.planted) > 1:
            return None
        found = {k: np.concatenate([v, v[atom : atom + 1]]) for k, v in params.items()}
        found["bias"][[atom, -1]] -= np.log(2.0)
        found["value"][[atom, -1], 0] += np.array([step, -step]) / 2
        return found


def _planted(layers: Sequence[int], arm: str) -> tuple[int, ...]:
    found = [whole("model.layers", layer, 0) for layer in layers]
    if not found or sorted(set(found)) != found:
        raise InputError(f"model.layers = {list(layers)}: pass layers from 0, each once, in order")
    if arm == "prompt" and len(found) > 1:
        raise InputError(f"model.layers = {found}: a prompt enters at one layer and lives on, pass that one")
    return tuple(found)
