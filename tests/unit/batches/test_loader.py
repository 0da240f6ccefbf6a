"""The loader of the next step: in order, in the background, errors where the step is asked for."""

from __future__ import annotations

import threading
import time

import pytest

from videoseek.batches.loader import AheadLoader


def test_a_started_step_is_loaded_in_the_background() -> None:
    main = threading.current_thread()
    loaded: list[int] = []

    def load(step: int) -> int:
        assert threading.current_thread() is not main
        loaded.append(step)
        return 10 * step

    with AheadLoader(load) as loader:
        assert loader.get(0) == 0
        loader.start(1)
        until = time.monotonic() + 10
        while loaded != [0, 1]:
            assert time.monotonic() < until, "step 1 was not loaded before anybody asked for it"
            time.sleep(0.01)
        assert loader.get(1) == 10 and loaded == [0, 1]


def test_an_error_surfaces_where_its_step_is_asked_for() -> None:
    def load(step: int) -> int:
        if step == 1:
            raise ValueError("step 1 is damaged")
        return step

    with AheadLoader(load) as loader:
        loader.start(1)
        assert loader.get(0) == 0
        with pytest.raises(ValueError, match="step 1 is damaged"):
            loader.get(1)
        assert loader.get(2) == 2


def test_leaving_the_block_ends_the_thread() -> None:
    before = threading.active_count()
    with AheadLoader(lambda step: step) as loader:
        loader.get(0)
    assert threading.active_count() == before
