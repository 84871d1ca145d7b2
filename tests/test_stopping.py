"""SIGTERM: raised at once, or noted; and left to others outside of the main thread."""

import signal
import threading

import pytest
from cli_call import call

from mkd_fast.stopping import Terminated, sigterm_ends, sigterm_noted


def test_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as caught, sigterm_ends():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_noted():
    with sigterm_noted() as came:
        assert not came()
        signal.raise_signal(signal.SIGTERM)
        assert came()


def test_another_thread_leaves_it_alone():
    seen = []

    def look():
        before = signal.getsignal(signal.SIGTERM)
        with sigterm_noted() as came, sigterm_ends():
            seen.extend([came(), signal.getsignal(signal.SIGTERM) is before])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_a_command_ends_with_0_and_says_what_goes_on(monkeypatch):
    def terminated(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("mkd_fast.train.stages.distill", terminated)
    result = call("distill", "recipe.toml")
    assert result.exit_code == 0
    assert result.stderr.strip() == "Stopped. The same command goes on from the last checkpoint."
