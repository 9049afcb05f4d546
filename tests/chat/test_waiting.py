"""The queue before the model: clients in turn, nobody forgotten, and a full one says so."""

import threading

import pytest

from minigpt4.chat import BusyError, FairQueue


def test_clients_are_served_in_turn_and_their_questions_in_order():
    queue = FairQueue()
    order = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2)]
    tickets = {key: queue.join(key[0]) for key in order}
    served: list[tuple[str, int]] = []
    while len(served) < len(order):
        (key,) = [k for k, t in tickets.items() if k not in served and t.wait(0)]
        served.append(key)
        tickets[key].leave()
    assert served == [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("a", 3), ("b", 2)]


def test_how_many_come_first_is_what_then_happens():
    queue = FairQueue()
    tickets = [queue.join(client) for client in "aaabcbab"]
    while tickets:
        ahead = {ticket: ticket.ahead() for ticket in tickets}
        assert sorted(ahead.values()) == list(range(len(tickets)))
        (served,) = [ticket for ticket in tickets if ticket.wait(0)]
        assert ahead[served] == 0
        tickets.remove(served)
        served.leave()


def test_unnamed_clients_are_each_their_own():
    queue = FairQueue()
    tickets = [queue.join() for _ in range(3)]
    assert [ticket.ahead() for ticket in tickets] == [0, 1, 2]


def test_who_leaves_early_is_not_waited_for():
    queue = FairQueue()
    first, second, third = (queue.join() for _ in range(3))
    second.leave()
    first.leave()
    assert third.wait(0)
    assert len(queue) == 0
    second.leave()  # again: nothing happens to others
    assert third.wait(0)


def test_a_full_queue_says_so_and_takes_again_when_there_is_room():
    queue = FairQueue(places=2)
    first = queue.join("a")
    queue.join("b")
    queue.join("b")
    with pytest.raises(BusyError, match="2 are waiting already; please try again"):
        queue.join("c")
    first.leave()
    assert queue.join("c").ahead() == 2


def test_a_turn_comes_to_a_waiting_thread():
    queue = FairQueue()
    first = queue.join()
    done = threading.Event()

    def work() -> None:
        with queue.join():
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not done.wait(0.05)
    first.leave()
    assert done.wait(30)
    thread.join()
