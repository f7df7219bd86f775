"""Parts put together: shared and routed experts, a frozen density with experts beside it, gates of two levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array, number, one_of, whole
from moe_sim.models import moe
from moe_sim.models.base import Density, Parameters
from moe_sim.models.domains import GATE, REAL, Domain
from moe_sim.models.experts import Expert
from moe_sim.models.gates import Constant, Gate, Laplace, Softmax, linear_parameters, logits
from moe_sim.models.moe import Composed, MoeDensity
from moe_sim.models.responses import Gaussian, LeastSquares, Response


class SharedRouted(Density):
    """proportion * shared + (1 - proportion) * routed, each a mixture of its own (arXiv 2505.10860, section 2).

    Parameters are those of the two with ``shared_`` or ``routed_`` before their names; atoms are of two groups.
    """

    def __init__(self, shared: MoeDensity, routed: MoeDensity, proportion: float = 0.5):
        self.shared, self.routed, self.proportion = shared, routed, proportion
        self.dimension, self.outputs = routed.dimension, routed.outputs

    @property
    def parts(self) -> dict[str, MoeDensity]:
        return {"shared": self.shared, "routed": self.routed}

    def own(self, params: Parameters) -> list[tuple[MoeDensity, Parameters]]:
        """Each part with its parameters, under its own names."""
        return [(part, {k: params[f"{group}_{k}"] for k in part.parameters()}) for group, part in self.parts.items()]

    def _joined(self, found) -> Parameters:
        named = zip(self.parts, found, strict=True)
        return {f"{group}_{k}": value for group, values in named for k, value in values.items()}

    def parameters(self):
        return {
            f"{group}_{k}": replace(p, group=group)
            for group, part in self.parts.items()
            for k, p in part.parameters().items()
        }

    @property
    def support(self):  # type: ignore[override]
        return self.routed.support

    @property
    def masses(self):
        return {group: f"{group}_{part.gate.mass}" for group, part in self.parts.items()}

    @property
    def variances(self):
        return tuple(
            f"log_{group}_{name.removeprefix('log_')}" for group, part in self.parts.items() for name in part.variances
        )

    def log_weight(self, params):
        return jnp.concatenate([part.log_weight(mine) for part, mine in self.own(params)])

    def _log_proportions(self):
        return jnp.log(jnp.stack([jnp.asarray(self.proportion), 1.0 - jnp.asarray(self.proportion)]))

    def _by_part(self, of):
        return jnp.concatenate([log + v for log, v in zip(self._log_proportions(), of, strict=True)])

    def log_shares(self, params, x):
        return self._by_part([part.log_shares(mine, x) for part, mine in self.own(params)])

    def log_components(self, params, x, y):
        return self._by_part([part.log_components(mine, x, y) for part, mine in self.own(params)])

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))

    def spread(self, params, x):
        found = [part.spread(mine, x) for part, mine in self.own(params)]
        return tuple(jnp.concatenate(v) for v in zip(*found, strict=True))

    def draw(self, params, key, x):
        key_k, key_y = jax.random.split(key)
        shared, routed = (part.draw(mine, key_y, x) for part, mine in self.own(params))
        return jnp.where(jax.random.uniform(key_k) < self.proportion, shared, routed)

    def overfit(self, params, atoms):
        atoms, before, found = np.asarray(atoms), 0, []
        for part, mine in self.own(params):
            count = part.count(mine)
            found.append(part.overfit(mine, atoms[(atoms >= before) & (atoms < before + count)] - before))
            before += count
        return self._joined(found)

    def divisible(self, params):
        return np.concatenate([part.divisible(mine) for part, mine in self.own(params)])

    @property
    def has_canonical(self):
        return any(part.has_canonical for part in self.parts.values())

    def canonical(self, params):
        return self._joined([part.canonical(mine) for part, mine in self.own(params)])


class BesideFrozen(Gate):
    """exp(u_i) / (1 + sum_j exp(u_j)): what a softmax leaves to experts beside a frozen one of logit 0."""

    normalised = False

    def parameters(self, dimension):
        return linear_parameters(dimension, REAL)

    def log_rest(self, params, x):
        """Logarithm of the weight of the frozen one."""
        return -jax.nn.logsumexp(jnp.append(logits(params, x), 0.0))

    def log_weights(self, params, x):
        return logits(params, x) + self.log_rest(params, x)


LAWS = ("same", "laplace")


class Contaminated(MoeDensity):
    """(1 - sum_i p_i(x)) f0(y | x) + sum_i p_i(x) p(y | value_i(x)), weights of ``BesideFrozen``: with one atom
    p(x) = S(gate_slope'x + gate_bias) (arXiv 2505.18455). The mass of an atom is exp(gate_bias).

    frozen: parameters of expert and response of f0, all known. law: that of the response, or ``laplace``, of mean the
    value of the expert and of that variance.
    """

    gate: BesideFrozen

    def __init__(self, expert: Expert, response: Response, frozen: Parameters, law: str, dimension: int,
                 outputs: int = 1, given: moe.Exponents | None = None):  # fmt: skip
        super().__init__(BesideFrozen(), expert, response, dimension, outputs, given)
        self.frozen, self.law = frozen, law

    def frozen_log_density(self, x, y):
        """log f0(y | x)."""
        value = self.expert.value(self.frozen, x)
        if self.law == "same":
            return self.response.log_density(self.frozen, value, y)
        _, deviation = self.response.spread(self.frozen, value)
        scale = deviation[0] / jnp.sqrt(2.0)
        return -jnp.sum(jnp.log(2 * scale) + jnp.abs(y - value) / scale)

    def log_components(self, params, x, y):
        known = self.gate.log_rest(params, x) + self.frozen_log_density(x, y)
        return jnp.append(super().log_components(params, x, y), known)

    def spread(self, params, x):
        centre, scale = super().spread(params, x)
        middle, deviation = self.response.spread(self.frozen, self.expert.value(self.frozen, x))
        # The tails of a Laplace law are long: exp(-sqrt(2) t) at t deviations.
        return jnp.concatenate([centre, middle]), jnp.concatenate(
            [scale, deviation * (3.0 if self.law == "laplace" else 1.0)]
        )

    def draw(self, params, key, x):
        key_k, key_y = jax.random.split(key)
        value = self.expert.value(self.frozen, x)
        if self.law == "same":
            known = self.response.draw(self.frozen, key_y, value)
        else:
            _, deviation = self.response.spread(self.frozen, value)
            known = value + deviation[0] / jnp.sqrt(2.0) * jax.random.laplace(key_y, value.shape)
        frozen = jnp.log(jax.random.uniform(key_k)) < self.gate.log_rest(params, x)
        return jnp.where(frozen, known, super().draw(params, key_y, x))


class GroupGate(Domain):
    """Any number, the last row of each of so many groups of equal size 0."""

    def __init__(self, groups: int):
        self.groups = groups

    def shapes(self, shape):
        return ((shape[0] - self.groups, *shape[1:]),)

    def _grouped(self, value):
        return value.reshape(self.groups, -1, *value.shape[1:])

    def unconstrain(self, value):
        grouped = self._grouped(value)
        return ((grouped[:, :-1] - grouped[:, -1:]).reshape(-1, *value.shape[1:]),)

    def constrain(self, *free):
        xp = free[0].__array_namespace__()
        rest = free[0].shape[1:]
        if not free[0].shape[0]:
            return xp.zeros((self.groups, *rest))
        grouped = xp.concatenate([self._grouped(free[0]), xp.zeros((self.groups, 1, *rest))], axis=1)
        return grouped.reshape(-1, *rest)


class TwoLevel(Gate):
    """outer_g(x) inner_{i|g}(x), atoms in groups of equal size, one after another (arXiv 2410.02935).

    Parameters are those of the inner gate, pinned in each group, and one row a group of those of the outer gate, with
    ``outer_`` before their names, which the loss takes as shared. Canonical: groups in the order of the first
    coordinate of the last outer parameter, the last pinned; within a group masses that add up to 1, and mean 0 of what
    else may be translated.
    """

    def __init__(self, groups: int, outer: Gate, inner: Gate):
        self.groups, self.outer, self.inner = groups, outer, inner

    def parameters(self, dimension):
        inner = {
            name: replace(p, domain=GroupGate(self.groups)) if p.domain is GATE else p
            for name, p in self.inner.parameters(dimension).items()
        }
        outer = {
            f"outer_{name}": replace(p, shape=(self.groups, *p.shape), shared=True, exponents=(1.0,))
            for name, p in self.outer.parameters(dimension).items()
        }
        return inner | outer

    @property
    def gauge(self):
        return None

    def kinds(self, count):
        if count % self.groups or not count:
            raise InputError(
                f"{count} atoms in {self.groups} groups of equal size: pass as many for each, truth and fit.atoms alike"
            )
        return np.repeat(np.arange(self.groups), count // self.groups)

    def _outer(self, params):
        return {name: jnp.asarray(params[f"outer_{name}"]) for name in self.outer.parameters(1)}

    def _inner(self, params):
        """Parameters of the inner gates, a group a row."""
        rows = {name: jnp.asarray(params[name]) for name in self.inner.parameters(1)}
        return {name: v.reshape(self.groups, -1, *v.shape[1:]) for name, v in rows.items()}

    def log_weights(self, params, x):
        inner = jax.vmap(lambda group: self.inner.log_weights(group, x))(self._inner(params))
        return (self.outer.log_weights(self._outer(params), x)[:, None] + inner).ravel()

    def _order_of_groups(self, params):
        return jnp.argsort(next(reversed(self._outer(params).values())).reshape(self.groups, -1)[:, 0])

    def order(self, params):
        rows = jnp.arange(len(params[self.mass])).reshape(self.groups, -1)
        return rows[self._order_of_groups(params)].ravel()

    def canonical(self, params):
        """Of parameters whose atoms are in their ``order``."""
        order = self._order_of_groups(params)
        outer = {
            name: v[order] - (v[order][-1] if p.domain is GATE else 0.0)
            for (name, p), v in zip(self.outer.parameters(1).items(), self._outer(params).values(), strict=True)
        }
        found = self._inner(params)
        log_share = jax.nn.log_softmax(found[self.mass], axis=1)
        for name, p in self.inner.parameters(1).items():
            if p.domain is GATE and name != self.mass:
                found[name] = found[name] - jnp.einsum("gi,gid->gd", jnp.exp(log_share), found[name])[:, None]
        found[self.mass] = log_share
        rows = {name: v.reshape(-1, *v.shape[2:]) for name, v in found.items()}
        return params | rows | {f"outer_{name}": v for name, v in outer.items()}


LEVELS: dict[str, tuple[type, dict[str, type[Gate]]]] = dict.fromkeys(
    ("outer", "inner"), (Gate, {"softmax": Softmax, "laplace": Laplace})
)


class Family(NamedTuple):
    """See ``models``: what a module of one family has."""

    TABLE: dict[str, Any]
    REQUIRED: tuple[str, ...]
    build: Callable[[dict, dict], Density | Composed]


def _density(response: Response, name: Any) -> None:
    if isinstance(response, LeastSquares):
        raise InputError(f"model.response = {name!r} is no density: pass gaussian, multinomial, binomial or poisson")


def build_shared_routed(table: dict, truth: dict) -> SharedRouted:
    """The model of a study's ``[model]`` table. Raises ``InputError``."""
    proportion = number("model.proportion", table.get("proportion", 0.5), 1e-9, 1 - 1e-9)
    given = moe.given_exponents(table)
    for name in given:
        if not name.startswith(("shared_", "routed_")):
            raise InputError(f"model.exponents.{name}: names of parameters start with shared_ or routed_ here, add one")
    routed = _part("routed", table, truth)
    # Shared experts need not say the dimension of x.
    sizes = {"dimension": routed.dimension, "outputs": routed.outputs}
    return SharedRouted(_part("shared", table | sizes, truth), routed, proportion)


def _part(group: str, table: dict, truth: dict) -> MoeDensity:
    """The mixture of one group, from what is named after it in truth and exponents."""

    def own(values: dict) -> dict:
        return {k.removeprefix(f"{group}_"): v for k, v in values.items() if k.startswith(f"{group}_")}

    mine, prefix = own(truth), f"{group}_" if f"{group}_expert" in table else ""
    try:
        gate = Constant() if group == "shared" else moe.part_of("gate", table, mine)
        expert, response = moe.part_of("expert", table, mine, prefix), moe.part_of("response", table, mine)
        _density(response, table["response"])
        table = table | {"exponents": own(table.get("exponents", {}))}
        return cast(MoeDensity, moe.compose(table, mine, gate, expert, response))
    except InputError as error:
        raise InputError(str(error).replace("truth.", f"truth.{group}_")) from None


def build_contaminated(table: dict, truth: dict) -> Contaminated:
    """The model of a study's ``[model]`` table. Raises ``InputError``."""
    expert, response = (moe.part_of(kind, table, truth) for kind in ("expert", "response"))
    _density(response, table["response"])
    dimension, outputs = moe.dimensions(table, truth, BesideFrozen(), expert, response)
    given = dict(table["frozen_density"]) if isinstance(table["frozen_density"], dict) else {}
    law = one_of("model.frozen_density.law", given.pop("law", "same"), LAWS)
    if law == "laplace" and not isinstance(response, Gaussian):
        raise InputError(
            "model.frozen_density.law = 'laplace' is a law of real y: pass response = 'gaussian', or leave it out"
        )
    declared = expert.parameters(dimension, response.expert_outputs(outputs)) | response.parameters(outputs)
    if set(given) != set(declared):
        has = ", ".join(sorted(given)) or "nothing"
        raise InputError(f"model.frozen_density has {has}: pass {', '.join(declared)}, those of one known atom")
    where = "model.frozen_density"
    frozen = {name: array(f"{where}.{name}", value, declared[name].shape) for name, value in given.items()}
    for name, value in frozen.items():
        declared[name].domain.check(f"{where}.{name}", value)
    return Contaminated(expert, response, frozen, law, dimension, outputs, moe.given_exponents(table))


def build_two_level(table: dict, truth: dict) -> Composed:
    """The model of a study's ``[model]`` table. Raises ``InputError``."""
    groups = whole("model.groups", table["groups"], 1)
    outer, inner = (moe.part_of(level, table, truth, known=LEVELS[level]) for level in LEVELS)
    expert, response = (moe.part_of(kind, table, truth) for kind in ("expert", "response"))
    return moe.compose(table, truth, TwoLevel(groups, outer, inner), expert, response)


_PARTS = dict.fromkeys(("family", "expert", "response", "dimension", "outputs", "exponents", "expert_options",
                        "response_options"))  # fmt: skip
_GATE = dict.fromkeys(("gate", "gate_options"))
SHARED_ROUTED = Family(
    _PARTS | _GATE | dict.fromkeys(("shared_expert", "shared_expert_options", "proportion")),
    ("gate", "expert", "response"), build_shared_routed,
)  # fmt: skip
CONTAMINATED = Family(_PARTS | {"frozen_density": None}, ("expert", "response", "frozen_density"), build_contaminated)
TWO_LEVEL = Family(
    _PARTS | dict.fromkeys(("noise", "groups", "outer", "inner")),
    ("groups", "outer", "inner", "expert", "response"), build_two_level,
)  # fmt: skip
