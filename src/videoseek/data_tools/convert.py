"""`python -m videoseek.data convert`: reads files of any known format and writes a file of a chosen format."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from videoseek.command import parse_files
from videoseek.config import UsageError
from videoseek.data_tools.paths import existing_files
from videoseek.data_tools.settings import ConvertSettings
from videoseek.data_tools.writers import WRITERS
from videoseek.runtime import Progress
from videoseek.samples.readers import Reader
from videoseek.samples.readers.rows import Problem, VideoPaths, problem_lines
from videoseek.samples.schema import DataError
from videoseek.types import Sample

_REPORT_EVERY = 256


class _Conversion:
    """Reads the good samples of all files in one pass; keeps the bad records and the folders of videos."""

    def __init__(self, readers: Sequence[Reader], settings: ConvertSettings) -> None:
        self._readers, self._settings = readers, settings
        self.bad: list[tuple[str, Problem]] = []
        self.folders: set[str] = set()
        self.num_written = 0

    def samples(self) -> Iterator[Sample]:
        """Yields the good samples.

        Raises DataError at the end if all records were bad, or if a record was bad and bad_samples=stop.
        """
        ids: set[str] = set()
        total = sum(reader.records.size for reader in self._readers)
        done = 0
        with Progress("convert", total) as progress:
            for reader in self._readers:
                for row in reader.rows(ids):
                    if row.problem is not None:
                        self.bad.append((row.where, row.problem))
                    elif row.sample is not None:
                        self.num_written += 1
                        self.folders.add(os.path.dirname(row.sample.video))
                        yield row.sample
                    if row.number % _REPORT_EVERY == 0:
                        progress.track(done + row.offset, total)
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
    files, settings = parse_files(arguments, ConvertSettings(), ConvertSettings.usage)
    if not files or settings.out is None:
        raise UsageError(f"{'out= is' if files else 'files to read are'} missing; {settings.usage}")
    out, writer = Path(settings.out).expanduser(), WRITERS[settings.to]
    writer.check_name(out)
    if out.exists() and not settings.overwrite:
        raise UsageError(f"out={settings.out} exists already; overwrite=true replaces it")
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
