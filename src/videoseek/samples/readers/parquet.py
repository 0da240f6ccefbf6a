"""Reads rows of a Parquet file, a row group at a time. Only this module reads with pyarrow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from videoseek.samples.readers.records import RawRecord, RecordFile
from videoseek.samples.schema import DataError, RecordError, check_text_lengths

_ROWS_PER_BATCH = 512
#: Number of decoded row groups in memory for access by offset.
_KEPT_GROUPS = 8


class ParquetRows(RecordFile):
    """The rows of a file; offsets are row numbers from 0.

    Raises DataError without pyarrow, and for a file of another format.
    """

    unit = "row"

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise DataError(f"{path} needs pyarrow to be read; pip install 'videoseek[data]'") from error
        self._path, self._broken = path, (ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except self._broken as error:
            raise self._error(error) from error
        metadata = self._file.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))
        self.size = metadata.num_rows
        self._group = lru_cache(maxsize=_KEPT_GROUPS)(self._file.read_row_group)

    def __iter__(self) -> Iterator[RawRecord]:
        offset = 0
        try:
            for batch in self._file.iter_batches(batch_size=_ROWS_PER_BATCH):
                for value in batch.to_pylist():
                    try:
                        check_text_lengths(value)
                    except RecordError as error:
                        value = error
                    yield RawRecord(offset + 1, offset, value)
                    offset += 1
        except self._broken as error:
            raise self._error(error) from error

    def at(self, offset: int) -> Any:
        group = bisect_right(self._starts, offset) - 1
        return self._group(group).slice(offset - self._starts[group], 1).to_pylist()[0]

    def _error(self, error: Exception) -> DataError:
        return DataError(f"{self._path} cannot be read as Parquet: {str(error).splitlines()[0]}")
