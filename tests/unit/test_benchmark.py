"""That the benchmark against peers reckons right: jobs that did not run, medians and ratios, whose the time was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.peers.__main__ import chosen_peers, chosen_rows
from tests.benchmarks.peers.profiling.costs import of_redis
from tests.benchmarks.peers.profiling.folding import fold
from tests.benchmarks.peers.reckoning import (
    Incomplete,
    check,
    costs,
    label,
    percentile,
    rate,
    rate_of_all,
    read,
    summarise,
)
from tests.benchmarks.peers.rows import ROWS


class TestReckoning:
    def test_a_job_that_did_not_run_is_missed_however_many_ran(self) -> None:
        with pytest.raises(Incomplete, match="1 of 4 jobs never ran, such as 2"):
            check([0, 1, 1, 3], range(4))
        assert check([0, 1, 1, 2, 3], range(4)) == 1

    def test_a_job_that_nobody_sent_is_no_job(self) -> None:
        with pytest.raises(Incomplete, match="such as 4"):
            check([0, 4], range(4), all_of_them=False)
        assert check([3, 0], range(4), all_of_them=False) == 0

    def test_a_rate_is_from_the_first_job_to_the_last(self) -> None:
        notes = read(b"%d 7 %d" % (n, 5_000_000_000 + n * 10_000_000) for n in (2, 0, 1, 3, 4))
        assert [note.number for note in notes] == [0, 1, 2, 3, 4]
        assert rate(notes) == pytest.approx(100)
        assert rate(notes, until=5_080_000_000) == pytest.approx(50)

    def test_a_job_that_ran_twice_is_one_job_of_a_rate(self) -> None:
        notes = read(f"{n % 5} 7 {n * 10_000_000}" for n in range(10))
        assert rate(notes) == pytest.approx(100)
        assert rate(notes, until=100_000_000) == pytest.approx(40)
        assert rate_of_all(notes, 1, until=100_000_000) == pytest.approx(40)

    def test_what_a_job_costs_is_of_the_servers_too_and_of_all_only_where_each_is_known(self) -> None:
        before = {"worker": 1.0, "redis": 2.0, "postgres": 5.0}
        after = {"worker": 1.5, "redis": 2.25, "postgres": 6.0}
        assert costs(before, after, 10_000) == {"worker": 50, "redis": 25, "postgres": 100, "all": 175}
        del after["postgres"]
        assert costs(before, after, 10_000) == {"worker": 50, "redis": 25}

    def test_who_had_fewer_jobs_is_called_so(self) -> None:
        measured = {"jobs": 20_000, "fewer": {"RQ": 2_000}}
        assert (label("RQ", measured), label("Dramaturg", measured)) == ("RQ (2,000 jobs)", "Dramaturg")

    def test_several_processes_are_timed_from_when_all_of_them_work(self) -> None:
        slow = [f"{n} 1 {n * 100_000_000}" for n in range(10)]
        both = [f"{n} {1 + n % 2} {1_000_000_000 + (n - 10) * 10_000_000}" for n in range(10, 20)]
        assert rate_of_all(read(slow + both), 2) == pytest.approx(100)
        with pytest.raises(Incomplete, match="2 of 3 processes"):
            rate_of_all(read(slow + both), 3)

    def test_percentiles(self) -> None:
        values = [float(n) for n in range(20, 0, -1)]
        assert (percentile(values, 0.5), percentile(values, 0.95), percentile([3.0], 0.95)) == (10, 19, 3)

    def test_a_ratio_is_of_medians_and_none_without_ours(self) -> None:
        runs: dict[str, list[dict[str, float]]] = {
            "ours": [{"rate": 30}, {"rate": 10}, {"rate": 90}],
            "theirs": [{"rate": 60}, {"rate": 50}],
            "of something else": [{"calls": 0}],
        }
        found = summarise(runs, "rate", "ours")
        assert set(found) == {"ours", "theirs"}
        assert (found["ours"].median, found["ours"].least, found["ours"].most) == (30, 10, 90)
        assert found["theirs"].ratio == pytest.approx(30 / 55)
        assert summarise({"theirs": runs["theirs"]}, "rate", "ours")["theirs"].ratio is None


class TestProfile:
    def test_time_is_whose_code_ran_and_names_no_folder_of_the_machine(self) -> None:
        stack = "run (/x/lib/python3.11/threading.py:5);"
        folded = fold(
            [
                f"{stack}send (/home/u/v/lib/python3.11/site-packages/redis/connection.py:10) 3",
                f"{stack}send (/home/u/v/lib/python3.11/site-packages/redis/connection.py:90) 2",
                f"{stack}finish (/home/u/p/middleware/lossless_broker.py:7) 4",
                f"{stack}<genexpr> (middleware/lossless_broker.py:8) 0",
                "run (/x/lib/python3.11/threading.py:5) 1",
                "",
            ]
        )
        assert folded.samples == 10
        assert folded.packages == [("redis", 0.5), ("middleware", 0.4), ("standard library", 0.1)]
        assert folded.functions[:2] == [
            ("redis/connection.py: send", 0.5),
            ("middleware/lossless_broker.py: finish", 0.4),
        ]
        assert "/home" not in str(folded)

    def test_a_command_costs_what_was_added_meanwhile(self) -> None:
        before = {"cmdstat_get": {"calls": 100, "usec": 900}, "cmdstat_info": {"calls": 1, "usec": 1}}
        after: dict[str, Any] = {
            "cmdstat_get": {"calls": 120, "usec": 1_000},
            "cmdstat_evalsha": {"calls": 5, "usec": 500},
            "cmdstat_info": {"calls": 2, "usec": 90},
        }
        found = of_redis(before, after, 10)
        assert [(cost.what, cost.calls, cost.each, cost.a_job) for cost in found] == [
            ("evalsha", 0.5, 100, 50),
            ("get", 2, 5, 10),
        ]


def test_rows_and_peers_are_chosen_by_name() -> None:
    assert chosen_rows("drain,idle") == ["drain", "idle"]
    assert "failures-silent" not in chosen_rows(None)
    with pytest.raises(SystemExit, match="drian"):
        chosen_rows("drian")
    names = [peer.name for peer in chosen_peers(ROWS["drain"], ["celery", "dramat"], everybody=False)]
    assert {"Celery, threads", "Dramatiq, prefetch 32"} <= set(names)
    assert "RQ" not in names
    assert "Dramatiq, prefetch 32" not in [peer.name for peer in chosen_peers(ROWS["drain"], [], everybody=False)]
