from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_world import FORMAT, tiny_world

from videoseek.config import UsageError
from videoseek.rollout.replay import ReplayedEpisodes
from videoseek.samples.readers.rows import Problem, VideoPaths, problem_lines
from videoseek.samples.rules import find_bad
from videoseek.samples.schema import DataError, read_samples, write_samples
from videoseek.samples.sources import (
    CACHE_VARIABLE,
    Loading,
    Mixture,
    Source,
    cache_folder,
    load_samples,
    parse_source,
)
from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call, Sample

GOOD = {"id": "a", "video": "v.mp4", "question": "Where?", "answer": "B", "kind": "clue_single_w_tool"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of generated videos."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


def load(*names: str, **changes: object) -> Mixture:
    return load_samples(names, replace(Loading(seed=0), **changes))


def write(path: Path, *ids: str, **changes: object) -> str:
    path.write_text("".join(json.dumps(GOOD | {"id": name} | changes) + "\n" for name in ids))
    return str(path)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a.jsonl", Source("a.jsonl")),
        ("clueworld", Source("clueworld", is_generated=True)),
        ("clueworld*2", Source("clueworld", None, 2.0, is_generated=True)),
        ("clueworld:2400", Source("clueworld", is_generated=True, num_samples=2400)),
        ("clueworld_base:6*0.5", Source("clueworld_base", None, 0.5, is_generated=True, num_samples=6)),
        ("clueworld.jsonl", Source("clueworld.jsonl")),
        ("./clueworld", Source("./clueworld")),
        ("videoseek:clueworld", Source("clueworld", "videoseek")),
        ("b.parquet*0.5", Source("b.parquet", None, 0.5)),
        ("verl:dir/b.parquet", Source("dir/b.parquet", "verl")),
        ("seeker_rl:/x/b.json*3e-1", Source("/x/b.json", "seeker_rl", 0.3)),
        ("other:b.json", Source("other:b.json")),
        ("a*b/c.jsonl", Source("a*b/c.jsonl")),
    ],
)
def test_a_source_has_a_format_a_path_and_a_weight(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["a.jsonl*0", "a.jsonl*-1", "a.jsonl*", "a.jsonl*x", "a.jsonl*nan", "a.jsonl*inf"])
def test_bad_weights_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="weight of data source .* must be a number above 0"):
        parse_source(text)


@pytest.mark.parametrize("number", ["x", "0", "", "-1", "1.5", "1e3", "00", "²"])
def test_bad_numbers_of_generated_samples_are_refused(number: str) -> None:
    text = f"clueworld:{number}*2"
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert str(caught.value) == f"the number of samples of data source {text!r} must be at least 1, got {number!r}"


def test_a_generated_source_has_the_number_of_samples_that_it_names(cache: Path) -> None:
    assert [len(load("clueworld:7")), len(load("clueworld_base:8", held_out=True))] == [7, 8]
    assert {path.name.split("-")[1] for path in cache.iterdir()} == {"train", "base_heldout"}


