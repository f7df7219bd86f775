"""The reference of study files, made of ``schema``: the table in the README, and a JSON schema for editors.

``python -m moe_sim.study.reference`` writes both, in a checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_sim.models import FAMILIES
from moe_sim.study.schema import GIVEN, LAWS, TABLES, Claim, FitTable, LawTable, ModelTable, SampleTable, TruthTable
from moe_sim.study.table import Entry, Table, default, entries, required

JSON_SCHEMA = Path(__file__).with_name("study.schema.json")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made by moe_sim.study.reference -->", "<!-- end -->"
SCHEMES = {"model": ModelTable, "truth": TruthTable, "law": LawTable, "fit": FitTable, "sample": SampleTable}


def markdown() -> str:
    """A line a key: its table, name, values, default, meaning."""
    lines = ["| table | key | value | default | |", "|---|---|---|---|---|"]
    for name, table in TABLES.items():
        header = f"`[[{name}]]`" if table is Claim else f"`[{name}]`"
        for key, about in _known(table).items():
            usual = GIVEN if key in required(table) else about.usual or f"`{_toml(default(table, key))}`"
            cells = [header, f"`{key}`", about.kind.words, usual, _meaning(about)]
            lines.append(f"| {' | '.join(cells)} |")
            header = ""
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a study file. Models may have keys of their own, which it lets pass."""
    properties: dict[str, Any] = {"name": {"type": "string", "pattern": r"^\w[\w.-]*$", "description": "of the study"}}
    for name, table in SCHEMES.items():
        properties[name] = _json_table(table) | ({"additionalProperties": True} if name in ("model", "truth") else {})
    properties["claim"] = {"type": "array", "items": _json_table(Claim)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A study of moe_sim", "type": "object",
        "properties": properties, "required": ["name", "model", "truth", "fit", "sample"],
        "additionalProperties": False,
    }  # fmt: skip


def write() -> None:
    """Bring the README and the JSON schema up to date."""
    JSON_SCHEMA.write_text(json_text())
    README.write_text(with_table(README.read_text()))


def json_text() -> str:
    return json.dumps(json_schema(), indent=1) + "\n"


def with_table(readme: str) -> str:
    """The text of a README with the table as it should be."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{rest.partition(END)[2]}"


def _known(table: type) -> dict[str, Entry]:
    """The keys of a table, but for those of families that there are not."""
    there = {*FAMILIES, *LAWS}
    return {name: about for name, about in entries(table).items() if not about.of or there & set(about.of)}


def _json_table(table: type) -> dict[str, Any]:
    properties = {}
    for name, about in _known(table).items():
        kind = about.kind
        inner = _json_table(kind.of) if isinstance(kind, Table) and kind.of is not None else kind.json
        properties[name] = {**inner, "description": _meaning(about).replace("`", "")}
        usual = default(table, name)
        if not about.usual and usual is not None:
            properties[name]["default"] = usual
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"required": required(table)} if required(table) else {})


def _meaning(about: Entry) -> str:
    return f"{', '.join(about.of)}: {about.doc}" if about.of else about.doc


def _toml(value: Any) -> str:
    return json.dumps(value)


if __name__ == "__main__":
    write()
