"""Rows of published tables, each with its protocol: one model differs by 10 to 15 points between protocols."""

from __future__ import annotations

from collections.abc import Sequence

#: The columns of TABLES: tasks, the second with subtitles.
COLUMNS = ("videomme", "videomme +sub", "mlvu", "lvbench", "longvideobench", "videommmu", "mmvu", "video_holmes") + (
    "charades",
)
#: Protocol -> rows of a system and its percentages.
TABLES = {
    "Video-o3 (2601.23224): 2 fps, at most 768 frames, 16,384 tokens; MLVU is a micro average": """
Qwen2.5-VL-7B             65.1 - 70.2 45.3 56.0 47.4 61.3 34.7 -
LLaVA-Video-7B            63.3 - 70.8 - 58.2 - - - -
Video-R1-7B               61.4 - - - - 52.4 63.8 - -
ReWatch-R1-7B             65.6 - - 43.3 - 51.9 - 44.3 -
Video-Thinker-7B          - - - 37.0 - - - 43.2 -
Video-RTS-7B              63.0 - - - 56.6 52.7 66.4 - -
Video-MTR-7B              59.0 - 59.7 38.6 56.4 - - - -
LOVE-R1-7B                66.2 - 67.4 48.2 60.1 - - - -
Conan-7B                  60.5 - 63.4 39.2 56.6 - - 44.6 -
LongVT-7B                 64.3 - - 41.3 - 45.4 - - -
VideoZoomer-7B            65.2 - - 41.5 57.7 52.2 - - -
Video-o3-7B (RL)          66.1 - 71.9 47.5 59.3 50.0 66.9 46.1 -
Video-o3-7B (SFT and RL)  66.5 - 72.1 47.6 60.5 51.7 67.2 46.5 -
""",
    "ParaVT (2605.20342): 64 frames as images, greedy, 2,048 new tokens": """
Qwen2.5-VL-7B (direct)    55.7 64.5 47.8 32.2 46.4 - 65.4 - 31.6
Qwen3-VL-8B (tool)        59.9 68.4 58.3 33.1 52.2 - 68.0 - 49.3
Video-R1-7B               57.6 66.0 61.6 36.9 57.4 - 61.3 - 25.4
Time-R1-7B                58.9 66.2 60.5 38.2 56.0 - 63.4 - 34.7
ReWatch-R1-7B             58.8 65.0 60.1 38.5 53.6 - 59.8 - 20.2
Video-Thinker-7B          61.9 65.3 65.2 - 56.0 - 64.5 - 29.0
Conan-7B                  55.5 62.8 59.2 38.2 54.5 - 64.0 - 25.4
LongVT-RFT-7B             59.5 66.0 59.4 37.9 54.7 - 63.4 - 23.4
SAGE-7B                   44.1 52.4 49.7 31.8 37.4 - 55.7 - 28.9
VideoZoomer-7B            45.3 48.3 46.2 22.9 39.6 - 61.6 - -
ParaVT-8B                 62.1 69.4 65.0 39.8 60.4 - 68.6 - 50.1
""",
    "each system's own paper: frames, prompts and tools differ from row to row": """
EVA (2603.22918)          - - 68.3 43.3 55.0 - - 37.2 -
VideoARM (2512.12360)     - - - 57.8 65.9 - - 54.6 -
VAMR (Qwen3.5-9B)         - - - 62.1 66.5 - - 58.2 -
VideoEvolve-8B            68.4 73.9 72.4 58.9 70.2 - 75.1 - -
""",
}


def papers_table(tasks: Sequence[str]) -> str:
    """Returns the published rows for `tasks`, a Markdown table for each protocol, or a sentence without any row."""
    columns = [index for index, name in enumerate(COLUMNS) if name.split()[0] in tasks]
    blocks = []
    for protocol, text in TABLES.items():
        split = [line.rsplit(maxsplit=len(COLUMNS)) for line in text.strip().splitlines()]
        cells = [[row[0], *(row[1 + index] for index in columns)] for row in split]
        cells = [row for row in cells if set(row[1:]) - {"-"}]
        head = ["system", *(COLUMNS[index] for index in columns)]
        lines = [protocol, "", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])]
        blocks += ["\n".join(lines)] if cells else []
    return "\n\n".join(blocks) or f"no published row is stored for {', '.join(tasks)}"
