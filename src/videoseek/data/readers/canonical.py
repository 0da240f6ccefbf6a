"""The project's own records, as `data/schema/sample.schema.json` has them."""

from __future__ import annotations

from typing import Any

from videoseek.data.readers.rows import Convert, Place
from videoseek.data.schema import sample_from_record
from videoseek.types import Sample


def prepare(place: Place) -> Convert:
    def convert(record: Any, number: int) -> Sample:
        return sample_from_record(record, place.locate)

    return convert
