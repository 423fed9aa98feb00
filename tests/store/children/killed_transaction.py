"""Kills itself in the database argv[1] after a flush, or after a migration, and before the commit."""

import os
import signal
import sys

from sqlmodel import func, select

from store import open_database, schema
from store.tables import Control

what, database = sys.argv[1], open_database(sys.argv[2])
if what == "flush":
    with database.transaction() as session:
        session.add_all([Control(key=str(number), value="x" * 2000) for number in range(2000)])
        session.flush()
        print(session.exec(select(func.count()).select_from(Control)).one(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
else:
    with database.migrating() as connection:
        schema.upgrade(connection)
        os.kill(os.getpid(), signal.SIGKILL)
