"""Prefix-tuning a frozen pretrained BERT on few examples: what sharing between keys and values does on a real task.

Three structures of the prefix, with full fine-tuning and a linear probe as references, all on the same examples in the
same batches for the same number of steps. Each learning rate of a method's grid is trained; the one with the best
validation accuracy is the method's. A finished run is kept as a row, so that what was interrupted goes on.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import torch
import transformers
from scipy.special import log_softmax, stdtrit
from sklearn.linear_model import LogisticRegression

from moe_sim.bridge import STRUCTURES, data
from moe_sim.bridge.prefixes import NETWORK, check, linear, prefix, sentence_vectors
from moe_sim.rates.slopes import CONFIDENCE_LEVEL, summarise
from moe_sim.simulation.store import RunFolder

FINE_TUNING, PROBE = "full fine-tuning", "linear probe"
METHODS = (*STRUCTURES, FINE_TUNING, PROBE)
SEEN = 64  # training examples a class, at most, that the training accuracy is measured on
_CLASSIFIER_RATE = 5e-3  # of the classifier, in every method: what is compared is the rest
_WARM_UP = 0.1  # of the steps; then the rate falls linearly to 0
_EVALUATED = 64  # sentences at once where nothing is trained


@dataclass(frozen=True)
class Profile:
    """shots, validation, test: examples a class. length: prefixes a layer. rates: the grid of each method, learning
    rates of AdamW; of the linear probe, C of the logistic regression."""

    shots: tuple[int, ...]
    seeds: int
    steps: int
    batch: int
    length: int
    validation: int
    test: int
    rates: dict[str, tuple[float, ...]]


FULL = Profile(
    shots=(4, 16, 64, 256), seeds=5, steps=100, batch=8, length=10, validation=64, test=300,
    rates={
        "no-share": (0.01, 0.05, 0.25), "simple-share": (0.01, 0.05, 0.25), "deep-share": (5e-4, 2.5e-3, 0.0125),
        FINE_TUNING: (2e-5, 1e-4, 5e-4), PROBE: (0.1, 1.0, 10.0),
    },
)  # fmt: skip
QUICK = Profile(
    shots=(2, 8), seeds=2, steps=6, batch=4, length=10, validation=8, test=16,
    rates={
        "no-share": (0.05, 0.25), "simple-share": (0.05, 0.25), "deep-share": (2.5e-3, 0.0125),
        FINE_TUNING: (1e-4, 5e-4), PROBE: (1.0, 10.0),
    },
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """A frozen model and the examples: token ids of each snippet, labels, and who gets which.

    digest: of all that a finished run depends on; it is part of the name that the run is kept by.
    """

    profile: Profile
    name: str
    model: Any
    tokens: list[list[int]]
    labels: np.ndarray
    split: data.Split
    digest: str


class Fitted(NamedTuple):
    """logits: of rows of the task, (rows, 2). parameters: trained ones, without the classifier's. losses: mean loss of
    each step's batch, before the step."""

    logits: Callable[[np.ndarray], np.ndarray]
    parameters: int
    classifier: int
    steps: int
    losses: list[float]


class Progress(NamedTuple):
    """Groups (a method with one number of shots and one seed) done, of how many; the rows of the last; time left."""

    done: int
    total: int
    rows: list[dict[str, Any]]
    seconds_left: float


