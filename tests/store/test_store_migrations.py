from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_mock_engine, inspect
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, select

from store import Database, DatabaseUnavailable, open_database, schema
from store.tables import Belief, Change, Control


def tables(database: Database) -> set[str]:
    with database.migrating() as connection:
        return set(inspect(connection).get_table_names())


def test_migrations_and_tables_agree(database: Database) -> None:
    with database.migrating() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_partial_index_and_unique_constraints_agree_too(database: Database, tmp_path: Path) -> None:
    # compare_metadata does not look at index conditions or at nameless constraints on SQLite.
    def declared(connection: Connection) -> dict[str, list[str]]:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        # The order of constraints means nothing.
        return {name: sorted(re.findall(r"\w+|'", sql)) for name, sql in rows if name != "alembic_version"}

    with open_database(tmp_path / "direct.db") as direct, direct.migrating() as connection:
        SQLModel.metadata.create_all(connection)
        expected = declared(connection)
    with database.migrating() as connection:
        assert declared(connection) == expected


def test_migrating_again_changes_nothing(database: Database) -> None:
    with database.transaction() as session:
        session.add(Control(key="paused", value="yes"))
    database.migrate()
    with database.read() as session:
        assert session.get(Control, "paused").value == "yes"


def test_downgrade_to_base_and_back(database: Database) -> None:
    with database.migrating() as connection:
        schema.downgrade(connection, "base")
    assert tables(database) == {"alembic_version"}
    database.migrate()
    assert tables(database) >= set(SQLModel.metadata.tables)


CHANGE = """INSERT INTO changes
    (id, qid, pid, subject_label, old_values, new_values, revision, statement, modified_at, cycle_id, state{more})
    VALUES ({id}, 'Q1', 'P6', 'Albania', '[]', '[]', 7, '', '2026-03-01 00:00:00', 1, 'pending'{values})"""
CYCLE = "INSERT INTO cycles (id, phase, detail, counts, started_at) VALUES (1, 'done', '', '{}', '2026-03-01 00:00:00')"


def test_changes_of_the_first_release_stay_and_may_be_expanded(tmp_path: Path) -> None:
    with open_database(tmp_path / "state.db") as database:
        with database.migrating() as connection:
            schema.upgrade(connection, "0001")
            connection.exec_driver_sql(CYCLE)
            connection.exec_driver_sql(CHANGE.format(id=1, more="", values=""))
            connection.exec_driver_sql(
                "INSERT INTO edits (id, change_id, qid, pid, prompt, variants, subject, target, created_at)"
                " VALUES (1, 1, 'Q1', 'P6', '{}', '[]', 'Albania', 'Edi', '2026-03-01 00:00:00')"
            )
        database.migrate()
        with database.read() as session:
            (change,) = session.exec(select(Change))
        assert (change.subject_label, change.origin_id, change.reason) == ("Albania", None, "")
        assert (change.polls, change.recorded_at) == (0, datetime(2026, 3, 1, tzinfo=UTC))

        def add(number: int, origin: str, moment: str = "2026-03-01 00:00:00") -> None:
            more, values = ", origin_id, reason, polls, recorded_at", f", {origin}, '', 0, '2026-03-01 00:00:00'"
            insert = CHANGE.format(id=number, more=more, values=values).replace("2026-03-01 00:00:00", moment, 1)
            with database.migrating() as connection:
                connection.exec_driver_sql(insert)

        with pytest.raises(IntegrityError):
            add(2, "NULL")  # the slot at a revision, as read
        add(2, "1")  # the same by expansion
        with pytest.raises(IntegrityError):
            add(3, "1")
        add(3, "NULL", "2026-03-02 00:00:00")  # at the same revision, at a later moment


def test_a_migration_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with open_database(tmp_path / "state.db") as database:
        with pytest.raises(ZeroDivisionError), database.migrating() as connection:
            schema.upgrade(connection)
            raise ZeroDivisionError
        assert tables(database) == set()


def test_a_database_of_a_newer_release_is_refused(database: Database) -> None:
    with database.migrating() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match=r"9999.*upgrade factsyncd"):
        database.migrate()


def test_a_migration_may_not_leave_dangling_references(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="ledger"), database.migrating() as connection:
        connection.exec_driver_sql("INSERT INTO ledger (version_id, edit_id, strength) VALUES (7, 7, 1.0)")
        schema.upgrade(connection)
    with database.migrating() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar() == 0


def test_migrating_needs_no_file_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_database("here.db") as database:
        database.migrate()
        assert tables(database) >= {"versions", "ledger"}


def test_the_scripts_work_from_a_path_with_a_percent_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SCRIPTS", tmp_path / "100%s" / "migrations")
    shutil.copytree(Path(schema.__file__).parent / "migrations", schema.SCRIPTS)
    with open_database(tmp_path / "state.db") as database:
        database.migrate()
        assert "versions" in tables(database)


def test_the_next_revision_can_be_written_and_is_empty(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "SCRIPTS", tmp_path / "migrations")
    shutil.copytree(Path(schema.__file__).parent / "migrations", schema.SCRIPTS)
    with database.migrating() as connection:
        command.revision(schema.alembic_config(connection), "nothing", autogenerate=True, rev_id="next")
    written = (schema.SCRIPTS / "versions" / "next_nothing.py").read_text()
    assert "def upgrade() -> None:\n    # ### commands auto generated by Alembic" in written
    assert "op." not in written
    database.migrate()


def test_the_tables_can_be_made_on_postgresql() -> None:
    statements: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://",
        lambda statement, *_, **__: statements.append(str(statement.compile(dialect=engine.dialect))),
    )
    SQLModel.metadata.create_all(engine, checkfirst=False)
    assert any("CREATE UNIQUE INDEX ux_versions_promoted ON versions (state) WHERE" in s for s in statements)
    assert any("revision BIGINT NOT NULL" in s for s in statements)


def test_beliefs_of_an_earlier_release_stay(tmp_path: Path) -> None:
    with open_database(tmp_path / "state.db") as database:
        with database.migrating() as connection:
            schema.upgrade(connection, "0004")
            connection.exec_driver_sql(
                "INSERT INTO versions (id, state, base_digest, settings_digest, created_at)"
                " VALUES (0, 'promoted', 'b', 's', '2026-03-01 00:00:00')"
            )
            connection.exec_driver_sql(
                "INSERT INTO beliefs (version_id, qid, pid, belief, expected, answer, logprob_expected, measured_at)"
                " VALUES (0, 'Q1', 'P6', 'other', 'Edi', 'Ilir', -2.5, '2026-03-01 00:00:00')"
            )
        database.migrate()
        with database.transaction() as session:
            (belief,) = session.exec(select(Belief))
            assert (belief.expected, belief.logprob_expected, belief.rivals, belief.former) == ("Edi", -2.5, {}, None)
            session.add(Belief(version_id=0, qid="Q2", pid="P6", belief="other", expected=None, answer="Ilir"))
        with database.migrating() as connection:
            schema.downgrade(connection, "0004")
            left = connection.exec_driver_sql("SELECT qid, expected FROM beliefs").all()
        assert left == [("Q1", "Edi")]  # what an earlier release could not have written is gone
