"""`python -m videoseek.data stats`: what a data set is made of, as a table, and as a page, a picture or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from videoseek.config import option
from videoseek.data_tools.lengths import PlannedCrop
from videoseek.data_tools.paths import output_file
from videoseek.data_tools.resumable_cache import ResumableCache
from videoseek.data_tools.settings import MeasureSettings, parse_sources
from videoseek.data_tools.statistics import Statistics
from videoseek.data_tools.video_probe import Measurement, VideoProbe, decode_workers, in_parallel
from videoseek.files import write_json, write_text
from videoseek.pages.charts import MODEL_COLOURS, Bar, Histogram, bar_chart, column_chart, plain_number
from videoseek.pages.page import Markup, document, join, tag
from videoseek.pages.viewer import KIND_LABELS
from videoseek.progress import Progress
from videoseek.samples.readers import Reader
from videoseek.types import Sample

USAGE = "python -m videoseek.data stats FILE|FOLDER ... [out=FILE.html|FILE.png|FILE.json] [cache=FILE] [key=value ...]"
_COLOUR = MODEL_COLOURS[-1]
_COLUMNS = ("values", "total", "least", "median", "mean", "p90", "most")


@dataclass(frozen=True)
class StatsSettings(MeasureSettings):
    out: str | None = option(None, "a page (.html), a picture (.png) or the numbers (.json)")


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, StatsSettings(), USAGE)
    out = output_file("out", settings.out, (".html", ".png", ".json")) if settings.out is not None else None
    statistics = collect(files, settings)
    print(text(statistics))
    if out is None:
        return
    if out.suffix == ".json":
        write_json(out, statistics.to_json())
    elif out.suffix == ".html":
        write_text(out, page(files, statistics))
    else:
        from videoseek.data_tools.plots import write_picture

        write_picture(out, title(files, statistics), list(statistics.histograms().values()))
    print(out)


def collect(files: Sequence[Path], settings: StatsSettings) -> Statistics:
    """Raises DataError for a file that cannot be read as a whole, and UsageError."""
    statistics, ids = Statistics(), set[str]()
    by_video: dict[str, list[tuple[Reader, int, int]]] = {}
    for reader in [Reader(path, settings.format, settings.paths, settings.prompt.format) for path in files]:
        with Progress(f"read {reader.path.name}", reader.records.size) as progress:
            for place, number, row in reader.rows(ids):
                progress.update(place, {"samples": statistics.num_samples})
                if row.sample is None:
                    statistics.num_unread += 1
                else:
                    statistics.add_sample(row.sample, settings.call_format)
                    by_video.setdefault(row.sample.video, []).append((reader, place, number))
            progress.update(reader.records.size, {"samples": statistics.num_samples})
    if not settings.metadata_only:
        _measure(by_video, statistics, settings)
    return statistics


def _measure(
    by_video: Mapping[str, Sequence[tuple[Reader, int, int]]], statistics: Statistics, settings: StatsSettings
) -> None:
    workers = settings.num_workers
    with ResumableCache(settings.cache_file) as journal, decode_workers(settings.deadline_seconds, workers):
        measurer = VideoProbe(settings.environment(PlannedCrop), journal, decode=False)

        def measured(video: str) -> tuple[list[Sample], Measurement]:
            samples = [reader.sample(place, number) for reader, place, number in by_video[video]]
            return samples, measurer.measure(video, samples)

        with Progress("videos", len(by_video)) as progress:
            for done, (samples, measurement) in enumerate(in_parallel(measured, by_video, workers), 1):
                statistics.add_video(samples, measurement)
                progress.update(done, {})


def title(files: Sequence[Path], statistics: Statistics) -> str:
    names = files[0].name if len(files) == 1 else f"{len(files)} files"
    return f"{names}: {statistics.num_samples:,} samples about {_videos(statistics)}"


def _videos(statistics: Statistics) -> str:
    return f"{statistics.num_videos:,} videos" if statistics.num_videos else "videos that were not opened"


def text(statistics: Statistics) -> str:
    """The numbers as a table for the terminal."""
    lines = [f"samples {statistics.num_samples}, videos {statistics.num_videos}", *_left_out(statistics), ""]
    for heading, counts in (("kind", statistics.kind_counts()), ("strategy", statistics.strategy_counts())):
        lines += [f"{heading} {name:<32} {count:>9}" for name, count in counts.items()]
    shown = list(statistics.histograms().values())
    width = max((len(item.title) for item in shown), default=0)
    lines += ["", " " * width + "".join(f"{name:>10}" for name in _COLUMNS)]
    return "\n".join(lines + [f"{item.title:<{width}}" + "".join(f"{n:>10}" for n in _numbers(item)) for item in shown])


def page(files: Sequence[Path], statistics: Statistics) -> str:
    """One HTML file: counts as bars, spreads as columns, and their numbers."""
    shown = list(statistics.histograms().values())
    notes = [tag("p", note, class_="notice") for note in _left_out(statistics)]
    charts = [
        column_chart(item.title, item.axis, item.edges, item.counts, unit=item.unit, colour=_COLOUR) for item in shown
    ]
    kinds = {KIND_LABELS.get(kind, kind): count for kind, count in statistics.kind_counts().items()}
    bars = tag(
        "div",
        tag("div", tag("h3", "Kinds of question"), _shares(kinds)),
        tag("div", tag("h3", "Strategies of the calls"), _shares(statistics.strategy_counts())),
        class_="verdict",
    )
    names = ", ".join(path.name for path in files) if len(files) > 1 else ""
    sections = [
        tag("p", f"{statistics.num_samples:,} samples about {_videos(statistics)}.", class_="lead"),
        tag("p", names, class_="quiet"),
        *notes,
        bars,
        tag("section", tag("h2", "Spreads"), tag("div", *charts, class_="charts")),
        tag("section", tag("h2", "Numbers"), tag("div", _table(shown), class_="wide")),
    ]
    return document("Data: " + (files[0].name if len(files) == 1 else f"{len(files)} files"), sections)


def _left_out(statistics: Statistics) -> list[str]:
    notes = []
    if statistics.num_unread:
        notes.append(
            f"{statistics.num_unread:,} records could not be read and are left out; the check command names them"
        )
    if statistics.num_unopened:
        notes.append(f"{statistics.num_unopened:,} videos could not be opened; the check command names them")
    return notes


def _shares(counts: Mapping[str, int]) -> Markup:
    total = sum(counts.values())
    if not total:
        return tag("p", "none", class_="quiet")
    return bar_chart([Bar(f"{name} ({count:,})", _COLOUR, count / total) for name, count in counts.items()])


def _table(shown: Iterable[Histogram]) -> Markup:
    header = tag("tr", tag("td"), *(tag("th", name, scope="col") for name in ("in", *_COLUMNS)))
    rows = [
        tag("tr", tag("th", item.title, scope="row"), tag("td", item.unit), *(tag("td", n) for n in _numbers(item)))
        for item in shown
    ]
    return tag("table", tag("thead", header), tag("tbody", join(rows)))


def _numbers(item: Histogram) -> list[str]:
    summary = item.summary
    spread = (summary.total, summary.least, summary.median, summary.mean, summary.p90, summary.most)
    return [f"{summary.num_values:,}", *map(plain_number, spread)]