def test_sources_are_joined_in_order_and_share_no_id(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.jsonl", "mine")
    both = load(mine, "clueworld:7")
    assert both[0].id == "mine" and len(both) == 8
    write(tmp_path / "mine.jsonl", both[3].id)
    with pytest.raises(DataError, match=f"id '{both[3].id}' is used twice"):
        load("clueworld:7", mine)
    with pytest.raises(DataError, match="does not exist"):
        load(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no samples"):
        load(str(tmp_path / "empty.jsonl"))
    assert len(load()) == 0


def test_one_source_gives_its_samples_in_the_order_of_the_file(cache: Path) -> None:
    """The order of a stage draws samples by index: an index means the same record as in the file read whole."""
    samples = load("clueworld:7")
    (path,) = cache.glob("clueworld-*/samples.jsonl")
    whole = read_samples(path)
    assert list(samples) == whole == samples[:]
    assert samples[-1] == whole[-1] and samples[2:5] == whole[2:5] and list(samples.distinct()) == whole
    with pytest.raises(IndexError):
        samples[len(whole)]


def test_cache_folder_may_be_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, "here")
    samples = load("clueworld:7")
    assert find_bad(samples, range(7), need_turns=True) == []
    assert {path.name for path in tmp_path.iterdir()} == {"here"}


@pytest.mark.parametrize("value", [None, "", "~/mine"])
def test_cache_folder_comes_from_the_environment(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.setenv(CACHE_VARIABLE, value or "")
    if value is None:
        monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder() == Path("/home/her/mine" if value else "/home/her/.cache/videoseek")


def test_weights_are_shares_of_draws(tmp_path: Path) -> None:
    ten = write(tmp_path / "a.jsonl", *(f"a{i}" for i in range(10)))
    four = write(tmp_path / "b.jsonl", *(f"b{i}" for i in range(4)))
    plain = [sample.id for sample in load(ten, four)]
    assert plain == [sample.id for sample in load(f"{ten}*3", f"{four}*3")]
    counts = Counter(sample.id for sample in load(f"{ten}*0.4", f"{four}*0.9"))
    assert all(counts[f"a{i}"] == 1 for i in range(10))
    assert sorted(counts[f"b{i}"] for i in range(4)) == [2, 2, 2, 3], "2.25 times each"
    draws = [[s.id for s in load(ten, f"{four}*0.75", seed=seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2], "which samples come up once more is drawn from the seed"
    assert len(load(f"{ten}*0.4", f"{four}*0.9").distinct()) == 14
    with pytest.raises(UsageError, match="by a factor of 100"):
        load(f"{ten}*0.001", four)
    with pytest.raises(UsageError, match="held-out sources have no weights"):
        load(ten, f"{four}*2", held_out=True)


def test_bad_records_stop_or_are_passed_over_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    lines = [json.dumps(GOOD), "{", json.dumps(GOOD | {"id": "b", "kind": "riddle"}), json.dumps(GOOD)]
    path.write_text("\n".join([*lines, json.dumps(GOOD | {"id": "c"})]))
    with pytest.raises(DataError, match=r"s\.jsonl, line 2: no valid JSON"):
        load(str(path))
    samples = load(str(path), skip_bad=True)
    assert [sample.id for sample in samples] == ["a", "c"]
    bad = list(samples.bad())
    assert [(where, problem.code) for where, problem in bad] == [
        (f"{path}, line 2", "bad_json"),
        (f"{path}, line 3", "bad_kind"),
        (f"{path}, line 4", "duplicate_id"),
    ]
    table = problem_lines([*bad, bad[1]])
    assert len(table) == 3 and table[0].startswith(f"          2  bad_kind           {path}, line 3: kind 'riddle'")
    samples.drop(lambda sample: Problem("missing_file", "gone") if sample.id == "a" else None)
    assert [sample.id for sample in samples] == ["c"]
    assert list(samples.bad())[-1] == (f"{path}, line 1", Problem("missing_file", "gone"))
    with pytest.raises(DataError, match="line 2: no valid JSON.*; none of the file's 5 records can be used"):
        samples.drop(lambda sample: Problem("missing_file", "gone"))


def test_samples_left_after_dropping_keep_their_weights(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", "a0", "a1", "a2"), write(tmp_path / "b.jsonl", "b0", "b1")
    samples = load(one, f"{two}*2")
    samples.drop(lambda sample: Problem("x", "x") if sample.id in ("a1", "b0") else None)
    assert [sample.id for sample in samples] == ["a0", "a2", "b1", "b1"]


def test_paths_are_mapped_and_confined(tmp_path: Path) -> None:
    (tmp_path / "films/sub").mkdir(parents=True)
    path = write(tmp_path / "s.jsonl", "a", video="s3://bucket/v.mp4")
    with pytest.raises(DataError, match="is no local file; a rule in video_prefixes can map it"):
        load(path)
    paths = VideoPaths.of(str(tmp_path / "films"), ["s3://bucket/=>sub/", "s3=>never"])
    assert load(path, paths=paths)[0].video == str(tmp_path.resolve() / "films/sub/v.mp4")
    escaping = VideoPaths.of(str(tmp_path / "films"), ["s3://bucket/=>../"])
    with pytest.raises(DataError, match="lies outside video_root"):
        load(path, paths=escaping)
    for rule in ("s3://bucket/", "=>x"):
        with pytest.raises(UsageError, match="video_prefixes wants rules such as"):
            VideoPaths.of(None, [rule])


def test_a_folder_of_frames_must_lie_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "root/frames").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    paths = VideoPaths(tmp_path / "root")
    assert paths.locate("frames#fps=4", tmp_path) == f"{tmp_path.resolve()}/root/frames#fps=4"
    for name in ("link#fps=4", "frames/../../elsewhere#fps=4"):
        path = write(tmp_path / "s.jsonl", "a", video=name)
        with pytest.raises(DataError, match="lies outside video_root"):
            load(path, paths=paths)


def test_calls_take_the_form_of_the_run(tmp_path: Path) -> None:
    hermes, grounding = (FORMATS[name]() for name in ("hermes", "grounding"))
    call, other = Call(1.0, 4.5, "fine"), Call(6.0, 8.0, "coarse")
    turns = [fmt.render_turn("look", call, None) for fmt in (hermes, grounding)]
    end = hermes.render_turn("seen", None, "B")
    one = write(tmp_path / "h.jsonl", "h", turns=[turns[0], end])
    two = write(tmp_path / "g.jsonl", "g", turns=[turns[1], end])
    for name, expected in (("hermes", turns[0]), ("grounding", turns[1])):
        for sample in load(one, two, call_format=name):
            assert sample.turns == (expected, end)
    several = turns[0] + hermes.render_turn("", other, None).removeprefix("<think></think>")
    path = write(tmp_path / "p.jsonl", "p", turns=[several, end])
    assert load(path, call_format="hermes")[0].turns[0] == several
    assert hermes.parse(several).calls == (call, other)
    with pytest.raises(DataError, match="line 1: turn 1 holds 2 calls; prompt.format=grounding allows one"):
        load(path, call_format="grounding")
    broken = ["<think>x</think>\n<tool_call>{]</tool_call>", "<think>x</think>\n<grounding>{]</grounding>"]
    for name, turn, expected in (("grounding", broken[0], broken[1]), ("hermes", broken[1], broken[0])):
        path = write(tmp_path / "x.jsonl", "x", turns=[turn, end])
        assert load(path, call_format=name)[0].turns == (expected, end)


@pytest.mark.parametrize("name", FORMATS)
def test_stored_calls_are_written_anew_for_any_other_format(tmp_path: Path, name: str) -> None:
    grounding, fmt = FORMATS["grounding"](), FORMATS[name]()
    windows = [(4.0, 8.0), (20.0, 10.0)]
    looks = [
        grounding.render_turn("look", Call(1.0, 4.0, "fine"), None).replace("[1, 4]", f"[{s}, {e}]") for s, e in windows
    ]
    end = grounding.render_turn("seen", None, "B")
    path = write(tmp_path / "s.jsonl", "s", turns=[*looks, end])
    if name in ("glue", "timestep", "time_caption", "retrieve"):
        with pytest.raises(DataError, match=f"line 1: prompt.format={name} (has no calls|writes frame indices)"):
            load(path, call_format=name)
        assert (
            fmt.parse(load(write(tmp_path / "e.jsonl", "e", turns=[end]), call_format=name)[0].turns[0]).answer == "B"
        )
        return
    shown, bad, last = map(fmt.parse, load(path, call_format=name)[0].turns)
    assert [(call.start_seconds, call.end_seconds) for call in shown.crops] == windows[:1] and shown.faults == ()
    assert bad.crops == () and [fault.code for fault in bad.faults] == ["reversed_segment"]
    assert last.answer == "B" and last.faults == ()


def test_replayed_episodes_are_kept_up_to_a_number_of_tokens() -> None:
    world = tiny_world()
    lengths = [len(world.environment.replay(sample).token_ids) for sample in world.samples[:4]]
    episodes = ReplayedEpisodes(world.samples, world.environment, max_cached_tokens=sum(lengths[:3]))
    first = episodes[0]
    kept = [first, episodes[1], episodes[2]]
    assert episodes[0] is first and episodes[1] is kept[1]
    episodes[3]
    assert episodes[1] is kept[1], "used after the first two were asked for"
    assert episodes[2] is not kept[2] and episodes[2].token_ids == kept[2].token_ids
    assert ReplayedEpisodes(world.samples, world.environment, max_cached_tokens=0)[0].token_ids == first.token_ids


def test_samples_read_by_offset_equal_the_written_ones(tmp_path: Path) -> None:
    world = tiny_world()
    write_samples(tmp_path / "s.jsonl", world.samples)
    samples = load(str(tmp_path / "s.jsonl"), call_format=FORMAT.name, paths=VideoPaths(Path("/")))
    assert list(samples) == world.samples
    assert find_bad(samples, range(len(samples)), need_turns=True) == []


def test_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "s.jsonl", "a")
    assert load("videoseek:~/s.jsonl")[0] == Sample(**GOOD | {"video": f"{tmp_path.resolve()}/v.mp4"})
