"""Rows of published tables, each with its protocol: one model differs by 10 to 15 points between protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Video-o3's tables: a VLMEvalKit fork, 2 frames a second up to 768, 16,384 tokens, greedy, without subtitles.
VIDEO_O3 = "Video-o3 (2601.23224): 2 fps, at most 768 frames, 16,384 tokens; MLVU is a micro average"
#: ParaVT's tables: its own driver, 64 frames sent as images, greedy, 2,048 new tokens, baselines with native prompts.
PARAVT = "ParaVT (2605.20342): 64 frames as images, 2,048 new tokens, own driver"
#: Numbers as the systems' own papers print them: each under another protocol.
OWN = "each paper's own protocol: frames, prompts and tools differ from row to row"
#: Tasks, the second with subtitles.
COLUMNS = ("videomme", "videomme +sub", "mlvu", "lvbench", "longvideobench", "videommmu", "mmvu") + (
    "video_holmes",
    "charades",
)


@dataclass(frozen=True, slots=True)
class PaperRow:
    """Percentages of a system in the order of COLUMNS; None where the table has no number."""

    system: str
    protocol: str
    values: tuple[float | None, ...]


_ = None
ROWS = (
    PaperRow("Qwen2.5-VL-7B", VIDEO_O3, (65.1, _, 70.2, 45.3, 56.0, 47.4, 61.3, 34.7, _)),
    PaperRow("LLaVA-Video-7B", VIDEO_O3, (63.3, _, 70.8, _, 58.2, _, _, _, _)),
    PaperRow("Video-R1-7B", VIDEO_O3, (61.4, _, _, _, _, 52.4, 63.8, _, _)),
    PaperRow("ReWatch-R1-7B", VIDEO_O3, (65.6, _, _, 43.3, _, 51.9, _, 44.3, _)),
    PaperRow("Video-Thinker-7B", VIDEO_O3, (_, _, _, 37.0, _, _, _, 43.2, _)),
    PaperRow("Video-RTS-7B", VIDEO_O3, (63.0, _, _, _, 56.6, 52.7, 66.4, _, _)),
    PaperRow("Video-MTR-7B", VIDEO_O3, (59.0, _, 59.7, 38.6, 56.4, _, _, _, _)),
    PaperRow("LOVE-R1-7B", VIDEO_O3, (66.2, _, 67.4, 48.2, 60.1, _, _, _, _)),
    PaperRow("Conan-7B", VIDEO_O3, (60.5, _, 63.4, 39.2, 56.6, _, _, 44.6, _)),
    PaperRow("LongVT-7B", VIDEO_O3, (64.3, _, _, 41.3, _, 45.4, _, _, _)),
    PaperRow("VideoZoomer-7B", VIDEO_O3, (65.2, _, _, 41.5, 57.7, 52.2, _, _, _)),
    PaperRow("Video-o3-7B, RL only", VIDEO_O3, (66.1, _, 71.9, 47.5, 59.3, 50.0, 66.9, 46.1, _)),
    PaperRow("Video-o3-7B, SFT and RL", VIDEO_O3, (66.5, _, 72.1, 47.6, 60.5, 51.7, 67.2, 46.5, _)),
    PaperRow("Qwen2.5-VL-7B, direct", PARAVT, (55.7, 64.5, 47.8, 32.2, 46.4, _, 65.4, _, 31.6)),
    PaperRow("Qwen3-VL-8B, tool", PARAVT, (59.9, 68.4, 58.3, 33.1, 52.2, _, 68.0, _, 49.3)),
    PaperRow("Video-R1-7B", PARAVT, (57.6, 66.0, 61.6, 36.9, 57.4, _, 61.3, _, 25.4)),
    PaperRow("Time-R1-7B", PARAVT, (58.9, 66.2, 60.5, 38.2, 56.0, _, 63.4, _, 34.7)),
    PaperRow("ReWatch-R1-7B", PARAVT, (58.8, 65.0, 60.1, 38.5, 53.6, _, 59.8, _, 20.2)),
    PaperRow("Video-Thinker-7B", PARAVT, (61.9, 65.3, 65.2, _, 56.0, _, 64.5, _, 29.0)),
    PaperRow("Conan-7B", PARAVT, (55.5, 62.8, 59.2, 38.2, 54.5, _, 64.0, _, 25.4)),
    PaperRow("LongVT-RFT-7B", PARAVT, (59.5, 66.0, 59.4, 37.9, 54.7, _, 63.4, _, 23.4)),
    PaperRow("SAGE-7B", PARAVT, (44.1, 52.4, 49.7, 31.8, 37.4, _, 55.7, _, 28.9)),
    PaperRow("VideoZoomer-7B", PARAVT, (45.3, 48.3, 46.2, 22.9, 39.6, _, 61.6, _, _)),
    PaperRow("ParaVT-8B", PARAVT, (62.1, 69.4, 65.0, 39.8, 60.4, _, 68.6, _, 50.1)),
    PaperRow("EVA (2603.22918)", OWN, (_, _, 68.3, 43.3, 55.0, _, _, 37.2, _)),
    PaperRow("VideoARM (2512.12360)", OWN, (_, _, _, 57.8, 65.9, _, _, 54.6, _)),
    PaperRow("VAMR, Qwen3.5-9B", OWN, (_, _, _, 62.1, 66.5, _, _, 58.2, _)),
    PaperRow("VideoEvolve-8B", OWN, (68.4, 73.9, 72.4, 58.9, 70.2, _, 75.1, _, _)),
)


def papers_table(tasks: Sequence[str]) -> str:
    """Returns the published rows for `tasks` as Markdown tables, one for each protocol, or a sentence without any."""
    columns = [index for index, name in enumerate(COLUMNS) if name.split()[0] in tasks]
    blocks = []
    for protocol in dict.fromkeys(row.protocol for row in ROWS):
        rows = [row for row in ROWS if row.protocol == protocol and any(row.values[index] for index in columns)]
        if rows:
            head = ["system", *(COLUMNS[index] for index in columns)]
            lines = [protocol, "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            cells = [[row.system, *(str(row.values[index] or "-") for index in columns)] for row in rows]
            blocks.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]))
    return "\n\n".join(blocks) or f"no published row is stored for {', '.join(tasks)}"
