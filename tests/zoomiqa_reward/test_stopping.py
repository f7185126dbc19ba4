"""How a server ends: by the system's signal and with its terminal, and under `nohup` not with its terminal."""

import os
import signal

import pytest

from zoomiqa_reward.runs.program import stop_when_told

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no terminals that hang up")


@pytest.fixture(autouse=True)
def _handlers_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_ends_in_order_when_told_or_left(number):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stopped = stop_when_told()
    os.kill(os.getpid(), number)
    assert stopped.wait(5)


def test_under_nohup_the_end_of_the_terminal_changes_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopped = stop_when_told()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stopped.wait(0.1)
