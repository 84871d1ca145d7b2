import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mkd_fast.train.prefetch import prefetch

SECONDS = 30  # that an event is waited for: a failure, not a time


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 10])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_everything_comes_once_and_in_order(count, depth):
    assert list(prefetch(lambda n: n * n, range(count), depth)) == [n * n for n in range(count)]
    assert not prefetch_threads()


def test_the_next_is_made_while_the_first_is_used():
    made = [threading.Event() for _ in range(3)]
    items = prefetch(lambda n: made[n].set() or n, range(3))
    assert next(items) == 0
    assert made[1].wait(SECONDS)
    assert made[2].wait(SECONDS)
    items.close()


def test_no_more_than_depth_are_made_ahead():
    made = []
    items = prefetch(lambda n: made.append(n) or n, range(100), depth=2)
    for n in range(10):
        assert next(items) == n
        assert len(made) <= n + 3
    items.close()
    assert len(made) <= 12


def test_one_thread_makes_them_all():
    threads = {name for name in prefetch(lambda _: threading.current_thread().name, range(5))}
    assert len(threads) == 1
    assert threads.isdisjoint({threading.main_thread().name})


def test_an_error_is_raised_at_its_own_item():
    def make(n):
        if n == 2:
            raise ValueError("item 2")
        return n

    items = prefetch(make, range(10), depth=5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(items)
    assert not prefetch_threads()


def test_closing_ends_the_thread_after_what_it_is_making(monkeypatch):
    started, closing, made = threading.Event(), threading.Event(), []

    class Executor(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            if wait:  # what was queued is cancelled by now
                closing.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def make(n):
        if n == 1:
            started.set()
            assert closing.wait(SECONDS)
        made.append(n)
        return n

    monkeypatch.setattr("mkd_fast.train.prefetch.ThreadPoolExecutor", Executor)
    items = prefetch(make, range(100), depth=2)
    assert next(items) == 0
    assert started.wait(SECONDS)
    items.close()
    assert made == [0, 1]
    assert not prefetch_threads()


def test_closing_before_the_start_starts_nothing():
    prefetch(pytest.fail, range(3)).close()
    assert not prefetch_threads()
