"""Data of one's own: columns by name, rows by index, files as they come, and what cannot be used named."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from moe_sim.cli.csv import read_table
from moe_sim.errors import InputError
from moe_sim.fitting.tables import check_columns, covariates, pair, read

RNG = np.random.default_rng(0)
X = pd.DataFrame({"x": RNG.normal(size=20), "w": RNG.normal(size=20)})
Y = pd.Series(RNG.normal(size=20), name="y")


def test_columns_are_found_by_name():
    np.testing.assert_array_equal(covariates("x", X[["w", "x"]], ["x", "w"], True).values, X.to_numpy())
    wider = X.assign(z="text")[["z", "w", "x"]]  # what the fit does not use may be anything
    np.testing.assert_array_equal(covariates("x", wider, ["x", "w"], True).values, X.to_numpy())
    np.testing.assert_array_equal(covariates("x", X.to_numpy(), ["x", "w"], True).values, X.to_numpy())
    np.testing.assert_array_equal(covariates("x", X, ["x0", "x1"], False).values, X.to_numpy())  # the fit had no names
    np.testing.assert_array_equal(covariates("x", [1.0, 2.0], ["x"], True).values, [[1.0], [2.0]])


@pytest.mark.parametrize("values, words", [
    (X[["x"]], "x has no column 'w': pass those of the fit, x, w"),
    ([1.0, 2.0], r"x has 1 column, the fit has 2 \(x, w\)"),
    (np.ones((2, 3)), r"x has 3 columns, the fit has 2 \(x, w\)"),
    (X["x"], "the fit has columns x, w of x, and this is one column: pass a data frame with all"),
])  # fmt: skip
def test_other_columns_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        covariates("x", values, ["x", "w"], True)


def test_rows_are_found_by_index():
    one, other = pair(X.sample(frac=1, random_state=1), Y)
    np.testing.assert_array_equal(other.values[:, 0], Y[X.sample(frac=1, random_state=1).index])
    np.testing.assert_array_equal(one.values[0], X.sample(frac=1, random_state=1).iloc[0])
    assert pair(X.to_numpy(), Y)[1].values.shape == (20, 1)  # an array has no index: by place


@pytest.mark.parametrize("x, y, words", [
    (X, Y.set_axis(range(1, 21)), "x has row 0 and y has not"),
    (X.set_axis([0] * 20), Y, "a row is there twice"),
    (X, Y[:5], "x has 20 rows and y 5: pass as many of each"),
    (X, X[["x"]], "column 'x' is in x and in y: leave it out of one"),
    (X.set_axis(["x", "x"], axis=1), Y, "x has two columns 'x'"),
    (X.assign(x=["a", *range(19)]), Y, "x column 'x' has 'a' in row 0 .the first is 0., which is no number"),
    (X.assign(w=[np.nan, *range(19)]), Y, "x column 'w' has nan in row 0 .the first is 0; 1 such entries."),
    (["1", "b"], [1, 2], "x has 'b' in row 1"),
    ([[1, 2], [3]], [1, 2], "x is no table of numbers"),
])  # fmt: skip
def test_what_cannot_be_paired(x, y, words):
    with pytest.raises(InputError, match=words):
        pair(x, y)


@pytest.mark.parametrize("columns, name", [
    ({"x2": 3 * X["x"] + 1}, "x2"),
    ({"c": 2 * X["x"] - X["w"] + 5}, "c"),
    ({"a": [1.0, 0.0] * 10, "b": [0.0, 1.0] * 10}, "b"),  # all levels of a factor
    ({"x2": 1e9 + X["x"]}, "x2"),
])  # fmt: skip
def test_a_combination_of_other_columns_is_refused(columns, name):
    with pytest.raises(InputError, match=f"x column '{name}' is a combination of the others: leave it out"):
        check_columns("x", read("x", X.assign(**columns)))


def test_columns_that_are_nearly_so_are_not():
    nearly = X.assign(x2=X["x"] + 1e-5 * RNG.normal(size=20), far=1.7e9 + RNG.normal(size=20), large=1e12 * X["x"] ** 2)
    check_columns("x", read("x", nearly))
    check_columns("y", read("y", X.assign(same=X["x"])))  # outputs may go together


FILES = {
    "semi.csv": ("x;y\n1;2\n3;4\n", r"one column, 'x;y': separated by ';'\? pass --sep ';'"),
    "tab.csv": ("x\ty\n1\t2\n", r"separated by '\\t'\? pass --sep '\\t'"),
    "data.csv": (
        "5.1,36.8\n2,3\n",
        "its first line, 5.1, 36.8, looks like data: add a header line, or pass --no-header",
    ),
    "latin.csv": ("größe,y\n1,2\n".encode("cp1252"), "is not written in utf-8: pass --encoding cp1252"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_name_the_option_that_reads_them(name, tmp_path, moe_sim):
    text, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, _, err = moe_sim("fit", path)
    assert status == 2 and re.search(words, err)


def test_and_that_option_reads_them(tmp_path):
    for name, options, columns in (
        ("semi.csv", {"sep": ";"}, ["x", "y"]), ("tab.csv", {"sep": r"\t"}, ["x", "y"]),
        ("data.csv", {"no_header": True}, ["c0", "c1"]), ("latin.csv", {"encoding": "cp1252"}, ["größe", "y"]),
    ):  # fmt: skip
        text = FILES[name][0]
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        given = {"sep": ",", "decimal": ".", "encoding": "utf-8", "no_header": False} | options
        assert list(read_table(tmp_path / name, **given).columns) == columns
    (tmp_path / "comma.csv").write_text("x;y\n1,5;2,5\n")
    assert read_table(tmp_path / "comma.csv", ";", ",", "utf-8", False)["x"].tolist() == [1.5]
    with pytest.raises(InputError, match="--encoding has 'utf-9': pass one that Python knows"):
        read_table(tmp_path / "comma.csv", ";", ",", "utf-9", False)
