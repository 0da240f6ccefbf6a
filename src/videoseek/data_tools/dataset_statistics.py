"""The numbers of a data set: every sample counts once, every video counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from videoseek.data_tools.lengths import Lengths
from videoseek.data_tools.video_probe import Measurement
from videoseek.pages.charts import Histogram, histogram
from videoseek.trajectory.grammar import CallFormat
from videoseek.types import KINDS, STRATEGIES, Sample

#: Title and unit of every histogram, in the order of display.
SPREADS = {
    "video_seconds": ("Length of a video", "seconds"),
    "clue_seconds": ("Length of a clue", "seconds"),
    "clue_position": ("Middle of a clue", "share of the video"),
    "clues": ("Clues of a sample", "clues"),
    "turns": ("Turns of a trajectory", "turns"),
    "calls": ("Calls of a trajectory", "calls"),
    "overview_tokens": ("Tokens of the overview", "tokens"),
    "crop_tokens": ("Tokens of all crops of a sample", "tokens"),
    "text_tokens": ("Tokens of text of a sample", "tokens"),
    "total_tokens": ("All tokens of a sample", "tokens"),
}


@dataclass(slots=True)
class DatasetStatistics:
    """The counts and values of a data set.

    `num_unread` counts unreadable records, `num_unopened` unopenable videos. All other numbers leave both out.
    """

    num_samples: int = 0
    num_unread: int = 0
    num_videos: int = 0
    num_unopened: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    strategies: Counter[str] = field(default_factory=Counter)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SPREADS})

    def add_sample(self, sample: Sample, fmt: CallFormat) -> None:
        """Adds the facts in the record."""
        self.num_samples += 1
        self.kinds[sample.kind] += 1
        self.values["clues"].append(len(sample.clues))
        self.values["clue_seconds"] += [end - start for start, end in sample.clues]
        if sample.turns and sample.kind != "perception":
            calls = [call for turn in sample.turns for call in fmt.parse(turn).crops]
            self.values["turns"].append(len(sample.turns))
            self.values["calls"].append(len(calls))
            self.strategies.update(call.strategy for call in calls)

    def add_video(self, samples: Iterable[Sample], measurement: Measurement) -> None:
        """Adds the facts in a video's file about the video and all samples of the video."""
        self.num_videos += 1
        info = measurement.facts.info
        if info is None:
            self.num_unopened += 1
            return
        self.values["video_seconds"].append(info.duration_seconds)
        for sample in samples:
            positions = ((start + end) / 2 / info.duration_seconds for start, end in sample.clues)
            self.values["clue_position"] += [min(position, 1.0) for position in positions]
        for length in measurement.lengths:
            if isinstance(length, Lengths):
                self.values["overview_tokens"].append(length.overview)
                self.values["crop_tokens"].append(length.crops)
                self.values["text_tokens"].append(length.text)
                self.values["total_tokens"].append(length.total)

    def kind_counts(self) -> dict[str, int]:
        """Returns the number of samples of each occurring kind."""
        return {kind: self.kinds[kind] for kind in KINDS if self.kinds[kind]}

    def strategy_counts(self) -> dict[str, int]:
        """Returns the number of calls of each occurring strategy."""
        return {strategy: self.strategies[strategy] for strategy in STRATEGIES if self.strategies[strategy]}

    def histograms(self) -> dict[str, Histogram]:
        """Returns the histograms by name, without empty histograms."""
        histograms = {name: histogram(*SPREADS[name], values) for name, values in self.values.items()}
        return {name: item for name, item in histograms.items() if item is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns everything as a JSON object."""
        spreads: Mapping[str, Any] = {
            name: asdict(item.summary) | {"unit": item.unit, "edges": item.edges, "counts": item.counts}
            for name, item in self.histograms().items()
        }
        return {
            "version": 1,
            "num_samples": self.num_samples,
            "num_unread": self.num_unread,
            "num_videos": self.num_videos,
            "num_unopened": self.num_unopened,
            "kinds": self.kind_counts(),
            "strategies": self.strategy_counts(),
            "spreads": spreads,
        }
