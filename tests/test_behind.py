"""One thing at a time behind what comes next, and errors that come out."""

from __future__ import annotations

import threading
import time

import pytest

from wsiseg.behind import Behind


def failing() -> None:
    raise IndexError("behind")


def test_what_is_given_is_done_in_order_while_the_caller_goes_on() -> None:
    gate, done = threading.Event(), []

    def first() -> None:
        assert gate.wait(10)
        done.append(1)

    with Behind("a") as behind:
        behind.do(first)
        assert done == []  # the caller goes on
        gate.set()
        behind.do(lambda: done.append(2))
        assert done[0] == 1  # it waited for the first
    assert done == [1, 2]


def test_an_error_comes_out_with_the_next_thing_or_at_the_end() -> None:
    done: list[int] = []
    with Behind("a") as behind:
        behind.do(failing)
        with pytest.raises(IndexError, match="behind"):
            behind.do(lambda: done.append(1))
        behind.do(lambda: done.append(2))
    assert done == [2]
    with pytest.raises(IndexError, match="behind"), Behind("a") as behind:
        behind.do(failing)


def test_who_leaves_with_an_error_of_his_own_waits_too_and_keeps_it() -> None:
    done: list[int] = []

    def late() -> None:
        time.sleep(0.05)
        done.append(1)
        failing()

    def leave() -> None:
        with Behind("a") as behind:
            behind.do(late)
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        leave()
    assert done == [1]
