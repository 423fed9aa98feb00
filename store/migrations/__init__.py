"""Alembic scripts, shipped in the wheel and run by ``Database.migrate``.

A developer writes the next revision after changing ``store/tables.py`` with::

    from alembic import command
    from store import open_database
    from store.schema import alembic_config

    database = open_database("scratch.db")
    database.migrate()
    with database.migrating() as connection:
        command.revision(alembic_config(connection), "what changes", autogenerate=True, rev_id="0002")
"""
