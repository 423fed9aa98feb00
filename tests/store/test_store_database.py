from __future__ import annotations

import os
import sqlite3
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError, StatementError
from sqlmodel import select

from store import Database, DatabaseUnavailable, StateUnwritable, open_database, sqlite
from store.tables import Change, Control, Cycle, Fact, Phase

if TYPE_CHECKING:
    from pathlib import Path


def keys(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.exec(select(Control.key)))


def test_a_transaction_is_committed_once_at_the_end(database: Database) -> None:
    with database.transaction() as session:
        session.add(Control(key="a", value="1"))
        session.flush()
        assert keys(database) == []
    assert keys(database) == ["a"]


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        session.add(Control(key="a", value="1"))
        session.flush()
        raise ZeroDivisionError
    assert keys(database) == []


def test_an_early_commit_is_an_error_when_the_transaction_goes_on(database: Database) -> None:
    with pytest.raises(InvalidRequestError), database.transaction() as session:
        session.commit()
        session.add(Control(key="a", value="1"))
        session.flush()
    assert keys(database) == []


def test_objects_stay_usable_after_the_session(database: Database) -> None:
    with database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    assert (cycle.id, cycle.phase) == (1, Phase.PULL)
    with database.read() as session:
        found = session.get(Cycle, 1)
    assert found is not None
    assert found.counts == {}
    assert found.started_at == cycle.started_at


def test_a_change_inside_a_json_column_is_written(database: Database) -> None:
    with database.transaction() as session:
        session.add(Cycle())
    with database.transaction() as session:
        cycle = session.get(Cycle, 1)
        cycle.counts["changes"] = 3
    with database.read() as session:
        assert session.get(Cycle, 1).counts == {"changes": 3}


def test_wikidata_revisions_beyond_32_bits_and_times_survive(database: Database) -> None:
    elsewhere = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    fact = Fact(qid="Q1", pid="P6", subject_label="", outcome="value", reason="", values=[{"id": "Q2"}],
                revision=2**33, statement="s", modified_at=elsewhere, recorded_at=elsewhere)  # fmt: skip
    with database.transaction() as session:
        session.add(fact)
    with database.read() as session:
        found = session.get(Fact, ("Q1", "P6"))
    assert (found.revision, found.values, found.modified_at) == (2**33, [{"id": "Q2"}], elsewhere)
    assert found.modified_at.utcoffset() == timedelta(0)


def test_a_naive_time_is_refused(database: Database) -> None:
    naive = datetime(2026, 3, 1)  # noqa: DTZ001 - that is the point
    with pytest.raises(StatementError, match="time zone"), database.transaction() as session:
        session.add(Control(key="a", value="", updated_at=naive))


def test_foreign_keys_are_enforced(database: Database, now: datetime) -> None:
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.add(Change(qid="Q1", pid="P6", subject_label="", old_values=[], new_values=[], revision=1,
                           statement="", modified_at=now, cycle_id=99))  # fmt: skip


def test_the_file_is_durable_and_shared_with_readers(database: Database) -> None:
    with database.transaction() as session:
        connection = session.connection()
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "query_only")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "query_only": 0}


def test_a_read_session_cannot_write(database: Database) -> None:
    with pytest.raises(OperationalError, match="readonly"), database.read() as session:
        session.execute(text("INSERT INTO controls VALUES ('a', 'b', 'c')"))
    with pytest.raises(RuntimeError, match=r"transaction\(\)"), database.read() as session:
        session.add(Control(key="a", value="1"))
    with database.transaction() as session:  # the pooled connection writes again
        session.add(Control(key="a", value="1"))
    with pytest.raises(RuntimeError, match=r"transaction\(\)"), database.read() as session:
        session.get(Control, "a").value = "2"


def test_a_reader_sees_one_state_while_a_writer_commits(database: Database) -> None:
    with database.read() as reader:
        assert reader.exec(select(Control)).all() == []
        with database.transaction() as writer:
            writer.add(Control(key="a", value="1"))
        assert reader.exec(select(Control)).all() == []
    assert keys(database) == ["a"]


