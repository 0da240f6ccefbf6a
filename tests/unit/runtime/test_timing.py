"""The clock of a step: phases exclude the phases inside them, and threads do not disturb each other."""

from __future__ import annotations

import time
from threading import Thread

import pytest

from videoseek.timing import PHASES, StepClock


def test_an_inner_phase_interrupts_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock()
    with clock.phase("generate"):
        now[0] += 2
        with clock.phase("tools"):
            now[0] += 5
            with clock.phase("wait"):
                now[0] += 3
        now[0] += 1
    seconds = clock.take()
    assert (seconds["time/generate_s"], seconds["time/tools_s"], seconds["time/wait_s"]) == (3.0, 5.0, 3.0)


def test_take_starts_again_and_names_every_phase() -> None:
    clock = StepClock()
    clock.add("decode", 2.0)
    assert clock.take() == {f"time/{name}_s": 2.0 * (name == "decode") for name in PHASES}
    assert set(clock.take().values()) == {0.0}


def test_an_error_ends_its_phase() -> None:
    clock = StepClock()
    with pytest.raises(ValueError, match="broken"), clock.phase("train"), clock.phase("wait"):
        raise ValueError("broken")
    with clock.phase("encode"):
        pass
    assert clock.take()["time/encode_s"] < 0.01


def test_another_thread_does_not_interrupt_this_one() -> None:
    clock = StepClock()

    def elsewhere() -> None:
        with clock.phase("wait"):
            time.sleep(0.05)

    with clock.phase("train"):
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
    seconds = clock.take()
    assert seconds["time/train_s"] >= 0.05 and seconds["time/wait_s"] >= 0.05


def test_a_thread_beside_the_training_thread_is_left_out() -> None:
    clock = StepClock()

    def work() -> None:
        clock.leave_out_this_thread()
        with clock.phase("wait"):
            time.sleep(0.02)
        clock.add("decode", 1.0)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    values = clock.take()
    assert values["time/wait_s"] == 0 and values["time/decode_s"] == 1.0
