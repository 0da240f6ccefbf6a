"""`python -m videoseek.data check`: prints the faults of training data; exit code 1 for any error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videoseek.data_tools.lengths import PlannedCrop
from videoseek.data_tools.paths import existing_files, output_file
from videoseek.data_tools.protocol import protocol_rules, replay_environment
from videoseek.data_tools.resumable_cache import ResumableCache
from videoseek.data_tools.settings import CheckSettings, parse_sources
from videoseek.data_tools.validator import Finding, Validator
from videoseek.data_tools.video_probe import VideoProbe, decode_workers
from videoseek.files import write_text
from videoseek.samples.rules import is_error
from videoseek.samples.schema import DataError

_EXAMPLES = 3


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, CheckSettings(), written="report")
    held_out = existing_files(settings.held_out)
    report = output_file("report", settings.report, (".json",)) if settings.report is not None else None
    validator = validate(files, held_out, settings)
    findings = validator.findings()
    num_errors = sum(is_error(finding.code) for finding in findings)
    print(table(findings))
    print(
        f"{validator.num_records} records of {len(files)} files, {len(validator.by_video)} videos: "
        f"{num_errors} errors, {len(findings) - num_errors} warnings"
    )
    if report is not None:
        write_text(report, report_json(files, validator, findings))
    if num_errors:
        raise DataError(f"{num_errors} errors were found; the data cannot be trained on as it is")


def validate(files: Sequence[Path], held_out: Sequence[Path], settings: CheckSettings) -> Validator:
    """Applies all rules to the files. Raises UsageError, and DataError for unreadable held-out files."""
    validator = Validator(protocol_rules(settings), need_turns=settings.need_turns, max_tokens=settings.max_tokens)

    def read() -> None:
        validator.read(files, settings.format, settings.paths)
        validator.find_leaks(held_out, settings.format, settings.paths)

    if settings.metadata_only:
        read()
        validator.find_missing_files()
        return validator
    with (
        ResumableCache(settings.cache_file) as cache,
        decode_workers(settings.deadline_seconds, settings.num_workers),
    ):
        # Built first: a missing model is an error at once, instead of after an hour of reading.
        video_probe = VideoProbe(replay_environment(settings, PlannedCrop), cache, decode=True)
        read()
        validator.measure(video_probe, settings.num_workers)
    return validator


def table(findings: Sequence[Finding]) -> str:
    """Returns a block for each code, errors first: the number of findings, and the first examples."""
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    lines = []
    for code, group in sorted(by_code.items(), key=lambda item: (not is_error(item[0]), -len(item[1]), item[0])):
        lines.append(f"{'error' if is_error(code) else 'warning':<8} {code:<20} {len(group):>8}")
        lines += [f"    {_printable(_sentence(finding))}" for finding in group[:_EXAMPLES]]
    return "\n".join(lines) if lines else "no findings"


def _sentence(finding: Finding) -> str:
    """Returns the finding with the place; a message about a whole file names the file already."""
    is_named = finding.message.startswith(finding.where)
    return finding.message if is_named else f"{finding.where}: {finding.message}"


def report_json(files: Sequence[Path], validator: Validator, findings: Sequence[Finding]) -> str:
    """Returns every finding, and the numbers of findings, as JSON."""
    errors = [finding for finding in findings if is_error(finding.code)]
    value = {
        "version": 1,
        "files": [str(path) for path in files],
        "num_records": validator.num_records,
        "num_videos": len(validator.by_video),
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
    return json.dumps(value, indent=1) + "\n"  # ASCII, because a record may hold halves of characters


def _printable(text: str) -> str:
    """Escapes control characters, so a record's text leaves the terminal alone."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
