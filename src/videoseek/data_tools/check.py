"""`python -m videoseek.data check`: is this data what a run can train on? A table of what is not, and exit code 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videoseek.config import option
from videoseek.data_tools.lengths import PlannedCrop
from videoseek.data_tools.paths import existing_files, output_file
from videoseek.data_tools.resumable_cache import ResumableCache
from videoseek.data_tools.settings import MeasureSettings, parse_sources
from videoseek.data_tools.validator import Finding, Validator
from videoseek.data_tools.video_probe import VideoProbe, decode_workers
from videoseek.files import write_text
from videoseek.samples.check import is_error
from videoseek.samples.schema import DataError

USAGE = "python -m videoseek.data check FILE|FOLDER ... [held_out=[FILE ...]] [report=FILE.json] [key=value ...]"
_EXAMPLES = 3


@dataclass(frozen=True)
class CheckSettings(MeasureSettings):
    need_turns: bool = option(False, "every record must have the assistant's turns, as SFT needs them")
    held_out: list[str] = option([], "files whose videos must not be among those that are checked")
    report: str | None = option(None, "JSON file for every finding")


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, CheckSettings(), USAGE, written="report")
    held_out = existing_files(settings.held_out)
    report = output_file("report", settings.report, (".json",)) if settings.report is not None else None
    audit = validate(files, held_out, settings)
    findings = audit.findings()
    num_errors = sum(is_error(finding.code) for finding in findings)
    print(table(findings))
    print(
        f"{audit.num_records} records of {len(files)} files, {len(audit.by_video)} videos: "
        f"{num_errors} errors, {len(findings) - num_errors} warnings"
    )
    if report is not None:
        write_text(report, report_json(files, audit, findings))
    if num_errors:
        raise DataError(f"{num_errors} errors were found; the data cannot be trained on as it is")


def validate(files: Sequence[Path], held_out: Sequence[Path], settings: CheckSettings) -> Validator:
    """Raises UsageError, and DataError for held-out files that cannot be read."""
    audit = Validator(settings.rules, need_turns=settings.need_turns, max_tokens=settings.max_tokens)

    def read() -> None:
        audit.read(files, settings.format, settings.paths)
        audit.find_leaks(held_out, settings.format, settings.paths)

    if settings.metadata_only:
        read()
        audit.find_missing_files()
        return audit
    with (
        ResumableCache(settings.cache_file) as journal,
        decode_workers(settings.deadline_seconds, settings.num_workers),
    ):
        # First, since a model that is not there should not be said after an hour of reading.
        measurer = VideoProbe(settings.environment(PlannedCrop), journal, decode=True)
        read()
        audit.measure(measurer, settings.num_workers)
    return audit


def table(findings: Sequence[Finding]) -> str:
    """One block a code, errors first: how often it was found, and the first examples."""
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    lines = []
    for code, found in sorted(by_code.items(), key=lambda item: (not is_error(item[0]), -len(item[1]), item[0])):
        lines.append(f"{'error' if is_error(code) else 'warning':<8} {code:<20} {len(found):>8}")
        lines += [f"    {_printable(_sentence(finding))}" for finding in found[:_EXAMPLES]]
    return "\n".join(lines) if lines else "no findings"


def _sentence(finding: Finding) -> str:
    """What is wrong with a file as a whole names it already."""
    names_it = finding.message.startswith(finding.where)
    return finding.message if names_it else f"{finding.where}: {finding.message}"


def report_json(files: Sequence[Path], audit: Validator, findings: Sequence[Finding]) -> str:
    errors = [finding for finding in findings if is_error(finding.code)]
    value = {
        "version": 1,
        "files": [str(path) for path in files],
        "num_records": audit.num_records,
        "num_videos": len(audit.by_video),
        "num_errors": len(errors),
        "num_warnings": len(findings) - len(errors),
        "findings": [
            {
                "where": finding.where,
                "id": finding.id,
                "severity": "error" if is_error(finding.code) else "warning",
                "code": finding.code,
                "message": finding.message,
            }
            for finding in findings
        ],
    }
    return json.dumps(value, indent=1) + "\n"  # ASCII: a record may hold halves of characters


def _printable(text: str) -> str:
    """Records are strangers' texts: none of their control characters reaches the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
