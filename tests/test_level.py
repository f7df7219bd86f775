"""Least residual on a level set, against closed forms and brute force."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_sim.theory.level import least_on_level, on_level

BOX = 1e3


def solve(matrix, loss, eps, offsets, lower=-BOX, upper=BOX, **keywords):
    """The best of the points found from offsets about 0, for the residuals matrix @ theta."""
    matrix = jnp.asarray(matrix)
    size = matrix.shape[1]
    centre = jnp.zeros(size)
    box = jnp.full(size, lower), jnp.full(size, upper)

    @jax.jit
    def one(offset):
        return least_on_level(
            lambda t: matrix @ t, lambda t: matrix, loss, centre, offset, eps, *box, **keywords
        )  # fmt: skip

    points = [one(jnp.asarray(offset)) for offset in offsets]
    return min(points, key=lambda p: float(p.omega))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eps", [0.3, 1e-6])
def test_on_a_sphere_it_is_the_least_singular_value(seed, eps):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(20, 5)) * [1.0, 1.0, 1.0, 1e-3, 1e-4]
    found = solve(matrix, jnp.linalg.norm, eps, rng.normal(size=(4, 5)))
    assert float(found.omega) == pytest.approx(eps * np.linalg.svd(matrix, compute_uv=False)[-1], rel=1e-6)
    assert float(found.loss) == pytest.approx(eps, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_on_a_loss_with_edges_it_is_the_best_of_all_faces(seed):
    """{sum |theta_i| = eps}: on the face with signs s the least ||A theta|| solves a linear system; 2^4 faces."""
    rng = np.random.default_rng(seed)
    matrix, eps = rng.normal(size=(12, 4)), 0.01
    inverse = np.linalg.inv(matrix.T @ matrix)
    best = np.inf
    for signs in product([-1.0, 1.0], repeat=4):
        s = np.array(signs)
        theta = eps * inverse @ s / (s @ inverse @ s)
        if np.all(theta * s >= 0):
            best = min(best, float(np.linalg.norm(matrix @ theta)))
    found = solve(matrix, lambda t: jnp.sum(jnp.abs(t)), eps, rng.normal(size=(24, 4)))
    assert float(found.omega) == pytest.approx(best, rel=1e-6)


def test_quartic_valleys_are_followed_to_the_end():
    """r = (u, v^2) with u^2 + v^2 = eps^2: the least is v = eps, r = eps^2, far below the first-order cost of u."""
    centre, box = jnp.zeros(2), (jnp.full(2, -1.0), jnp.full(2, 1.0))
    residuals = lambda t: jnp.array([t[0], t[1] ** 2])  # noqa: E731
    for eps in (0.1, 1e-3, 1e-5):
        found = jax.jit(
            lambda offset, eps=eps: least_on_level(
                residuals, jax.jacfwd(residuals), jnp.linalg.norm, centre, offset, eps, *box
            )
        )(jnp.array([1.0, 0.3]))
        assert float(found.omega) == pytest.approx(eps**2, rel=1e-3)


@pytest.mark.parametrize("soft", [1.0, 0.05])
def test_the_box_holds(soft):
    """The soft direction is closed at 0.1: the rest of the sphere is made up by the stiff one. From the edge, and from
    inside, from where a free step would leave."""
    matrix = np.diag([1.0, 0.01])
    lower, upper = jnp.array([-1.0, -0.1]), jnp.array([1.0, 0.1])
    rows = lambda t: jnp.asarray(matrix) @ t  # noqa: E731
    found = least_on_level(
        rows, jax.jacfwd(rows), jnp.linalg.norm, jnp.zeros(2), jnp.array([1.0, soft]), 0.5, lower, upper, gain=1e-9
    )  # fmt: skip
    assert float(found.omega) == pytest.approx(np.hypot(np.sqrt(0.25 - 0.01), 0.001), rel=1e-6)


def test_a_level_out_of_reach_is_infinite():
    found = solve(np.eye(2), jnp.linalg.norm, 5.0, [np.array([1.0, 0.2])], -1.0, 1.0)
    assert np.isinf(float(found.omega))


def test_the_hopeless_are_given_up():
    """A valley too narrow for a few steps: with the ceiling it stops after a window, without it goes on."""
    residuals = lambda t: jnp.array([1e3 * (t[0] - jnp.sin(5 * t[1])), 1e-3 * t[1], 0.1 * t[2]])  # noqa: E731
    start = jnp.array([0.9, -1.0, 0.3])

    def iterations(hopeless):
        return int(
            least_on_level(
                residuals, jax.jacfwd(residuals), jnp.linalg.norm, jnp.zeros(3), start, 2.0, jnp.full(3, -3.0),
                jnp.full(3, 3.0), hopeless,
            ).iterations
        )  # fmt: skip

    assert iterations(0.0) < iterations(jnp.inf)


def test_the_first_crossing_is_found():
    """Beyond it the loss falls again, as it does where an atom enters another cell."""
    loss = lambda t: jnp.abs(jnp.sin(t[0]))  # noqa: E731
    wide = jnp.full(1, 1e4)
    at = on_level(loss, jnp.zeros(1), jnp.ones(1), 0.5, -wide, wide)
    assert float(at[0]) == pytest.approx(np.pi / 6, rel=1e-6)
