"""The NIST StRD nonlinear-regression problems, with their models in JAX.

Each model takes the parameters b (p,) and ONE sample x (d,) and returns a scalar. The certified
values need float64: run with `jax.config.update("jax_enable_x64", True)`, which this module
leaves to its caller.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Model = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, eq=False)
class Problem:
    """One data set with its model, two starting points and certified least-squares solution."""

    name: str
    model: Model
    x: NDArray[np.float64]  # (n, d)
    y: NDArray[np.float64]  # (n,); log(y) for Nelson
    starts: NDArray[np.float64]  # (2, p)
    certified: NDArray[np.float64]  # (p,)
    certified_sd: NDArray[np.float64]  # (p,)
    rss: float


def misra1a(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 (1 - exp(-b2 x))."""
    return b[0] * (1 - jnp.exp(-b[1] * x[0]))


def misra1b(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 (1 - (1 + b2 x / 2)^-2)."""
    return b[0] * (1 - (1 + b[1] * x[0] / 2) ** -2)


def misra1c(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 (1 - (1 + 2 b2 x)^-0.5)."""
    return b[0] * (1 - (1 + 2 * b[1] * x[0]) ** -0.5)


def misra1d(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 b2 x (1 + b2 x)^-1."""
    return b[0] * b[1] * x[0] / (1 + b[1] * x[0])


def chwirut1(b: jax.Array, x: jax.Array) -> jax.Array:
    """exp(-b1 x) / (b2 + b3 x)."""
    return jnp.exp(-b[0] * x[0]) / (b[1] + b[2] * x[0])


def lanczos1(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 exp(-b2 x) + b3 exp(-b4 x) + b5 exp(-b6 x)."""
    t = x[0]
    return b[0] * jnp.exp(-b[1] * t) + b[2] * jnp.exp(-b[3] * t) + b[4] * jnp.exp(-b[5] * t)


def gauss1(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 exp(-b2 x) + b3 exp(-(x - b4)^2 / b5^2) + b6 exp(-(x - b7)^2 / b8^2)."""
    t = x[0]
    baseline = b[0] * jnp.exp(-b[1] * t)
    peak1 = b[2] * jnp.exp(-((t - b[3]) ** 2) / b[4] ** 2)
    peak2 = b[5] * jnp.exp(-((t - b[6]) ** 2) / b[7] ** 2)
    return baseline + peak1 + peak2


def danwood(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 x^b2."""
    return b[0] * x[0] ** b[1]


def kirby2(b: jax.Array, x: jax.Array) -> jax.Array:
    """(b1 + b2 x + b3 x^2) / (1 + b4 x + b5 x^2)."""
    t = x[0]
    return (b[0] + b[1] * t + b[2] * t**2) / (1 + b[3] * t + b[4] * t**2)


def hahn1(b: jax.Array, x: jax.Array) -> jax.Array:
    """(b1 + b2 x + b3 x^2 + b4 x^3) / (1 + b5 x + b6 x^2 + b7 x^3)."""
    t = x[0]
    return (b[0] + b[1] * t + b[2] * t**2 + b[3] * t**3) / (1 + b[4] * t + b[5] * t**2 + b[6] * t**3)


def nelson(b: jax.Array, x: jax.Array) -> jax.Array:
    """log(y) = b1 - b2 x1 exp(-b3 x2)."""
    return b[0] - b[1] * x[0] * jnp.exp(-b[2] * x[1])


def mgh17(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 + b2 exp(-x b4) + b3 exp(-x b5)."""
    return b[0] + b[1] * jnp.exp(-x[0] * b[3]) + b[2] * jnp.exp(-x[0] * b[4])


def roszman1(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 - b2 x - arctan(b3 / (x - b4)) / pi."""
    return b[0] - b[1] * x[0] - jnp.arctan(b[2] / (x[0] - b[3])) / jnp.pi


def enso(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 plus cosine and sine terms: b2, b3 of period 12; b5, b6 of period b4; b8, b9 of period b7."""
    turn = 2 * jnp.pi * x[0]
    year = b[1] * jnp.cos(turn / 12) + b[2] * jnp.sin(turn / 12)
    cycle1 = b[4] * jnp.cos(turn / b[3]) + b[5] * jnp.sin(turn / b[3])
    cycle2 = b[7] * jnp.cos(turn / b[6]) + b[8] * jnp.sin(turn / b[6])
    return b[0] + year + cycle1 + cycle2


def mgh09(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 (x^2 + x b2) / (x^2 + x b3 + b4)."""
    t = x[0]
    return b[0] * (t**2 + t * b[1]) / (t**2 + t * b[2] + b[3])


def rat42(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 / (1 + exp(b2 - b3 x))."""
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x[0]))


def rat43(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 / (1 + exp(b2 - b3 x))^(1 / b4)."""
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x[0])) ** (1 / b[3])


def mgh10(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 exp(b2 / (x + b3))."""
    return b[0] * jnp.exp(b[1] / (x[0] + b[2]))


def eckerle4(b: jax.Array, x: jax.Array) -> jax.Array:
    """(b1 / b2) exp(-0.5 ((x - b3) / b2)^2)."""
    return b[0] / b[1] * jnp.exp(-0.5 * ((x[0] - b[2]) / b[1]) ** 2)


def bennett5(b: jax.Array, x: jax.Array) -> jax.Array:
    """b1 (b2 + x)^(-1 / b3)."""
    return b[0] * (b[1] + x[0]) ** (-1 / b[2])


# These data sets share their formula with another one.
chwirut2 = chwirut1
lanczos2 = lanczos3 = lanczos1
gauss2 = gauss3 = gauss1
boxbod = misra1a
thurber = hahn1

MODELS: dict[str, Model] = {
    "Misra1a": misra1a,
    "Chwirut2": chwirut2,
    "Chwirut1": chwirut1,
    "Lanczos3": lanczos3,
    "Gauss1": gauss1,
    "Gauss2": gauss2,
    "DanWood": danwood,
    "Misra1b": misra1b,
    "Kirby2": kirby2,
    "Hahn1": hahn1,
    "Nelson": nelson,
    "MGH17": mgh17,
    "Lanczos1": lanczos1,
    "Lanczos2": lanczos2,
    "Gauss3": gauss3,
    "Misra1c": misra1c,
    "Misra1d": misra1d,
    "Roszman1": roszman1,
    "ENSO": enso,
    "MGH09": mgh09,
    "Thurber": thurber,
    "BoxBOD": boxbod,
    "Rat42": rat42,
    "MGH10": mgh10,
    "Eckerle4": eckerle4,
    "Rat43": rat43,
    "Bennett5": bennett5,
}


def load() -> list[Problem]:
    """Return the 27 problems in NIST's order (lower, average, higher difficulty)."""
    entries = json.loads(Path(__file__).with_name("problems.json").read_text(encoding="ascii"))
    problems = []
    for entry in entries:
        name = entry["name"]
        y = np.array(entry["y"], dtype=np.float64)
        problems.append(
            Problem(
                name=name,
                model=MODELS[name],
                x=np.array(entry["x"], dtype=np.float64),
                y=np.log(y) if name == "Nelson" else y,
                starts=np.array([entry["start1"], entry["start2"]], dtype=np.float64),
                certified=np.array(entry["certified"], dtype=np.float64),
                certified_sd=np.array(entry["certified_sd"], dtype=np.float64),
                rss=float(entry["rss"]),
            )
        )
    return problems
