"""Reads a folder of numbered images as a video, `DIR#fps=4`: the number of an image gives the time of the image.

Image n is shown from (n - first number) / fps seconds until the next image begins. The image before a missing number
fills the gap. Images are .jpg, .jpeg, .png or .webp files with a number at the end of the name. All else is ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from videoseek.video import watchdog
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoIndex, VideoInfo, check_extent, check_pixels

DEFAULT_FPS = Fraction(4)
_NUMBERED_IMAGE = re.compile(r"(\d+)\.(?:jpe?g|png|webp)$", re.IGNORECASE)
_RATE = re.compile(r"\d{1,4}(\.\d{1,6})?")
#: Pillow opens dozens of formats, and starts another program for one format.
_FORMATS = ("JPEG", "PNG", "WEBP")
#: Errors of Pillow for truncated or damaged images.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class FrameFolder:
    """A folder of images with a constant rate."""

    folder: str
    fps: Fraction

    @classmethod
    def parse(cls, path: str) -> FrameFolder | None:
        """Parses `DIR#fps=RATE`, or DIR at 4 fps. Returns None for other paths. Raises VideoError for an odd rate."""
        if os.path.isdir(path):
            return cls(path, DEFAULT_FPS)
        folder, mark, rate = path.rpartition("#fps=")
        if not mark or not os.path.isdir(folder):
            return None
        if not _RATE.fullmatch(rate) or not Fraction(rate):
            raise VideoError("not_video", f"the rate {rate!r} of {path} must be a number above 0, such as 4 or 29.97.")
        return cls(folder, Fraction(rate))

    def stamp(self) -> tuple[int, int]:
        """Returns a stamp. New and removed images change the stamp, rewritten images keep the stamp."""
        return os.stat(self.folder).st_mtime_ns, 0

    def numbered_images(self) -> dict[int, str]:
        """Returns the resolved path of every image by number. Raises VideoError."""
        files: dict[int, str] = {}
        root = os.path.realpath(self.folder)
        try:
            entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        except OSError as error:
            raise VideoError("missing_file", f"the folder {self.folder} cannot be listed.") from error
        for entry in entries:
            match = _NUMBERED_IMAGE.search(entry.name)
            if match is None or not entry.is_file():
                continue
            file = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if not file.startswith(os.path.join(root, "")):
                raise VideoError("outside_folder", f"{entry.name} in {self.folder} is a link that leaves the folder.")
            number = int(match[1])
            if number in files:
                twin = os.path.basename(files[number])
                raise VideoError(
                    "mixed_frames", f"{twin} and {entry.name} in {self.folder} both claim to be frame {number}."
                )
            files[number] = file
        return files


@dataclass(frozen=True, slots=True, eq=False)
class FolderIndex(VideoIndex):
    """An index of image files. Every frame is a keyframe and has a file of its own."""

    files: tuple[str, ...]

    def images(self, frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yields RGB uint8 [height, width, 3] for the frames with these indices. Raises VideoError."""
        for frame_index in frame_indices:
            file = self.files[frame_index]
            try:
                with Image.open(file, formats=_FORMATS) as image:
                    self.check_size(file, image.size)
                    pixels = np.asarray(image.convert("RGB"))
            except _IMAGE_ERRORS as error:
                raise VideoError("decode_failed", f"the image {file} cannot be decoded.") from error
            watchdog.progress()
            yield pixels

    def check_size(self, file: str, size: tuple[int, int]) -> None:
        """Raises VideoError for an image with another (width, height) than the folder."""
        info = self.info
        if size != (info.width, info.height):
            raise VideoError(
                "mixed_frames",
                f"{info.path} mixes sizes: {os.path.basename(file)} has {size[0]} x {size[1]} pixels, "
                f"{os.path.basename(self.files[0])} has {info.width} x {info.height}.",
            )


def scan_folder(path: str, folder: FrameFolder) -> FolderIndex:
    """Builds the index of a frame folder from the names and the headers of all images. Raises VideoError."""
    images = folder.numbered_images()
    if not images:
        raise VideoError("no_frames", f"{path} holds no .jpg, .png or .webp file whose name ends in a number.")
    numbers = sorted(images)
    files = tuple(images[number] for number in numbers)
    duration = float((numbers[-1] - numbers[0] + 1) / folder.fps)
    check_extent(path, len(numbers), duration)
    width, height = _image_size(files[0])
    check_pixels(path, width, height)
    stamps = np.array([number - numbers[0] for number in numbers], np.int64)
    info = VideoInfo(path, duration, width, height, len(numbers) / duration, len(numbers))
    index = FolderIndex(info, stamps, stamps, stamps, 0, 1 / folder.fps, None, files)
    for file in files:
        index.check_size(file, _image_size(file))
        watchdog.progress()
    return index


def _image_size(file: str) -> tuple[int, int]:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return image.size
    except _IMAGE_ERRORS as error:
        raise VideoError("decode_failed", f"the image {file} cannot be opened.") from error
