"""From a study to results: what a run keeps, that it can be stopped and grown, and that nothing moves when it is."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from threading import Event

import jax
import numpy as np
import pandas as pd
import pytest
from tiny import RUN, contents, study

import moe_sim as ms
from moe_sim.data.samples import ROWS_PER_CHUNK

FILES = Path(__file__).parent / "studies"
GROWN = {"sample__sizes": [1e2, 1e3, 1e4, 1e5], "sample__replicates": 6}


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Bit for bit: no tolerance."""
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run. Tests that write take a copy."""
    path = tmp_path_factory.mktemp("run") / "tiny"
    ms.run(study(), path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def no_computing(monkeypatch):
    def refuse(*_):
        raise AssertionError("a sample was drawn although every replicate was there")

    monkeypatch.setattr(RUN, "_samples", refuse)


# What is kept


def test_one_row_a_replicate(folder):
    frame = ms.load_results(folder).frame
    expected = [(n, r) for n in (100, 1000, 10000) for r in range(4)]
    assert list(zip(frame["n"], frame["replicate"], strict=True)) == expected
    assert {"certificate", "status", "objective", "objective_at_truth", "near:count"} <= set(frame)
    losses = {c.removeprefix("loss:") for c in frame if c.startswith("loss:")}
    assert losses == {"voronoi", "function", "mass", "atoms:single", "atoms:multi"}
    assert losses == {c.removeprefix("near:") for c in frame if c.startswith("near:")} - {"count"}
    assert [c for c in frame if c.startswith("estimate:")] == ["estimate:bias[0]", "estimate:prefix[0,0]"]
    assert frame["loss:atoms:multi"].isna().all()  # one atom shares its cell with none


def test_losses_are_those_of_the_estimates(folder):
    frame = ms.load_results(folder).frame
    bias, prefix = frame["estimate:bias[0]"], frame["estimate:prefix[0,0]"]
    mass = np.abs(np.exp(bias) - np.exp(0.2))
    np.testing.assert_allclose(frame["loss:mass"], mass, rtol=1e-12)
    np.testing.assert_allclose(frame["loss:atoms:single"], np.abs(prefix - 1.0), rtol=1e-12)
    np.testing.assert_allclose(frame["loss:voronoi"], mass + np.exp(bias) * np.abs(prefix - 1.0), rtol=1e-12)


def test_near_minimisers_are_no_better_than_the_best_fit(folder):
    frame = ms.load_results(folder).frame
    for loss in ("voronoi", "function", "mass", "atoms:single"):
        assert (frame[f"near:{loss}"] >= frame[f"loss:{loss}"]).all()


def test_folder_is_readable_without_moe_sim(folder):
    files = sorted((folder / "chunks").glob("*.parquet"))
    assert [f.name[:35] for f in files] == [f"n{n:016d}-r0000000-0000004-"[:35] for n in (100, 1000, 10000)]
    same(pd.concat([pd.read_parquet(f) for f in files], ignore_index=True), ms.load_results(folder).frame)
    assert not [f for f in contents(folder) if f.endswith(".tmp")]


def test_study_round_trips(folder):
    found = ms.load_study(folder / "study.toml")
    assert found.digest == study().digest
    assert found.tables == study().tables
    assert found.to_toml() == study().to_toml()


def test_digest_is_that_of_everything_but_sizes_and_replicates():
    assert study(**GROWN).digest == study().digest
    changes = {"sample__seed": 1, "fit__starts": 3, "law__points": 11, "model__noise": 0.31, "claim__0__exponent": 0.4}
    others = {study(**{key: value}).digest for key, value in changes.items()}
    assert len(others | {study().digest}) == len(changes) + 1


def test_provenance(folder):
    found = json.loads((folder / "provenance.json").read_text())
    assert {"jax", "jaxlib", "numpy", "scipy", "pandas", "moe_sim"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["python"].startswith("3.") and found["platform"] and found["machine"]
    assert (found["digest"], found["seed"]) == (study().digest, 0)


def test_memory_and_folder_hold_the_same(folder):
    kept, held = ms.load_results(folder), ms.run(study())
    same(held.frame, kept.frame)
    assert held.folder is None and kept.folder == folder
    assert ms.judge(held) == ms.judge(kept)


# Going on


def test_results_survive_pickling(folder):
    done = ms.load_results(folder)
    back = pickle.loads(pickle.dumps(done))
    assert back.study.digest == done.study.digest and back.frame.equals(done.frame)
    assert [v.to_json() for v in ms.judge(back)] == [v.to_json() for v in ms.judge(done)]


def test_a_finished_run_is_not_run_again(copied, no_computing):
    before = contents(copied)
    same(ms.run(study(), copied).frame, ms.run(study(), copied).frame)
    assert contents(copied) == before


def test_growing_moves_nothing(copied, folder, tmp_path):
    old = ms.load_results(folder).frame
    grown = ms.run(study(**GROWN), copied).frame
    assert len(grown) == 24
    kept = grown[(grown["n"] <= 10**4) & (grown["replicate"] < 4)].reset_index(drop=True)
    same(kept, old)
    for name, content in contents(folder).items():
        if name.startswith("chunks"):
            assert (copied / name).read_bytes() == content
    same(grown, ms.run(study(**GROWN)).frame)


def test_a_part_of_a_run_can_be_asked_for(copied, folder, no_computing):
    """Fewer sizes and replicates than the folder has: the rest stays there, and is not judged."""
    part = ms.run(study(sample__sizes=[1e2, 1e4], sample__replicates=2), copied).frame
    whole = ms.load_results(folder).frame
    same(part, whole[whole["n"].isin([100, 10000]) & (whole["replicate"] < 2)].reset_index(drop=True))
    same(ms.run(study(), copied).frame, whole)


def test_replicates_differ_and_so_do_seeds(folder):
    frame = ms.load_results(folder).frame
    other = ms.run(study(sample__seed=1)).frame
    values = pd.concat([frame["objective_at_truth"], other["objective_at_truth"]])
    assert values.nunique() == 24


def test_many_replicates_are_kept_in_chunks(folder, tmp_path):
    reports = []
    frame = ms.run(study(sample__sizes=[1e2], sample__replicates=103), tmp_path / "many", reports.append).frame
    assert RUN.REPLICATES_PER_CHUNK == 100
    assert [(p.n, p.done, p.total) for p in reports] == [(100, 100, 103), (100, 103, 103)]
    assert frame["replicate"].tolist() == list(range(103))
    assert frame["objective"].nunique() == 103
    same(frame[:4], ms.load_results(folder).frame[:4])
    assert reports[-1].certified == (frame["certificate"] == "certified").mean()
    assert len(list((tmp_path / "many" / "chunks").iterdir())) == 2


def test_ctrl_c_keeps_what_was_done(folder, tmp_path):
    path = tmp_path / "stopped"
    reports = []

    def interrupt(progress):
        reports.append(progress.n)
        if len(reports) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ms.run(study(), path, interrupt)
    chunks = {name: content for name, content in contents(path).items() if name.startswith("chunks")}
    assert len(chunks) == 2
    reports.clear()
    results = ms.run(study(), path, lambda p: reports.append(p.n))
    assert reports == [10000]
    same(results.frame, ms.load_results(folder).frame)
    assert chunks.items() <= contents(path).items()


def test_the_next_chunk_is_made_ready_meanwhile(folder, monkeypatch):
    """Each chunk waits, before it is computed, for the beginning of the next one: alone it would wait in vain."""
    sizes, begun = [100, 1000, 10000], {n: Event() for n in (100, 1000, 10000)}
    begin, finish, order = RUN._begin, RUN._finish, []

    def beginning(study, machine, n, index):
        begun[n].set()
        return begin(study, machine, n, index)

    def finishing(chunk):
        order.append(chunk.n)
        assert all(begun[n].wait(20) for n in sizes[: len(order) + 1])
        assert not any(begun[n].is_set() for n in sizes[len(order) + 1 :]), "no more than one is kept ready"
        return finish(chunk)

    monkeypatch.setattr(RUN, "_begin", beginning)
    monkeypatch.setattr(RUN, "_finish", finishing)
    same(ms.run(study()).frame, ms.load_results(folder).frame)
    assert order == sizes


def test_a_chunk_that_cannot_be_made_ready_loses_nothing(folder, tmp_path, monkeypatch):
    """Its error comes when its turn has come: the chunk before it, computed meanwhile, is kept."""
    draw = RUN._samples

    def failing(study, machine, n, index):
        if n == 10000:
            raise MemoryError("no room for it")
        return draw(study, machine, n, index)

    with monkeypatch.context() as patch:
        patch.setattr(RUN, "_samples", failing)
        with pytest.raises(MemoryError, match="no room"):
            ms.run(study(), tmp_path / "run")
    assert ms.load_results(tmp_path / "run").frame["n"].unique().tolist() == [100, 1000]
    same(ms.run(study(), tmp_path / "run").frame, ms.load_results(folder).frame)


def test_a_stopped_run_can_be_read(folder, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ms.run(study(), tmp_path / "stopped", interrupt)
    results = ms.load_results(tmp_path / "stopped")
    assert results.frame["n"].unique().tolist() == [100]
    assert [v.verdict for v in ms.judge(results)] == ["undecided", "undecided"]


def test_a_lost_chunk_is_computed_again(copied, monkeypatch):
    grown = ms.run(study(**GROWN), copied).frame
    next((copied / "chunks").glob("n0000000000001000-r0000000-0000004-*.parquet")).unlink()
    same(ms.run(study(**GROWN), copied).frame, grown)


def test_a_flipped_bit_is_noticed(copied):
    whole = ms.load_results(copied).frame
    chunk = sorted((copied / "chunks").iterdir())[0]
    content = chunk.read_bytes()
    for place in np.linspace(4, len(content) - 9, 200).astype(int):
        chunk.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = ms.load_results(copied).frame
        except ms.InputError:
            continue
        same(found, whole)


# Starts, modes, evidence


def test_start_rules_meet_the_same_data(folder):
    frames = {"data": ms.load_results(folder).frame}
    for start in ("truth", "wide"):
        results = ms.run(study(fit__start=start))
        frames[start] = results.frame
        assert {v.to_json()["start"] for v in ms.judge(results)} == {start}
    data = frames["data"]
    assert {v.to_json()["start"] for v in ms.judge(ms.load_results(folder))} == {"data"}
    for start in ("truth", "wide"):
        same(frames[start][["n", "replicate", "objective_at_truth"]], data[["n", "replicate", "objective_at_truth"]])
        # One atom, nothing over-specified: every start finds the one minimum, by another road.
        np.testing.assert_allclose(frames[start]["objective"], data["objective"], atol=1e-4)
        assert not np.array_equal(frames[start]["passes"], data["passes"])


def test_best_objective_is_not_above_the_truth(folder):
    frame = ms.load_results(folder).frame
    good = frame["certificate"] == "certified"
    assert good.all()
    assert (frame["objective"] <= frame["objective_at_truth"]).all()


def test_iid_samples_of_any_size_and_law():
    """n below, at and above one chunk of 1,024 rows, multiples of it and not, from a law on no finite set of points.

    Each observation adds one half of a squared standard normal to the objective at the truth: its mean is n/2 and
    its standard deviation sqrt(n/2). The mean of 4 replicates lies within 5 standard errors: 6e-7 false alarms a size.
    """
    sizes = [1000, 1024, 2048, 5000]
    law = {"name": "uniform", "low": -2.0, "high": 2.0}
    frame = ms.run(study(law=law, sample__mode="iid", sample__sizes=sizes)).frame
    assert ROWS_PER_CHUNK == 1024
    for n, group in frame.groupby("n"):
        assert abs(group["objective_at_truth"].mean() - n / 2) < 5 * np.sqrt(n / 2 / 4)
        assert group["objective_at_truth"].nunique() == 4
    assert frame["n"].unique().tolist() == sizes
    assert (frame["certificate"] == "certified").all()
    assert (frame["loss:function"] < 0.1).all()


LOWER = [{"loss": "voronoi:r=2", "kind": "lower", "window": [1e3, 1e4]}]


@pytest.mark.parametrize("name, expected", [("independent-over", "supported"), ("shared-over", "undecided")])
def test_study_files_run(name, expected, tmp_path):
    """The studies of the repository, at two sizes and three replicates; the lower claim is judged without a slope."""
    tables = ms.load_study(FILES / f"{name}.toml").tables
    quick = ms.Study(**tables | {"claim": tables["claim"] + LOWER}).replace(sizes=[1e3, 1e4], replicates=3, quick=True)
    assert quick.name == name
    results = ms.run(quick, tmp_path / name)
    assert len(results.frame) == 6
    verdicts = ms.judge(results)
    assert len(verdicts) == 3
    assert verdicts[-1].verdict == expected
    assert (json.loads((tmp_path / name / "evidence.json").read_text()) == {}) == (expected == "undecided")


def test_quick_keeps_at_most_twenty_replicates():
    whole = ms.load_study(FILES / "shared-over.toml")
    assert whole.problem.replicates == 100
    assert whole.replace(quick=True).problem.replicates == 20
    assert whole.replace(quick=True, replicates=30).problem.replicates == 30
    assert study().replace(quick=True).problem.replicates == 4
    assert whole.replace(quick=True).problem.sizes == whole.problem.sizes
