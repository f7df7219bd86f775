"""A study killed by SIGKILL at random, again and again, until it is done. Run it by hand (about a quarter of an hour):

    .venv/bin/python tests/kills.py [KILLS]

No finished chunk may be lost or computed again, and the table must be that of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tiny import study, write

import moe_sim as ms

CHANGES = {"sample__sizes": [10.0**k for k in range(2, 10)], "sample__replicates": 2000, "fit__atoms": 2}


def chunks(folder: Path) -> dict[str, int]:
    """Names of the chunks, and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("chunks/n*.parquet")}


def killed_to_the_end(rng: np.random.Generator, most: int) -> tuple[int, int]:
    """Kill one study at most so often, let it end, and compare: kills, and how many came after a new chunk."""
    with tempfile.TemporaryDirectory() as place:
        path = write(Path(place), **CHANGES)
        command = [sys.executable, "-m", "moe_sim", "run", str(path), "--out", "run"]
        folder, kills, grew = Path(place) / "run", 0, 0
        before: dict[str, int] = {}
        while kills < most:
            process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # What comes before the first chunk takes seconds, a chunk a fraction of one: most kills hit the middle.
            deadline = time.monotonic() + rng.uniform(0.5, 30)
            start = len(chunks(folder))
            while time.monotonic() < deadline and len(chunks(folder)) == start and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            done = process.poll() is not None
            process.kill()
            process.wait()
            after = chunks(folder)
            assert before.items() <= after.items(), "a finished chunk was lost or written again"
            if done:
                break
            kills, grew, before = kills + 1, grew + (len(after) > start), after
        assert subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL).returncode == 0
        assert before.items() <= chunks(folder).items() and not list(folder.rglob("*.tmp"))
        expected = ms.run(study(**CHANGES)).frame
        pd.testing.assert_frame_equal(ms.load_results(folder).frame, expected, check_exact=True)
        return kills, grew


def main(kills: int) -> None:
    rng = np.random.default_rng(0)
    total, late, studies = 0, 0, 0
    while total < kills:
        more, grew = killed_to_the_end(rng, kills - total)
        total, late, studies = total + more, late + grew, studies + 1
    print(f"{total} kills of {studies} studies, {late} of them after a new chunk; all tables the same, bit for bit")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
