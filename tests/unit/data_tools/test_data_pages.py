"""The `stats`, `show` and `clueworld` commands: their numbers, their files, and texts that try to break out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support import broken_data
from support.html_page import HOSTILE, Page
from test_check_command import Done, run

from videoseek.pages.charts import histogram
from videoseek.samples.schema import read_samples, write_samples

RECIPE = "recipe=sft_rl"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of twelve generated samples about two videos."""
    folder = tmp_path_factory.mktemp("world") / "made"
    done = run("clueworld", f"out={folder}", "num=12", "seed=3")
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "samples.jsonl")
    return folder / "samples.jsonl"


def test_clueworld_makes_a_folder_once(world: Path) -> None:
    samples = read_samples(world)
    assert len(samples) == 12 and len({sample.video for sample in samples}) == 2
    assert {path.name for path in world.parent.parent.iterdir()} == {"made"}
    done = run("clueworld", f"out={world.parent}", "num=12")
    assert done.returncode == 2 and "exists already" in done.stderr
    assert run("clueworld").returncode == 2
    assert "must be one of base, base_heldout, train, heldout" in run("clueworld", "out=x", "split=test").stderr


def test_generated_data_passes_its_own_check(world: Path) -> None:
    done = run("check", world, RECIPE, "need_turns=true")
    assert done.returncode == 0 and " 0 errors" in done.stdout


