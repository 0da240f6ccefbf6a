"""`python -m videoseek.data convert`: files of any format that is read to one file of a format that is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videoseek.command import parse_files
from videoseek.config import UsageError, option
from videoseek.data_tools.paths import existing_files
from videoseek.data_tools.writers import WRITERS
from videoseek.progress import Progress
from videoseek.samples.readers import FORMATS, Reader
from videoseek.samples.readers.rows import Problem, VideoPaths, problem_lines
from videoseek.samples.schema import DataError
from videoseek.types import Sample

USAGE = "python -m videoseek.data convert FILE|FOLDER ... out=FILE [to=FORMAT] [key=value ...]"
_REPORT_EVERY = 256


@dataclass(frozen=True)
class ConvertSettings:
    out: str | None = option(None, "file to write; videos inside its folder are named from there, others absolutely")
    to: str = option("videoseek", "format of that file", choices=tuple(WRITERS))
    format: str | None = option(
        None, "format of the files that are read (null: told from the first record of each)", choices=tuple(FORMATS)
    )
    video_root: str | None = option(
        None, "folder that videos may not leave and relative ones start from (null: each file's own)"
    )
    video_prefixes: list[str] = option([], "FROM=>TO rules for the paths of videos; the first that fits is applied")
    bad_samples: str = option(
        "stop", "records that cannot be used: write nothing and fail, or pass them over", choices=("stop", "skip")
    )
    overwrite: bool = option(False, "replace a file that is there already")


class _Conversion:
    """The good samples of all files in one pass; what is not good is kept by name, and the folders of videos."""

    def __init__(self, readers: Sequence[Reader], settings: ConvertSettings) -> None:
        self._readers, self._settings = readers, settings
        self.bad: list[tuple[str, Problem]] = []
        self.folders: set[str] = set()
        self.num_written = 0

    def samples(self) -> Iterator[Sample]:
        """Raises DataError at the end when a record was bad and bad ones stop the conversion, or none was good."""
        seen: set[str] = set()
        total = sum(reader.records.size for reader in self._readers)
        done = 0
        with Progress("convert", total) as progress:
            for reader in self._readers:
                for place, number, row in reader.rows(seen):
                    if row.problem is not None:
                        self.bad.append((row.where, row.problem))
                    elif row.sample is not None:
                        self.num_written += 1
                        self.folders.add(os.path.dirname(row.sample.video))
                        yield row.sample
                    if number % _REPORT_EVERY == 0:
                        progress.track(done + place, total)
                done += reader.records.size
                progress.track(done, total)
        if self.bad and self._settings.bad_samples == "stop":
            raise DataError(
                f"{len(self.bad)} of {self.num_written + len(self.bad)} records cannot be used; nothing was written; "
                "bad_samples=skip passes over them"
            )
        if not self.num_written:
            raise DataError("no record can be used, so nothing was written")


def main(arguments: list[str]) -> None:
    files, settings = parse_files(arguments, ConvertSettings(), USAGE)
    if not files or settings.out is None:
        raise UsageError(f"{'out= is' if files else 'files to read are'} missing; {USAGE}")
    out, writer = Path(settings.out).expanduser(), WRITERS[settings.to]
    writer.check_name(out)
    if out.exists() and not settings.overwrite:
        raise UsageError(f"out={settings.out} is there already; overwrite=true replaces it")
    paths = VideoPaths.of(settings.video_root, settings.video_prefixes)
    readers = [Reader(file, settings.format, paths) for file in existing_files(files, settings.out)]
    conversion = _Conversion(readers, settings)
    try:
        writer.write(out, conversion.samples())
    finally:
        if conversion.bad:
            print("\n".join(problem_lines(conversion.bad)), file=sys.stderr)
    for reader in readers:
        print(f"{reader.path}: {reader.format}")
    print(f"{out}: {settings.to}, {conversion.num_written} samples, {len(conversion.bad)} passed over")
    common = os.path.commonpath(conversion.folders)
    if not Path(common).is_relative_to(out.parent.resolve()):
        print(f"videos lie under {common}, outside the file's folder: read it with data.video_root={common}")
