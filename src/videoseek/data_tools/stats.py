"""`python -m videoseek.data stats`: describes a data set in a table, and in a page, a picture or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from videoseek.data_tools.dataset_statistics import DatasetStatistics
from videoseek.data_tools.lengths import PlannedCrop
from videoseek.data_tools.paths import output_file
from videoseek.data_tools.protocol import replay_environment
from videoseek.data_tools.resumable_cache import ResumableCache
from videoseek.data_tools.settings import StatsSettings, parse_sources
from videoseek.data_tools.video_probe import Measurement, VideoProbe, decode_workers, in_parallel
from videoseek.files import write_json, write_text
from videoseek.pages.charts import MODEL_COLOURS, Bar, Histogram, bar_chart, column_chart, plain_number
from videoseek.pages.page import Markup, document, join, tag
from videoseek.pages.viewer import KIND_LABELS
from videoseek.runtime import Progress
from videoseek.samples.readers import Reader
from videoseek.types import Sample

_COLOUR = MODEL_COLOURS[-1]
_COLUMNS = ("values", "total", "least", "median", "mean", "p90", "most")


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, StatsSettings())
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


def collect(files: Sequence[Path], settings: StatsSettings) -> DatasetStatistics:
    """Reads all records and, unless `metadata_only`, opens all videos.

    Raises DataError for an unreadable file, and UsageError.
    """
    statistics, ids = DatasetStatistics(), set[str]()
    by_video: dict[str, list[tuple[Reader, int, int]]] = {}
    for reader in [Reader(path, settings.format, settings.paths, settings.prompt.format) for path in files]:
        with Progress(f"read {reader.path.name}", reader.records.size) as progress:
            for row in reader.rows(ids):
                progress.update(row.offset, {"samples": statistics.num_samples})
                if row.sample is None:
                    statistics.num_unread += 1
                else:
                    statistics.add_sample(row.sample, settings.call_format)
                    by_video.setdefault(row.sample.video, []).append((reader, row.offset, row.number))
            progress.update(reader.records.size, {"samples": statistics.num_samples})
    if not settings.metadata_only:
        _measure(by_video, statistics, settings)
    return statistics


def _measure(
    by_video: Mapping[str, Sequence[tuple[Reader, int, int]]], statistics: DatasetStatistics, settings: StatsSettings
) -> None:
    workers = settings.num_workers
    with ResumableCache(settings.cache_file) as cache, decode_workers(settings.deadline_seconds, workers):
        video_probe = VideoProbe(replay_environment(settings, PlannedCrop), cache, decode=False)

        def measure(video: str) -> tuple[list[Sample], Measurement]:
            samples = [reader.sample(offset, number) for reader, offset, number in by_video[video]]
            return samples, video_probe.measure(video, samples)

        with Progress("videos", len(by_video)) as progress:
            for done, (samples, measurement) in enumerate(in_parallel(measure, by_video, workers), 1):
                statistics.add_video(samples, measurement)
                progress.update(done, {})


def title(files: Sequence[Path], statistics: DatasetStatistics) -> str:
    """Returns the line above a picture."""
    names = files[0].name if len(files) == 1 else f"{len(files)} files"
    return f"{names}: {statistics.num_samples:,} samples about {_videos(statistics)}"


def _videos(statistics: DatasetStatistics) -> str:
    return f"{statistics.num_videos:,} videos" if statistics.num_videos else "videos that were not opened"


def text(statistics: DatasetStatistics) -> str:
    """Returns the numbers as a table for the terminal."""
    lines = [f"samples {statistics.num_samples}, videos {statistics.num_videos}", *_left_out(statistics), ""]
    for heading, counts in (("kind", statistics.kind_counts()), ("strategy", statistics.strategy_counts())):
        lines += [f"{heading} {name:<32} {count:>9}" for name, count in counts.items()]
    histograms = list(statistics.histograms().values())
    width = max((len(item.title) for item in histograms), default=0)
    lines += ["", " " * width + "".join(f"{name:>10}" for name in _COLUMNS)]
    lines += [f"{item.title:<{width}}" + "".join(f"{n:>10}" for n in _numbers(item)) for item in histograms]
    return "\n".join(lines)


def page(files: Sequence[Path], statistics: DatasetStatistics) -> str:
    """Returns an HTML file: counts as bars, histograms as columns, and numbers."""
    histograms = list(statistics.histograms().values())
    notes = [tag("p", note, class_="notice") for note in _left_out(statistics)]
    charts = [
        column_chart(item.title, item.axis, item.edges, item.counts, unit=item.unit, colour=_COLOUR)
        for item in histograms
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
        tag("section", tag("h2", "Numbers"), tag("div", _table(histograms), class_="wide")),
    ]
    return document("Data: " + (files[0].name if len(files) == 1 else f"{len(files)} files"), sections)


def _left_out(statistics: DatasetStatistics) -> list[str]:
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


def _table(histograms: Iterable[Histogram]) -> Markup:
    header = tag("tr", tag("td"), *(tag("th", name, scope="col") for name in ("in", *_COLUMNS)))
    rows = [
        tag("tr", tag("th", item.title, scope="row"), tag("td", item.unit), *(tag("td", n) for n in _numbers(item)))
        for item in histograms
    ]
    return tag("table", tag("thead", header), tag("tbody", join(rows)))


def _numbers(item: Histogram) -> list[str]:
    summary = item.summary
    spread = (summary.total, summary.least, summary.median, summary.mean, summary.p90, summary.most)
    return [f"{summary.num_values:,}", *map(plain_number, spread)]