def test_statistics_are_those_of_the_samples(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats.json"
    done = run("stats", world, RECIPE, f"out={out}")
    assert done.returncode == 0, done.stderr
    numbers, samples = json.loads(out.read_text()), read_samples(world)
    assert (numbers["num_samples"], numbers["num_videos"], numbers["num_unread"]) == (12, 2, 0)
    assert numbers["kinds"] == {kind: sum(s.kind == kind for s in samples) for kind in numbers["kinds"]}
    assert sum(numbers["kinds"].values()) == 12
    spreads = numbers["spreads"]
    clues = [clue for sample in samples for clue in sample.clues]
    assert spreads["clue_seconds"]["total"] == pytest.approx(sum(end - start for start, end in clues))
    assert spreads["clue_position"]["mean"] == pytest.approx(sum(map(sum, clues)) / 64 / len(clues))
    assert spreads["video_seconds"]["most"] == spreads["video_seconds"]["least"] == pytest.approx(32)
    assert spreads["turns"]["total"] == sum(len(sample.turns) for sample in samples)
    assert spreads["overview_tokens"]["total"] == 12 * 8
    parts = sum(spreads[f"{name}_tokens"]["total"] for name in ("overview", "crop", "text"))
    assert spreads["total_tokens"]["total"] == parts
    for spread in spreads.values():
        assert sum(spread["counts"]) == spread["num_values"]


def test_statistics_as_a_page_and_a_picture(world: Path, tmp_path: Path) -> None:
    mixed = tmp_path / f"{HOSTILE[:8]}.jsonl".replace("/", "")
    mixed.write_text(world.read_text() + "{broken\n")
    for name in ("stats.html", "stats.png"):
        done = run("stats", mixed, RECIPE, f"video_root={world.parent}", f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "stats.html")
    assert page.names["figure"] == 10 and page.names["script"] == 1
    assert "12 samples about 2 videos" in page.text and "1 records could not be read" in page.text
    assert not [value for value in page.values("src") + page.values("href") if not value.startswith("data:")]
    assert min(Image.open(tmp_path / "stats.png").size) > 800


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([1, 1, 2, 4], (0.5, 1.5, 2.5, 3.5, 4.5), (2, 1, 0, 1)),
        ([7], (6.5, 7.5), (1,)),
        ([0, 0, 0], (-0.5, 0.5), (3,)),
    ],
)
def test_few_whole_numbers_have_a_bin_each(
    values: list[float], edges: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    found = histogram("t", "u", values)
    assert found is not None and (found.edges, found.counts) == (edges, counts)


def test_bins_hold_every_value_and_grow_over_a_long_tail() -> None:
    for values in ([0.1 * i for i in range(100)], [10.0] * 50 + [14_400.0], [3.5, 3.5], [0.0, 1e6]):
        found = histogram("t", "u", values)
        assert found is not None and sum(found.counts) == len(values)
        assert found.edges[0] <= min(values) and found.edges[-1] >= max(values)
        assert found.axis.log == (values[0] == 10.0)
    assert histogram("t", "u", []) is None


def show(path: Path, out: Path, *arguments: str) -> Done:
    return run("show", path, f"out={out}", *arguments)


def test_a_sample_is_shown_with_its_clips(world: Path, tmp_path: Path) -> None:
    sample = next(
        sample for sample in read_samples(world) if sample.kind == "clue_multi_w_tool" and len(sample.turns) > 2
    )
    out = tmp_path / "one.html"
    assert show(world, out, RECIPE, f"id={sample.id}").returncode == 0
    page = Page(out)
    for words in (sample.question, f"Sample {sample.id}", "(key)", "Crop 1:", "Crop 2:", "reward 3", *sample.options):
        assert words in page.text
    pictures = [value for value in page.values("src") if value.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 16 + 2 * (len(sample.turns) - 1) and pictures == page.values("src")
    number = [item.id for item in read_samples(world)].index(sample.id) + 1
    assert show(world, tmp_path / "two.html", RECIPE, f"index={number}").returncode == 0
    assert (tmp_path / "two.html").read_text() == out.read_text()


@pytest.mark.parametrize("turns", [(), (HOSTILE,), (broken_data.ANSWER, HOSTILE)], ids=["none", "one", "after the end"])
def test_hostile_texts_stay_texts(world: Path, tmp_path: Path, turns: Sequence[str]) -> None:
    sample = replace(
        read_samples(world)[0],
        id=HOSTILE,
        question=HOSTILE,
        options=(HOSTILE, "b"),
        answer=HOSTILE,
        turns=tuple(turns),
    )
    write_samples(tmp_path / "hostile.jsonl", [sample])
    done = show(tmp_path / "hostile.jsonl", tmp_path / "page.html", "index=1", "video_root=/")
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "page.html")
    assert page.names["script"] == 1 and "onerror" not in {name for _, name, _ in page.attributes}
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert page.text.count("document.title='broken'") >= 4
    assert ("goes on" in page.text) == (len(turns) == 2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "{world}", "out=x.html"], 2, "give either id= or index="),
        (["show", "{world}", "id=a", "index=1", "out=x.html"], 2, "give either id= or index="),
        (["show", "{world}", "index=1"], 2, "out= is missing"),
        (["show", "{world}", "index=0", "out=x.html"], 2, "index must be at least 1"),
        (["show", "{world}", "{world}", "index=1", "out=x.html"], 2, "show reads one data file, got 2"),
        (["show", "{world}", "id=nobody", "out={tmp}/x.html"], 1, "no readable record with id 'nobody' among its 12"),
        (["show", "{world}", "index=13", "out={tmp}/x.html"], 1, "no readable record with index 13 among its 12"),
        (["show", "{broken}", "index=1", "out={tmp}/x.html"], 1, "line 1: no valid JSON"),
        (["show", "{broken}", "index=2", "out={tmp}/x.html"], 1, "gone.mp4' does not exist"),
        (["stats"], 2, "no data file was given"),
        (["stats", "{world}", "out=x.pdf"], 2, "out=x.pdf must end in .html or .png or .json"),
        (["stats", "{world}", "model={tmp}"], 1, "no config.json"),
    ],
)
def test_impossible_requests_give_one_sentence(
    world: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n" + json.dumps(broken_data.record(0) | {"video": "gone.mp4"}) + "\n")
    done = run(*(argument.format(world=world, tmp=tmp_path, broken=broken) for argument in arguments))
    assert done.returncode == code and words in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("verb", ["check", "stats", "show", "clueworld"])
def test_help(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m videoseek.data {verb}")
