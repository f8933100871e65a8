"""Signals to end: what they raise where, and that nothing of the process is changed afterwards."""

import os
import signal
import threading

import pytest
import torch

import kshot
from kshot.training.fit import Diverged, Settings, meta_training_loop
from kshot.training.stopping import SIGNALS, Stopped, is_stopping, step_by_step, stop, stopping


@pytest.fixture(autouse=True)
def _handlers_are_as_before():
    before = [signal.getsignal(each) for each in SIGNALS]
    yield
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert not is_stopping()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_at_once_elsewhere(number):
    done = []

    def work():
        with stopping():
            signal.raise_signal(number)
            done.append("more")

    with pytest.raises(Stopped, match=signal.Signals(number).name):
        work()
    assert not done


def test_a_signal_waits_for_the_end_of_a_step():
    done = []

    def work():
        with stopping(again=signal.SIG_IGN), step_by_step():
            for step in range(5):
                if is_stopping():
                    stop()
                with step_by_step():  # contexts within one another
                    if step == 2:
                        signal.raise_signal(signal.SIGTERM)
                        done.append("signal")
                        signal.raise_signal(signal.SIGTERM)  # the second one is ignored, as was wanted
                done.append(step)

    with pytest.raises(Stopped):
        work()
    assert done == [0, 1, "signal", 2]


def test_a_signal_in_the_last_step_is_not_lost():
    done = []

    def work():
        with stopping():
            with step_by_step():
                signal.raise_signal(signal.SIGTERM)
                done.append("step")
            done.append("more")

    with pytest.raises(Stopped):
        work()
    assert done == ["step"]


def test_an_error_after_the_signal_is_taken_for_its_effect():
    def work():
        with stopping(), step_by_step():
            signal.raise_signal(signal.SIGTERM)
            raise Diverged("another process ended")

    with pytest.raises(Stopped) as caught:
        work()
    assert isinstance(caught.value.__cause__, Diverged)


def test_the_users_handler_is_there_again_and_gets_later_signals():
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with pytest.raises(Stopped), stopping():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert received == [signal.SIGTERM]


def test_other_threads_install_nothing():
    handlers = []

    def work():
        with stopping():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_second_signal_and_a_signal_to_a_forked_process_end_the_process():
    def second():
        with stopping(), step_by_step():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    def forked():
        with stopping():
            child = os.fork()
            if not child:
                signal.raise_signal(signal.SIGTERM)
                os._exit(1)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGTERM)

    for work, expected in {second: -signal.SIGTERM, forked: 0}.items():
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(70)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected


def test_the_outer_loop_ends_between_two_steps_and_goes_on_bitwise():
    def trained(signal_in_step=None):
        torch.manual_seed(0)
        learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        loop = meta_training_loop(learner, kshot.sources.sinusoids(), Settings(horizon=6), mode="loop")

        def observe(progress):
            if progress.step == signal_in_step:
                signal.raise_signal(signal.SIGTERM)

        if signal_in_step is not None:
            with pytest.raises(Stopped), stopping():
                loop.run(6, observe)
            assert loop.step == signal_in_step
            assert not learner.training
        loop.run(6 - loop.step)
        return [parameter.tolist() for parameter in learner.parameters()]

    assert trained(3) == trained(6) == trained()
