"""Replies on disk, one file each, named by the content of the request: what was paid for once is never asked again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from videoseek.files import write_json
from videoseek.samples.schema import DataError


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer of the endpoint. `id` is the endpoint's own, for its bill."""

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class ReplyCache:
    """A folder that several processes and machines may share. A file appears whole or not at all.

    Nothing of a request is kept but its digest: no picture, no question, no key of the endpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> Reply | None:
        """Raises DataError for a file that is no reply, which only another program can have written."""
        path = self._path(digest)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not a cached reply ({error}); delete it to ask again") from error

    def put(self, digest: str, reply: Reply) -> None:
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(reply))

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.json"
