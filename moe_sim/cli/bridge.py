"""The commands of the bridge to PyTorch. They need the extra ``bridge``; everything else works without it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from moe_sim.bridge import MINILM, require
from moe_sim.cli.console import (
    RUNS,
    Json,
    duration,
    err_console,
    out_console,
    reporting,
    show_paths,
    verdict_table,
    verdicts_json,
)  # fmt: skip
from moe_sim.errors import InputError, one_of

app = typer.Typer(no_args_is_help=True, help="Real prefix-tuned attention against the theory's model (PyTorch).")

Device = Annotated[str, typer.Option(help="cpu, or cuda where torch sees one.")]
Model = Annotated[str, typer.Option(help="all-minilm-l6-v2 (installed), a folder, or a name on the hub.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the figure; figures by default, that of the run for other runs.")
]
FIGURES = Path("figures")


@app.callback()
def bridge() -> None:
    """Real prefix-tuned attention against the theory's model (PyTorch)."""
    require()


@app.command()
def head(
    heads: Annotated[
        str | None, typer.Option(help="LAYER:HEAD, from 0, as in 0:0,3:7; the first of three layers by default.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A file with a sentence a line; the Zen of Python by default.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="At most 20 replicates a size.")] = False,
    model: Model = MINILM,
    device: Device = "cpu",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Rates on real attention heads, whose frozen experts are the tokens of real sentences."""
    from moe_sim.bridge import head as real
    from moe_sim.bridge import pretrained
    from moe_sim.bridge.head_plot import plot_heads
    from moe_sim.plots import style

    module, tokenizer = pretrained.load(model, device=device)
    texts = real.sentences() if text is None else _lines(text)
    inputs = real.encode(tokenizer, texts, module.device)
    kept, tokens = len(inputs["input_ids"]), int(inputs["attention_mask"].sum())
    err_console.print(f"{kept} of {len(texts)} sentences are short enough, {tokens} tokens", highlight=False)
    chosen = real.default_heads(module) if heads is None else [_layer_and_head(part) for part in heads.split(",")]
    found = [real.real_head(real.short_name(model), module, inputs, layer, index) for layer, index in chosen]
    folder = RUNS / f"bridge-head{'-quick' * quick}"
    verdicts, over = [], {}
    with reporting() as report:
        for one in found:
            done = real.run_head(one, folder, report, quick=quick)
            verdicts += [(one, *results) for results in done.values()]
            over[f"layer {one.layer}, head {one.index}"] = {
                structure: done[f"{name}-over"][0] for name, structure in real.TIES.items()
            }
    usual = model == MINILM and heads is None and text is None and not quick
    paths = style.write(out or (FIGURES if usual else folder), "bridge-head", *plot_heads(over, found[0].model))
    if as_json:
        rows = [{"layer": h.layer, "head": h.index, **verdicts_json(r, v)} for h, r, v in verdicts]
        print(json.dumps({"model": model, "heads": rows}))
        return
    out_console.print(verdict_table([v for _, _, row in verdicts for v in row]))
    show_paths(paths)


@app.command()
def transformer(
    layers: Annotated[str, typer.Option(help="Where prefixes are planted, from 0, as in 4 or 3,5.")] = "4",
    arms: Annotated[str, typer.Option(help="Of simple, free, deep and prompt.")] = "simple,free,deep,prompt",
    text: Annotated[
        Path | None, typer.Option(help="A file with an input a line; 8 lines of the Zen by default.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="At most 20 replicates a size.")] = False,
    model: Model = MINILM,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Rates through a whole frozen transformer: prefixes planted in its layers, seen by what it says."""
    from moe_sim.bridge import network_study as network
    from moe_sim.bridge.network_plot import plot_network
    from moe_sim.bridge.transformer import ARMS
    from moe_sim.plots import style

    chosen = [one_of("--arms", arm.strip(), ARMS) for arm in arms.split(",")]
    where = [_layer(part) for part in layers.split(",")]
    studies = network.network_studies(model, where, None if text is None else _lines(text), chosen)
    folder = RUNS / f"bridge-transformer{'-quick' * quick}"
    with reporting() as report:
        done = network.run_network(studies, folder, report, quick=quick)
    usual = model == MINILM and layers == "4" and arms == "simple,free,deep,prompt" and text is None and not quick
    by = {end: {arm: done[f"{arm}-{end}"][0] for arm in chosen} for end in ("exact", "over")}
    told = f"{model}, layer{'s' * (len(where) > 1)} {' and '.join(map(str, where))}"
    paths = style.write(out or (FIGURES if usual else folder), "bridge-transformer", *plot_network(**by, where=told))
    if as_json:
        rows = [{"structure": name, **verdicts_json(*results)} for name, results in done.items()]
        print(json.dumps({"model": model, "layers": where, "arms": rows}))
        return
    out_console.print(verdict_table([v for _, verdicts in done.values() for v in verdicts]))
    show_paths(paths)


def _layer(part: str) -> int:
    if not part.strip().isdigit():
        raise InputError(f"--layers has {part!r}: pass numbers of layers, from 0, as in 4 or 3,5")
    return int(part)


def _layer_and_head(part: str) -> tuple[int, int]:
    layer, colon, index = part.partition(":")
    if not (colon and layer.strip().isdigit() and index.strip().isdigit()):
        raise InputError(f"--heads has {part!r}: pass LAYER:HEAD, from 0, as in 0:0,3:7")
    return int(layer), int(index)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text {path} cannot be read ({error}): pass a text file, a sentence a line") from None


@app.command()
def identity(device: Device = "cpu", model: Model = MINILM, out: Out = None, as_json: Json = False) -> None:
    """Attention of GPT-2, Llama, BERT, ViT and a pretrained model, under prefixes, against the prefix model in JAX."""
    from moe_sim.bridge import identity_plot
    from moe_sim.bridge.identity import GRADIENT, SMALL, failures
    from moe_sim.bridge.identity import identity as rows_of
    from moe_sim.rates.verdicts import finite

    rows = []
    for name in dict.fromkeys((model, *SMALL)):  # what may not be there comes first
        rows += rows_of((name,), device=device)
        err_console.print(f"compared: {name}", highlight=False)
    folder = FIGURES if model == MINILM else RUNS / "bridge-identity"
    paths = identity_plot.write_identity(rows, out or folder)
    if as_json:
        print(json.dumps(finite({"rows": rows})))
    else:
        table = Table("model", "mask", "structure", "dtype", "heads", "largest difference", "at", "of a derivative")
        for mine in _grouped(rows, "model", "structure", "dtype"):
            worst = max(mine, key=lambda row: row["max_abs_diff"])
            slopes = [row["gradient_diff"] for row in mine if row["gradient_diff"] is not None]
            table.add_row(
                *(worst[name] for name in ("model", "mask", "structure", "dtype")), str(len(mine)),
                f"{worst['max_abs_diff']:.1e} of {worst['limit']:.0e}", f"layer {worst['layer']}, head {worst['head']}",
                f"{max(slopes):.1e} of {GRADIENT:.0e}" if slopes else "–",
            )  # fmt: skip
        out_console.print(table)
        show_paths(paths)
    for row in (failed := failures(rows)):
        err_console.print(
            f"{row['model']}, layer {row['layer']}, head {row['head']}, {row['structure']}, {row['dtype']}: outputs "
            f"{row['max_abs_diff']:.1e} apart, derivatives {row['gradient_diff']}", highlight=False, soft_wrap=True,
        )  # fmt: skip
    if failed:
        raise typer.Exit(1)


def _grouped(rows: list[dict[str, Any]], *names: str) -> list[list[dict[str, Any]]]:
    """Rows that agree in these columns, together, in order."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.values())


@app.command("few-shot")
def few_shot(
    quick: Annotated[
        bool, typer.Option(help="A tiny profile that shows only that it works; in its run folder.")
    ] = False,
    model: Model = MINILM,
    device: Device = "cpu",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Prefix-tuning of a frozen BERT on few movie reviews, keys and values shared or not (under an hour on 2 cores)."""
    import torch

    from moe_sim.bridge import few_shot as fs
    from moe_sim.bridge import few_shot_plot, pretrained
    from moe_sim.plots import style
    from moe_sim.rates.verdicts import finite

    module, tokenizer = pretrained.load(model, torch.float32, device)
    task = fs.prepare(model, module, tokenizer, fs.QUICK if quick else fs.FULL)
    folder = RUNS / f"bridge-few-shot{'-quick' * quick}"
    result = fs.run(task, folder, _report_group)
    usual = model == MINILM and not quick
    paths = style.write(out or (FIGURES if usual else folder), "bridge-few-shot", *few_shot_plot.plot(result))
    if as_json:
        tables = {"accuracy": result.accuracy(), "differences": result.differences()}
        rows = {name: table.to_dict("records") for name, table in tables.items()}
        print(json.dumps(finite({"model": model, "profile": asdict(result.profile), **rows})))
        return
    out_console.print(_accuracy_table(result.accuracy()), _difference_table(result.differences()))
    show_paths(paths)


def _report_group(p) -> None:
    row = next(row for row in p.rows if row["chosen"])
    err_console.print(
        f"{p.done}/{p.total}  {row['method']}, {row['shots']} a class, seed {row['seed']}: validation "
        f"{row['validation_accuracy']:.3f}, test {row['test_accuracy']:.3f}; about {duration(p.seconds_left)} left",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _accuracy_table(accuracy) -> Table:
    names = (
        "method",
        "parameters + classifier",
        "shots",
        "test accuracy",
        "training accuracy",
        "steps",
        "rates chosen",
    )
    table = Table(*names, title="Mean over seeds and 95% t interval", title_justify="left")
    for row in accuracy.itertuples():
        table.add_row(
            row.method, f"{row.parameters:,} + {row.classifier:,}", str(row.shots),
            f"{row.accuracy:.3f} \\[{row.low:.3f}, {row.high:.3f}]", f"{row.training_accuracy:.3f}",
            f"{row.steps:.0f}", ", ".join(f"{rate} ×{count}" for rate, count in row.rates.items()),
        )  # fmt: skip
    return table


def _difference_table(differences) -> Table:
    table = Table(
        "test accuracy", "shots", "difference", title="Paired over seeds, 95% t interval", title_justify="left"
    )
    for row in differences.itertuples():
        table.add_row(
            f"{row.first} − {row.second}", str(row.shots or "mean of all"),
            f"{row.difference:+.3f} \\[{row.low:+.3f}, {row.high:+.3f}]",
        )  # fmt: skip
    return table
