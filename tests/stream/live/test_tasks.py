"""What other threads ask of one, and how it is woken."""

import threading
import time

import pytest

from eex.stream.live.tasks import Tasks


@pytest.fixture
def tasks():
    found = Tasks(threading.RLock())
    yield found
    found.close()


@pytest.fixture
def thread(tasks):
    """One that sleeps and does its tasks."""
    stopped = []

    def run():
        while not stopped:
            with tasks.lock:
                there = tasks.waiting
                tasks.asleep = not there
            tasks.do()
            if not there:
                tasks.sleep(10.0)

    tasks.thread = threading.Thread(target=run, daemon=True)
    tasks.thread.start()
    yield tasks.thread
    tasks.put(lambda: stopped.append(True))
    tasks.thread.join(10)


def test_a_question_is_answered_by_the_thread_and_its_error_raised_where_it_was_asked(tasks, thread):
    assert tasks.ask(threading.current_thread) is thread
    with pytest.raises(ZeroDivisionError):
        tasks.ask(lambda: 1 // 0)
    assert tasks.ask(lambda: tasks.ask(lambda: tasks.here))  # the thread asks itself
    assert not tasks.here


def test_what_is_asked_after_the_end_is_done_by_who_asks(tasks):
    done = []
    tasks.put(task := lambda: done.append("done"))
    tasks.end()
    assert done == ["done"]
    tasks.put(task)
    assert tasks.ask(threading.current_thread) is threading.current_thread()
    assert done == ["done", "done"]


def test_a_task_that_raises_costs_no_other(tasks, caplog):
    done = []
    for task in (lambda: 1 // 0, lambda: done.append("second"), lambda: [].pop(), lambda: done.append("last")):
        tasks.put(task)
    with pytest.raises(ZeroDivisionError):
        tasks.do()
    assert (done, tasks.waiting) == ([], 3)
    tasks.end()
    assert done == ["second", "last"]
    assert "pop from empty list" in caplog.text


def test_only_a_thread_that_sleeps_is_woken(tasks):
    tasks.rouse()
    started = time.perf_counter()
    tasks.sleep(0.05)  # nobody wrote into the pipe
    assert time.perf_counter() - started >= 0.04
    tasks.asleep = True
    tasks.rouse()
    tasks.rouse()
    assert not tasks.asleep
    started = time.perf_counter()
    tasks.sleep(10.0)
    assert time.perf_counter() - started < 5.0
