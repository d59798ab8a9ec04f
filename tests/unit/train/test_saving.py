import threading
import time

import pytest

from megatron_spell.train.saving import BackgroundSave, SaveTimeout


@pytest.fixture
def saving():
    return BackgroundSave("trainer rank 3", limit_s=5.0)


def test_work_goes_on_beside_the_caller_and_is_waited_for(saving):
    go, done = threading.Event(), []
    future = saving.start("step 1", lambda: done.append(go.wait(5)))
    assert not future.done()
    go.set()
    saving.settle()
    assert done == [True]
    saving.settle()  # nothing is under way any more


def test_the_next_save_waits_for_the_one_before(saving):
    order = []

    def slow():
        time.sleep(0.2)
        order.append("first")

    saving.start("step 1", slow)
    saving.start("step 2", lambda: order.append("second"))
    saving.settle()
    assert order == ["first", "second"]


def test_a_failure_is_told_once_by_whoever_waits(saving):
    def fail():
        raise OSError("no space left")

    saving.start("step 1", fail)
    with pytest.raises(OSError, match="no space left"):
        saving.start("step 2", lambda: pytest.fail("began after a failure"))
    saving.settle()


def test_a_save_that_raises_timeout_is_told_in_its_own_words(saving):
    def fail():
        raise TimeoutError("trainer rank 0 waited 3 s for trainer rank 1")

    saving.start("step 1", fail)
    with pytest.raises(TimeoutError, match="for trainer rank 1"):
        saving.settle()


def test_waiting_has_a_limit_and_names_whom_it_waited_for():
    saving, go = BackgroundSave("trainer rank 3", limit_s=0.05), threading.Event()
    saving.start("step 7", lambda: go.wait(5) and None)
    with pytest.raises(SaveTimeout, match=r"trainer rank 3 waited 0\.05 s for its save of step 7"):
        saving.settle()
    go.set()
