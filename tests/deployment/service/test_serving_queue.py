"""The model worker: batches, order, limits, cancelled and failing jobs, an orderly stop."""

import asyncio
import threading

import pytest

from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.queue import ModelQueue


class Doubling:
    """Work that notes its batches, and waits while the door is shut."""

    def __init__(self):
        self.batches = []
        self.door = threading.Event()
        self.door.set()
        self.entered = threading.Semaphore(0)

    def double(self, jobs):
        self.entered.release()
        self.door.wait(10)
        self.batches.append(list(jobs))
        if "bad" in jobs:
            raise ValueError("a bad job")
        return [2 * job for job in jobs]

    def triple(self, jobs):
        self.batches.append(["triple", *jobs])
        return [3 * job for job in jobs]


@pytest.fixture
def work():
    return Doubling()


def with_queue(run, *, waiting_items=100, batch_items=10, observe=None):
    queue = ModelQueue(waiting_items=waiting_items, batch_items=batch_items, observe=observe)
    try:
        return asyncio.run(run(queue))
    finally:
        queue.close()


async def behind_a_door(work, queue, submits):
    """Let a first job hold the worker, submit others meanwhile, and open the door."""
    work.door.clear()
    first = asyncio.create_task(queue.submit(work.double, 1, items=1))
    await asyncio.to_thread(work.entered.acquire, timeout=10)
    tasks = [asyncio.create_task(submit) for submit in submits]
    await asyncio.sleep(0.01)
    return first, tasks


def test_what_waits_runs_together_and_everyone_gets_their_own_answer(work):
    observed = []

    async def run(queue):
        first, tasks = await behind_a_door(
            work, queue, [queue.submit(work.double, n, items=3) for n in (10, 20, 30, 40)]
        )
        assert queue.waiting == 12
        work.door.set()
        assert await first == 2
        return await asyncio.gather(*tasks)

    assert with_queue(run, observe=lambda *seen: observed.append(seen[:2])) == [20, 40, 60, 80]
    # Ten items per batch: three jobs of three, and the fourth alone.
    assert work.batches == [[1], [10, 20, 30], [40]]
    assert observed == [("double", 1), ("double", 9), ("double", 3)]


def test_different_work_is_never_mixed_and_nobody_is_overtaken_for_long(work):
    async def run(queue):
        submits = [queue.submit(work.double, 5, items=1), queue.submit(work.triple, 6, items=1)]
        submits += [queue.submit(work.double, 7, items=1)]
        _, tasks = await behind_a_door(work, queue, submits)
        work.door.set()
        return await asyncio.gather(*tasks)

    assert with_queue(run) == [10, 18, 14]
    assert work.batches == [[1], [5, 7], ["triple", 6]]


def test_a_job_larger_than_a_batch_runs_alone(work):
    async def run(queue):
        _, tasks = await behind_a_door(
            work, queue, [queue.submit(work.double, 1, items=25), queue.submit(work.double, 2, items=1)]
        )
        work.door.set()
        return await asyncio.gather(*tasks)

    assert with_queue(run) == [2, 4]
    assert work.batches == [[1], [1], [2]]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(work):
    async def run(queue):
        _, tasks = await behind_a_door(work, queue, [queue.submit(work.double, 2, items=7)])
        with pytest.raises(
            RefusedError, match="7 of at most 8 items are waiting for the model; try again later"
        ) as refusal:
            await queue.submit(work.double, 3, items=2)
        assert (refusal.value.status, refusal.value.code, refusal.value.retry_after) == (503, "overloaded", 1)
        fits = asyncio.create_task(queue.submit(work.double, 4, items=1))
        await asyncio.sleep(0)
        work.door.set()
        return await asyncio.gather(*tasks, fits)

    assert with_queue(run, waiting_items=8) == [4, 8]


def test_a_cancelled_job_leaves_the_queue(work):
    async def run(queue):
        _, (one, two) = await behind_a_door(
            work, queue, [queue.submit(work.double, 2, items=5), queue.submit(work.double, 3, items=1)]
        )
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert queue.waiting == 1
        work.door.set()
        return await two

    assert with_queue(run) == 6
    assert work.batches == [[1], [3]]


def test_a_job_that_is_cancelled_while_it_runs_harms_nobody(work):
    async def run(queue):
        first, (second,) = await behind_a_door(work, queue, [queue.submit(work.double, 2, items=1)])
        first.cancel()
        work.door.set()
        return await second

    assert with_queue(run) == 4


def test_only_the_guilty_job_of_a_batch_fails(work):
    async def run(queue):
        submits = [queue.submit(work.double, job, items=1) for job in (2, "bad", 3)]
        _, tasks = await behind_a_door(work, queue, submits)
        work.door.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    two, bad, three = with_queue(run)
    assert (two, three) == (4, 6)
    assert isinstance(bad, ValueError)
    assert str(bad) == "a bad job"


def test_the_worker_survives_what_is_no_exception(work):
    class Panic(BaseException):
        pass

    def panics(jobs):
        raise Panic

    async def run(queue):
        with pytest.raises(Panic):
            await queue.submit(panics, 1, items=1)
        return await queue.submit(work.double, 4, items=1)

    assert with_queue(run) == 8


def test_closing_finishes_what_was_accepted_and_takes_no_more(work):
    async def run(queue):
        _, tasks = await behind_a_door(work, queue, [queue.submit(work.double, n, items=6) for n in (2, 3)])
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        await asyncio.to_thread(lambda: None)
        while not queue.closed:
            await asyncio.sleep(0.001)
        with pytest.raises(RefusedError, match="The service is stopping; try again in a moment") as refusal:
            await queue.submit(work.double, 4, items=1)
        assert refusal.value.status == 503
        work.door.set()
        answers = await asyncio.gather(*tasks)
        await closing
        return answers

    assert with_queue(run) == [4, 6]