def test_two_writers_neither_deadlock_nor_lose_updates(database: Database) -> None:
    with database.transaction() as session:
        session.add(Control(key="n", value="0"))
    errors = []

    def count() -> None:
        try:
            with open_database(database.where) as own:
                for _ in range(25):
                    with own.transaction() as session:
                        counter = session.get(Control, "n")  # reads first, the deadlock of deferred transactions
                        counter.value = str(int(counter.value) + 1)
        except Exception as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.read() as session:
        assert session.get(Control, "n").value == "50"


def test_a_writer_that_waits_too_long_is_told_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 50)
    with database.transaction() as session, open_database(database.where) as other:
        session.add(Control(key="a", value="1"))
        session.flush()
        with pytest.raises(DatabaseUnavailable, match="locked"), other.transaction() as second:
            second.add(Control(key="b", value="1"))


def test_without_a_database_nothing_is_made_and_the_first_command_is_named(tmp_path: Path) -> None:
    with open_database(tmp_path / "state.db") as absent:
        for session in (absent.read, absent.transaction):
            with pytest.raises(DatabaseUnavailable, match="run `factsyncd once` first"), session():
                pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_no_state_either(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with open_database(tmp_path / "state.db") as empty:
        with pytest.raises(DatabaseUnavailable, match="run `factsyncd once` first"):
            keys(empty)
        absent = pytest.raises(DatabaseUnavailable, match="run `factsyncd once` first")
        with absent, empty.transaction() as session:
            session.add(Control(key="a", value="1"))


def test_a_database_of_an_older_release_asks_for_migration(database: Database) -> None:
    with database.migrating() as connection:
        connection.exec_driver_sql("ALTER TABLE controls DROP COLUMN updated_at")
    with pytest.raises(DatabaseUnavailable, match="another release"), database.read() as session:
        session.exec(select(Control)).all()
    with pytest.raises(DatabaseUnavailable, match="another release"), database.transaction() as session:
        session.add(Control(key="a", value="1"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(os.urandom(8192))
    with open_database(tmp_path / "state.db") as damaged, pytest.raises(DatabaseUnavailable, match="damaged"):
        keys(damaged)


def test_a_bug_in_a_statement_is_not_dressed_up(database: Database) -> None:
    with pytest.raises(OperationalError, match="syntax"), database.transaction() as session:
        session.execute(text("SELEKT 1"))


def test_a_missing_state_directory_is_named(tmp_path: Path) -> None:
    database = open_database(tmp_path / "absent" / "state.db")
    with database, pytest.raises(StateUnwritable, match="absent does not exist: create it"):
        database.migrate()


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("sqlite://", "give the database a file"),
        ("sqlite:///:memory:", "give the database a file"),
        ("nonsense://somewhere/db", "no driver"),
        ("postgresql+nosuchdriver://somewhere/db", "no driver"),
        ("://somewhere/db", "malformed"),
        ("postgresql://somewhere:port/db", "malformed"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_a_hint(url: str, hint: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=hint):
        open_database(url)


def test_a_sqlite_url_and_a_path_mean_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_database("state.db")
    by_url = open_database("sqlite:///state.db")
    monkeypatch.chdir("/")  # as a daemon does
    assert relative.where == by_url.where == str(tmp_path / "state.db")
    with relative, by_url:
        relative.migrate()
        with by_url.transaction() as session:
            session.add(Control(key="a", value="1"))
        assert keys(relative) == ["a"]


def test_the_database_is_a_plain_file_that_other_tools_read(database: Database) -> None:
    with database.transaction() as session:
        session.add(Cycle())
    connection = sqlite3.connect(database.where)
    assert connection.execute("SELECT phase, outcome FROM cycles").fetchall() == [("pull", None)]
    connection.close()
