"""Turn the NIST StRD nonlinear-regression .dat files into problems.json.

Usage: python tests/nist/make_problems.py FOLDER_OF_DAT_FILES
"""

import json
import re
import sys
from pathlib import Path

OUTPUT = Path(__file__).with_name("problems.json")

# NIST's own order: 8 of lower difficulty, 11 of average, 8 of higher.
# fmt: off
NAMES = (
    "Misra1a", "Chwirut2", "Chwirut1", "Lanczos3", "Gauss1", "Gauss2", "DanWood", "Misra1b",
    "Kirby2", "Hahn1", "Nelson", "MGH17", "Lanczos1", "Lanczos2", "Gauss3",
    "Misra1c", "Misra1d", "Roszman1", "ENSO",
    "MGH09", "Thurber", "BoxBOD", "Rat42", "MGH10", "Eckerle4", "Rat43", "Bennett5",
)
# fmt: on

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
PARAMETER = re.compile(rf"\s*b(\d+)\s*=\s*({NUMBER})\s+({NUMBER})\s+({NUMBER})\s+({NUMBER})\s*")


def literal(token: str) -> str:
    """Return a number of the file as a JSON number with the same digits."""
    match = re.fullmatch(r"\+?(-?)(\d*)(?:\.(\d*))?((?:[eE][-+]?\d+)?)", token)
    if match is None:
        raise ValueError(f"not a number: {token!r}")
    sign, whole, fraction, exponent = match.groups()
    text = f"{sign}{whole or '0'}{'.' + fraction if fraction else ''}{exponent}"
    if float(json.loads(text)) != float(token):
        raise ValueError(f"{token!r} was changed to {text!r}")
    return text


def find(pattern: str, text: str) -> tuple[str, ...]:
    """Return the groups of the only match of pattern in text."""
    matches = list(re.finditer(pattern, text, re.MULTILINE))
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} matches of {pattern!r}")
    return matches[0].groups()


def array(items: list[str]) -> str:
    """Write a JSON array on one line."""
    return f"[{', '.join(items)}]"


def parse(text: str) -> dict[str, str]:
    """Return the fields of one .dat file, each already JSON text."""
    lines = text.splitlines()
    (name,) = find(r"^Dataset Name:\s+(\w+)", text)
    (difficulty,) = find(r"^\s+(Lower|Average|Higher) Level of Difficulty", text)
    (rss,) = find(rf"^Residual Sum of Squares:\s+({NUMBER})", text)
    (dof,) = find(r"^Degrees of Freedom:\s+(\d+)", text)
    (observations,) = find(r"^Number of Observations:\s+(\d+)", text)
    (parameters,) = find(r"^\s+(\d+) Parameters ", text)
    (predictors,) = find(r"^\s+(\d+) Predictors? ", text)
    first, last = find(r"^\s+Data\s+\(lines\s+(\d+)\s+to\s+(\d+)\)", text)

    table = [match.groups() for match in map(PARAMETER.fullmatch, lines) if match]
    if [int(row[0]) for row in table] != list(range(1, int(parameters) + 1)):
        raise ValueError(f"{name}: expected parameters b1 to b{parameters}")
    rows = [[literal(token) for token in line.split()] for line in lines[int(first) - 1 : int(last)]]
    if len(rows) != int(observations) or any(len(row) != 1 + int(predictors) for row in rows):
        raise ValueError(f"{name}: expected {observations} rows of y and {predictors} predictor(s)")
    if any(line.strip() for line in lines[int(last) :]):
        raise ValueError(f"{name}: text after the data")
    # NIST's Rat43 says 9 where its own residual standard deviation has 15 - 4 = 11: kept as it is.
    if len(rows) - len(table) != int(dof) and name != "Rat43":
        raise ValueError(f"{name}: degrees of freedom do not match")

    start1, start2, certified, certified_sd = (array([literal(row[column]) for row in table]) for column in range(1, 5))
    return {
        "name": json.dumps(name),
        "difficulty": json.dumps(difficulty.lower()),
        "x": array([array(row[1:]) for row in rows]),
        "y": array([row[0] for row in rows]),
        "start1": start1,
        "start2": start2,
        "certified": certified,
        "certified_sd": certified_sd,
        "rss": literal(rss),
        "dof": dof,
    }


def main(folder: Path) -> None:
    """Write problems.json from the .dat files in folder."""
    blocks = []
    for name in NAMES:
        fields = parse((folder / f"{name}.dat").read_text(encoding="ascii"))
        if json.loads(fields["name"]) != name:
            raise ValueError(f"{name}.dat holds {fields['name']}")
        blocks.append("{\n" + ",\n".join(f'  "{key}": {value}' for key, value in fields.items()) + "\n}")
    text = "[\n" + ",\n".join(blocks) + "\n]\n"
    json.loads(text)
    OUTPUT.write_text(text, encoding="ascii")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER_OF_DAT_FILES")
    main(Path(sys.argv[1]))