@dataclass(frozen=True, eq=False)
class FewShot:
    """``frame``: a row a training run, ``chosen`` where its rate was taken. ``curves``: loss of the batches
    of each chosen run, step by step."""

    model: str
    profile: Profile
    frame: pd.DataFrame
    curves: pd.DataFrame

    def accuracy(self) -> pd.DataFrame:
        """A row for each method and shots: mean test accuracy over seeds and its 95% t interval, mean training
        accuracy, steps, parameters, and how often each rate was chosen."""
        rows = []
        for method, shots in itertools.product(METHODS, self.profile.shots):
            of = self._chosen().query("method == @method and shots == @shots")
            mean, low, high = interval(of["test_accuracy"])
            rates = of["rate"].value_counts().sort_index()
            rows.append(
                {
                    "method": method, "parameters": int(of["parameters"].iloc[0]),
                    "classifier": int(of["classifier"].iloc[0]), "shots": shots, "accuracy": mean, "low": low,
                    "high": high, "training_accuracy": of["training_accuracy"].mean(),
                    "training_loss": of["training_loss"].mean(), "steps": of["steps"].mean(),
                    "rates": {f"{rate:g}": int(count) for rate, count in rates.items()},
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def differences(self) -> pd.DataFrame:
        """Test accuracy of ``first`` less that of ``second`` with its 95% paired t interval over seeds, at each number
        of shots and, ``shots`` 0, of the mean over all of them."""
        wide = self._chosen().pivot(index=["shots", "seed"], columns="method", values="test_accuracy")
        rows = []
        for first, second in itertools.combinations(STRUCTURES, 2):
            gap = (wide[first] - wide[second]).unstack("shots")
            columns = {0: gap.mean(axis=1)} | {shots: gap[shots] for shots in self.profile.shots}
            for shots, values in columns.items():
                mean, low, high = interval(values)
                rows.append(
                    {"first": first, "second": second, "shots": shots, "difference": mean, "low": low, "high": high}
                )
        return pd.DataFrame(rows)

    def _chosen(self) -> pd.DataFrame:
        return self.frame[self.frame["chosen"]]


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and its t interval at ``CONFIDENCE_LEVEL``; values: one a seed, two at least."""
    mean, error = summarise(values.to_numpy(), "mean")
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE_LEVEL) / 2)) * error
    return mean, mean - half, mean + half


def prepare(name: str, model: Any, tokenizer: Any, profile: Profile) -> Task:
    """The task for a model in float32, which is frozen by this. Raises ``InputError`` if it is no BERT, or if the
    snippets cannot be had or do not suffice."""
    check(model).requires_grad_(False)
    found = data.snippets()
    labels = found["label"].to_numpy()
    split = data.split(labels, profile.seeds, max(profile.shots), profile.validation, profile.test)
    tokens = tokenizer(found["text"].tolist())["input_ids"]
    known = [
        asdict(profile), model.device.type, torch.__version__, transformers.__version__, NETWORK, SEEN,
        _CLASSIFIER_RATE, _WARM_UP, tokens, labels.tolist(), {k: v.tolist() for k, v in asdict(split).items()},
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(known).encode())
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return Task(profile, name, model, tokens, labels, split, digest.hexdigest()[:12])


def run(task: Task, out: str | Path, report: Callable[[Progress], None] = lambda _: None) -> FewShot:
    """Train what ``out`` does not have yet, a run on each core, and sum up.

    On a CPU the same machine and versions give the same numbers, whatever the number of cores and however often it was
    interrupted: a run uses one thread and random numbers of its own. Raises ``InputError`` for a folder that cannot be
    written, that another process writes, or that has a damaged row.
    """
    profile, folder, stop, rows = task.profile, RunFolder(out), threading.Event(), []
    groups = list(itertools.product(range(profile.seeds), profile.shots, METHODS))
    workers = jax.local_device_count("cpu") if task.model.device.type == "cpu" else 1
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with folder.writing():
        try:
            waiting = [pool.submit(_group, task, folder, stop, *group) for group in groups]
            for count, done in enumerate(as_completed(waiting), 1):
                rows += done.result()
                # Rows know what they took, also those of an earlier process.
                left = sum(r["seconds"] for r in rows) / count * (len(groups) - count) / workers
                report(Progress(count, len(groups), done.result(), left))
        finally:  # after Ctrl-C the threads end at their next step
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return summed_up(task.name, profile, rows)


def summed_up(model: str, profile: Profile, rows: list[dict[str, Any]]) -> FewShot:
    """Rows of all runs, in whatever order they ended, as a result."""
    rows = sorted(rows, key=lambda r: (METHODS.index(r["method"]), r["shots"], r["seed"], r["rate"]))
    curves = [
        {"method": r["method"], "shots": r["shots"], "seed": r["seed"], "step": step, "loss": loss}
        for r in rows if r["chosen"] for step, loss in enumerate(r["losses"])
    ]  # fmt: skip
    return FewShot(model, profile, pd.DataFrame(rows).drop(columns="losses"), pd.DataFrame(curves))


def _group(
    task: Task, folder: RunFolder, stop: threading.Event, seed: int, shots: int, method: str
) -> list[dict[str, Any]]:
    """The rows of one method with one number of shots and one seed, the rate that validation chooses marked.

    The test set is looked at when a rate is the best so far: the best of all has then been tested, and no weights
    need be kept.
    """
    training = task.split.training[seed, : 2 * shots]
    fit = partial(_probe if method == PROBE else tune, task, method, training, seed, stop)
    rows: list[dict[str, Any]] = []
    for rate in task.profile.rates[method]:
        name = f"rows/{task.digest}-{method.replace(' ', '-')}-{shots}-{seed}-{rate:g}.json"
        row = folder.read_json(name)
        if not row:
            began = time.monotonic()
            fitted = fit(rate)
            row = {"method": method, "shots": shots, "seed": seed, "rate": rate} | _measured(task, fitted, seed, shots)
            if row == max([*rows, row], key=rank):
                row["test_accuracy"], row["test_loss"] = measure(fitted, task.split.test, task.labels)
            row["seconds"] = time.monotonic() - began
            folder.write_json(name, row)
        rows.append(row)
    best = max(rows, key=rank)
    return [row | {"chosen": row is best} for row in rows]


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """What the choice of a rate goes by: validation accuracy, then validation loss (one that overflowed is last)."""
    loss = row["validation_loss"]
    return row["validation_accuracy"], -math.inf if loss is None else -loss


def _measured(task: Task, fitted: Fitted, seed: int, shots: int) -> dict[str, Any]:
    """Everything about a run but its test accuracy, which is not yet to be known."""
    training = task.split.training[seed, : 2 * min(shots, SEEN)]
    row: dict[str, Any] = {k: v for k, v in fitted._asdict().items() if k != "logits"}
    row["training_accuracy"], row["training_loss"] = measure(fitted, training, task.labels)
    row["validation_accuracy"], row["validation_loss"] = measure(fitted, task.split.validation[seed], task.labels)
    return row | {"test_accuracy": None, "test_loss": None}


def measure(fitted: Fitted, rows: np.ndarray, labels: np.ndarray) -> tuple[float, float | None]:
    """Accuracy and cross-entropy (nats; None if it overflowed) on rows of the task."""
    logits, wanted = fitted.logits(rows), labels[rows]
    loss = -float(log_softmax(logits, axis=1)[np.arange(len(rows)), wanted].mean())
    return float((logits.argmax(axis=1) == wanted).mean()), loss if math.isfinite(loss) else None


def tune(task: Task, method: str, rows: np.ndarray, seed: int, stop: threading.Event, rate: float) -> Fitted:
    """Train a prefix, or the whole model, and a linear classifier on training rows, dropout off.

    Batches and the start of the classifier are those of the seed, the same for every method and rate.
    """
    profile, size = task.profile, task.model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    classifier = linear(size, 2, generator).to(task.model.device)
    whole = method == FINE_TUNING
    model = copy.deepcopy(task.model).requires_grad_(True) if whole else task.model
    vectors = None if whole else prefix(method, model, profile.length, generator)
    tuned = list((model if vectors is None else vectors).parameters())
    optimiser = torch.optim.AdamW(
        [{"params": tuned, "lr": rate}, {"params": list(classifier.parameters()), "lr": _CLASSIFIER_RATE}],
        weight_decay=0.0, fused=True,
    )  # fmt: skip
    warm_up = _WARM_UP * profile.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, 1 - step / profile.steps)
    )
    losses = []
    for batch in itertools.islice(_batches(rows, profile.batch, seed), profile.steps):
        if stop.is_set():
            raise CancelledError
        labels = torch.as_tensor(task.labels[batch], device=model.device)
        logits = classifier(sentence_vectors(model, vectors, *_padded(task, batch)))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())

    def logits_of(rows: np.ndarray) -> np.ndarray:
        return _evaluated(task, rows, lambda ids, mask: classifier(sentence_vectors(model, vectors, ids, mask)))

    trained = sum(p.numel() for p in tuned if p.grad is not None)  # BERT's pooler has no part in it
    return Fitted(logits_of, trained, sum(p.numel() for p in classifier.parameters()), profile.steps, losses)


def _probe(task: Task, method: str, rows: np.ndarray, seed: int, stop: threading.Event, rate: float) -> Fitted:
    """Logistic regression on the sentence vectors of the frozen model, ``rate`` the C of scikit-learn."""

    found = LogisticRegression(C=rate, max_iter=10_000).fit(_frozen(task, tuple(rows)), task.labels[rows])

    def logits_of(rows: np.ndarray) -> np.ndarray:
        odds = found.decision_function(_frozen(task, tuple(rows)))
        return np.stack([np.zeros_like(odds), odds], axis=1)

    return Fitted(logits_of, 0, found.coef_.size + found.intercept_.size, int(found.n_iter_[0]), [])


@lru_cache(maxsize=16)  # every C looks at the same rows
def _frozen(task: Task, rows: tuple[int, ...]) -> np.ndarray:
    """Sentence vectors of the frozen model, (rows, m)."""
    return _evaluated(task, np.asarray(rows), partial(sentence_vectors, task.model, None))


def _batches(rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Without end: all rows in random order, then all again in another."""
    rng, left = np.random.default_rng(seed), rows[:0]
    while True:
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(rows)])
        yield left[:size]
        left = left[size:]


def _padded(task: Task, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (B, T) of these rows, as long as the longest."""
    tokens = [torch.tensor(task.tokens[row]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    return ids.to(task.model.device), mask.to(task.model.device)


def _evaluated(task: Task, rows: np.ndarray, of: Callable[..., torch.Tensor]) -> np.ndarray:
    """What ``of`` makes of these rows, in their order; sentences of like length go together."""
    order = np.argsort([len(task.tokens[row]) for row in rows], kind="stable")
    with torch.inference_mode():
        parts = [
            of(*_padded(task, rows[some])).cpu() for some in np.split(order, range(_EVALUATED, len(rows), _EVALUATED))
        ]
    return torch.cat(parts).double().numpy()[np.argsort(order)]
