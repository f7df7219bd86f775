"""One schema: what it lists is what there is, and the README and the JSON schema are made of it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny import tables

import moe_sim as ms
from moe_sim.fitting import options
from moe_sim.models import FAMILIES
from moe_sim.models.prefix import ACTIVATIONS
from moe_sim.study import reference, schema
from moe_sim.study.table import Table, entries, required

ROOT = Path(__file__).parent.parent
STALE = "out of date: run python -m moe_sim.study.reference"
STUDIES = sorted([*ROOT.glob("studies/*.toml"), *ROOT.glob("moe_sim/study/claims/*.toml")])


def test_the_readme_is_up_to_date():
    text = reference.README.read_text()
    assert text == reference.with_table(text), STALE
    assert reference.markdown() in text


def test_the_json_schema_is_up_to_date():
    assert reference.JSON_SCHEMA.read_text() == reference.json_text(), STALE


def test_lists_are_those_of_the_rooms_that_know_them():
    assert schema.ESTIMATORS == tuple(options.LIMITS) == ("least-squares", "mle", "em", "gradient", "steps")
    assert set(schema.STARTS) == set(options.RULES)
    assert schema.OPTIMIZERS == options.OPTIMIZERS
    assert set(entries(schema.NetworkTable)["activation"].kind.names) == set(ACTIVATIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_a_family_are_described(family):
    def same(described: type, known: dict, of: str | None) -> None:
        assert set(entries(described, of)) == set(known)
        for name, about in entries(described, of).items():
            assert (known[name] is not None) == (isinstance(about.kind, Table) and about.kind.of is not None)
            if known[name] is not None:
                same(about.kind.of, known[name], None)

    same(schema.ModelTable, FAMILIES[family].TABLE, family)


@pytest.mark.parametrize("name", ms.registry())
def test_parameters_of_a_family_are_described(name):
    """Those of a composition are its parts'."""
    study = ms.load_study(name)
    if study.tables["model"]["family"] in schema.COMPOSED:
        return
    described = entries(schema.TruthTable, study.tables["model"]["family"])
    for parameter, shape in study.problem.model.shapes(3).items():
        kind = described[parameter].kind
        assert len(shape) in {len(kind.shape), len(kind.also)} - {0}


@pytest.mark.parametrize("table", schema.TABLES.values(), ids=schema.TABLES)
def test_every_key_says_what_it_is(table):
    assert table.__doc__ and all(about.doc and about.kind.words for about in entries(table).values())


def test_defaults_are_those_of_a_fit():
    """A key that is left out means what the reference says."""
    found = ms.Study(**tables(fit={"atoms": 1})).problem.options
    usual = {name: getattr(found, name) for name in ("start", "starts", "budget", "spread_exponent")}
    assert usual == {name: entry.default for name, entry in vars(schema.FitTable)["__dataclass_fields__"].items()
                     if name in usual}  # fmt: skip
    assert found.estimator == "least-squares" and found.max_iterations == 300 and found.solver == {}


def faults(value, rule: dict, where: str = "") -> list[str]:
    """What a value has against the part of JSON Schema that ours uses."""
    if "anyOf" in rule:
        each = [faults(value, one, where) for one in rule["anyOf"]]
        return [] if not all(each) else each[0]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float)}
    kind = rule.get("type")
    if kind == "integer":
        wrong = not isinstance(value, (int, float)) or value != int(value)
    else:
        wrong = kind is not None and not isinstance(value, kinds[kind])
    if wrong or ("enum" in rule and value not in rule["enum"]):
        return [where]
    if kind in ("number", "integer"):
        return [] if rule.get("minimum", -np.inf) <= value <= rule.get("maximum", np.inf) else [where]
    if kind == "string":
        return [] if re.search(rule.get("pattern", ""), value) else [where]
    if kind == "array":
        short = not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", np.inf)
        return [where] * short + [f for v in value for f in faults(v, rule["items"], f"{where}[]")]
    if kind == "object":
        more, known = rule.get("additionalProperties", True), rule.get("properties", {})
        found = [f"{where}.{name}" for name in rule.get("required", []) if name not in value]
        found += [f"{where}.{name}" for name in value if name not in known and more is False]
        for name, v in value.items():
            found += faults(v, known.get(name, more if isinstance(more, dict) else {}), f"{where}.{name}")
        return found
    return []


SCHEMA = json.loads(reference.JSON_SCHEMA.read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_json(path):
    assert faults(tomllib.loads(path.read_text()), SCHEMA) == []


@pytest.mark.parametrize(
    "where, changes",
    [
        (".fit.start", {"fit__start": "cold"}),
        (".fit.starts", {"fit__starts": 0}),
        (".fit.rule", {"fit__rule": "data"}),
        (".sample.sizes[]", {"sample__sizes": [1e3, 0.5]}),
        (".claim[].window", {"claim__0__window": [1e3]}),
        (".law.points", {"law__points": "many"}),
        (".model.frozen.tokens", {"model__frozen__tokens": 1.5}),
        (".laws", {"laws": {}}),
    ],
)
def test_an_editor_sees_what_is_wrong(where, changes):
    assert faults(tables(**changes), SCHEMA) == [where]
    with pytest.raises(ms.InputError):
        ms.Study(**tables(**changes))


def test_families_may_bring_keys_of_their_own():
    assert faults(tables(model__family="sigmoid.py:SigmoidGate", model__dimension=2, truth__gate=[[1.0]]), SCHEMA) == []


def test_required_keys():
    assert required(schema.FitTable) == ["atoms"] and required(schema.SampleTable) == ["sizes", "replicates"]
    assert required(schema.LawTable) == ["name"] and required(schema.Claim) == ["loss"]
