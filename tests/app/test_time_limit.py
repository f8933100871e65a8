"""A time limit stops what runs too long, and leaves nothing half done."""

import signal
import sys
import threading
import time

import pytest
import torch
from torch.func import grad, vmap

import kshot
from kshot.app.auto.time_limit import time_limit
from kshot.evaluation import evaluate
from kshot.learners import maml
from kshot.models import mlp


def without_end(pause):
    while True:
        time.sleep(pause)


def test_what_runs_too_long_is_interrupted_and_the_rest_not():
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    with pytest.raises(TimeoutError), time_limit(0.1):
        without_end(0.01)
    assert 0.1 <= time.monotonic() - started < 5
    with time_limit(60):
        pass
    time.sleep(0.05)
    with pytest.raises(ZeroDivisionError), time_limit(60):
        1 / 0  # noqa: B018
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
    assert sys.getprofile() is None


def test_code_that_catches_exceptions_is_interrupted_too():
    def falls_back():
        try:
            without_end(0.01)
        except Exception:
            return "another way"

    with pytest.raises(TimeoutError), time_limit(0.1):
        falls_back()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # ignored in a callback, raised again
def test_gradients_and_transforms_are_as_before_wherever_the_time_ends():
    """An exception in the middle of `no_grad().__exit__` would leave gradients switched off."""
    source = kshot.sources.sinusoids()
    learner = maml(mlp(1, 1, hidden=[4]), inner_lr=0.01, objective=source.objective)
    x = torch.randn(3)

    def work():
        while True:
            evaluate(learner, source, split="val", num_tasks=1, audit=False)
            vmap(grad(lambda each: each.sin()))(x)
            with torch.no_grad(), torch.random.fork_rng(), torch.inference_mode():
                x.sum()

    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        seconds = 0.005 + 0.03 * torch.rand((), generator=random).item()
        with pytest.raises(TimeoutError), time_limit(seconds):
            work()
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        leaf = torch.ones(2, requires_grad=True)
        leaf.sum().backward()
        assert vmap(grad(lambda each: each.sin()))(x).allclose(x.cos())
        assert leaf.data_ptr()


def test_a_module_that_is_being_imported_is_imported_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time\nfor _ in range(30): time.sleep(0.01)\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work():
        import slow_module

        without_end(0.01 * slow_module.value)

    with pytest.raises(TimeoutError), time_limit(0.05):
        work()
    assert sys.modules.pop("slow_module").value == 3


def test_other_threads_have_no_limit():
    done = []

    def work():
        with time_limit(0.001):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_limit_that_compiled_code_turns_into_another_error_is_still_a_limit():
    def work():
        try:
            without_end(0.001)
        except BaseException:  # as NumPy does with an error of a function that it calls
            raise ValueError("not a valid PEP 3118 buffer format string") from None

    with pytest.raises(TimeoutError) as caught, time_limit(0.05):
        work()
    assert "PEP 3118" in str(caught.value.__cause__)
