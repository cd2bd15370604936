"""Which block is blamed for a lost worker, on a cluster whose workers take their last answers with them."""

from types import SimpleNamespace

import pytest

from frevl.errors import FrevlError
from frevl.store.many_nodes import workers as workers_module
from frevl.store.many_nodes.workers import Workers


class LostError(Exception):
    """A worker is dead."""


class Actor:
    """Does what it was asked for when somebody waits; if it dies then, all of these answers are lost."""

    def __init__(self, worker):
        self.worker, self.asked, self.dead = worker, [], False
        self.greet = SimpleNamespace(remote=lambda: self.ask(worker.greet))
        self.do = SimpleNamespace(remote=lambda block: self.ask(lambda: worker.do(block)))

    def ask(self, what):
        answer = SimpleNamespace(actor=self, what=what, value=None)
        self.asked.append(Answer(answer))
        return self.asked[-1]


class Answer:
    """Hashed by identity, as a reference of Ray's is by its number."""

    def __init__(self, fields):
        self.__dict__.update(vars(fields))


class Cluster:
    """As much of Ray as `Workers` uses."""

    exceptions = SimpleNamespace(RayError=LostError)

    def cluster_resources(self):
        return {"CPU": 2.0}

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address="127.0.0.1:1")

    def remote(self, **_options):
        return lambda kind: SimpleNamespace(remote=lambda *values: Actor(kind(*values)))

    def kill(self, actor):
        actor.dead = True

    def wait(self, ones, **_options):
        actor = next(iter(ones)).actor
        try:
            for one in actor.asked:
                one.value = None if actor.dead else one.what()
        except LostError:
            actor.dead = True
        there = [one for one in ones if one.actor is actor]
        actor.asked = []
        return there, [one for one in ones if one not in there]

    def get(self, one):
        if one.actor.dead:
            raise LostError("The actor is dead.")
        return one.value


def squares_but(poison, times):
    left = [times]

    def work(number):
        if number == poison and left[0]:
            left[0] -= 1
            raise LostError
        return number * number

    work.about = "squares"
    return lambda: work


def results(monkeypatch, poison, most, numbers, times=1000):
    monkeypatch.setattr(workers_module, "_MOST_DEATHS", most)
    monkeypatch.setattr(workers_module, "grant_processors", lambda _count: None)
    with Workers(Cluster(), squares_but(poison, times), count=2) as workers:
        workers.start(lambda _greeting: None)
        yield from workers.results(numbers)


@pytest.mark.slow
@pytest.mark.parametrize("poison", range(1, 8))
def test_the_block_that_ends_the_workers_is_named_and_no_other_of_theirs(monkeypatch, poison):
    done = []
    with pytest.raises(FrevlError, match=f"3 workers were lost with the same block, {poison} "):
        done += results(monkeypatch, poison, 3, range(1, 8))


@pytest.mark.slow
@pytest.mark.parametrize("poison", range(1, 8))
def test_what_was_lost_with_a_worker_is_done_by_others_once(monkeypatch, poison):
    done = list(results(monkeypatch, poison, 3, range(1, 8), times=2))
    assert sorted(done) == [(number, number**2) for number in range(1, 8)]
