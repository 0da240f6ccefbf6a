"""Writes films of hours within a second: the packets of a short film, over and over."""

from __future__ import annotations

from pathlib import Path

import av


def repeat_packets(cycle: Path, path: Path, num_frames: int, fps: int) -> None:
    """Writes the packets of a file of whole groups over and over, until the film has `num_frames` frames."""
    with av.open(str(cycle)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        packets = [packet for packet in old.demux(template) if packet.size]
        times = [(packet.pts, packet.dts) for packet in packets]
        ticks = round(len(packets) / (fps * template.time_base))
        stream = new.add_stream_from_template(template)
        for number in range(num_frames):
            num_cycles, place = divmod(number, len(packets))
            packet, (pts, dts) = packets[place], times[place]
            packet.stream = stream
            packet.pts, packet.dts = pts + num_cycles * ticks, dts + num_cycles * ticks
            packet.time_base = template.time_base
            new.mux(packet)
