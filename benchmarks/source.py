"""First load and polls of a real Oxigraph server: time, peak memory, and whether a poll's cost follows the changes.

usage: source.py [--triples 100000,1000000] [--changes 100] [--json]

Items in Wikidata's statement model (seven triples each, labels of values beside) are generated in a stream, loaded by
``oxigraph load`` and served by ``oxigraph serve``. Each reading is a process of its own; its memory is the highest
resident size over that after the imports (Linux). A poll after ``changes`` edits is compared with one after none.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlmodel import func, select

from daemon.config import load_settings
from daemon.pull import pull
from daemon.runtime import Runtime
from store.tables import Change, Cycle, Fact, Outcome, Phase, key

if TYPE_CHECKING:
    from collections.abc import Iterator

OXIGRAPH = Path(sysconfig.get_path("scripts")) / "oxigraph"
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
PER_ITEM, PEOPLE = 7, 10_000
WD, SCHEMA, RDFS = "http://www.wikidata.org/entity/", "http://schema.org/", "http://www.w3.org/2000/01/rdf-schema#"
PROP, XSD, WIKIBASE = "http://www.wikidata.org/prop/", "http://www.w3.org/2001/XMLSchema#", "http://wikiba.se/ontology#"
CONFIG = """\
[source]
kind = "endpoint"
url = "{url}"
user_agent = "factsyncd-benchmark/1"
properties = ["P1308", "P36"]

[log]
level = "error"
"""


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", default="100000,1000000", help="sizes of the store")
    parser.add_argument("--changes", type=int, default=100, help="edits before the measured poll")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_read(arguments.one)))
        return
    rows = []
    for triples in arguments.triples.split(","):
        with tempfile.TemporaryDirectory() as directory:
            rows.append(_measured(Path(directory), int(triples), arguments.changes))
        print(rows[-1], file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps({"rows": rows}))


def _measured(directory: Path, triples: int, changes: int) -> dict[str, Any]:
    items = (triples - PEOPLE) // PER_ITEM
    file = directory / "world.nt"
    with file.open("w", encoding="ascii") as out:
        out.writelines(line for lines in _world(items) for line in lines)
    began = time.perf_counter()
    subprocess.run([OXIGRAPH, "load", "-l", directory / "store", "-f", file], check=True, capture_output=True)
    loaded = time.perf_counter() - began
    file.unlink()
    with _served(directory / "store") as address:
        config = directory / "factsyncd.toml"
        config.write_text(CONFIG.format(url=f"{address}/query"), "utf-8")
        first = _in_a_process(config)
        _edit(address, items, 0, 1)
        idle = _in_a_process(config)
        _edit(address, items, changes, 2)
        poll = _in_a_process(config)
    return {
        "triples": triples, "items": items, "store_load_s": round(loaded, 1),
        "first_load": first, "idle_poll": idle, f"poll_{changes}": poll,
    }  # fmt: skip


def _world(items: int) -> Iterator[list[str]]:
    """The store's lines, item by item; nobody is modified in the same second as a thousand others."""
    yield [
        f'<http://www.wikidata.org> <{SCHEMA}dateModified> "{_stamp(BEGIN + timedelta(days=400))}"^^<{XSD}dateTime> .\n'
    ]
    for number in range(PEOPLE):
        yield [f'<{WD}Q{number + 1}> <{RDFS}label> "Person {number + 1}"@en .\n']
    for number in range(items):
        yield _item(number, number % PEOPLE + 1, number + 1, BEGIN + timedelta(seconds=number * 30_000_000 // items))


def _item(number: int, person: int, revision: int, modified: datetime) -> list[str]:
    item, name = f"{WD}Q{1_000_000 + number}", f"{WD}statement/Q{1_000_000 + number}-{person}"
    return [
        f'<{item}> <{SCHEMA}version> "{revision}"^^<{XSD}integer> .\n',
        f'<{item}> <{SCHEMA}dateModified> "{_stamp(modified)}"^^<{XSD}dateTime> .\n',
        f'<{item}> <{RDFS}label> "Office {number}"@en .\n',
        f"<{item}> <{PROP}P1308> <{name}> .\n",
        f"<{name}> <{WIKIBASE}rank> <{WIKIBASE}NormalRank> .\n",
        f"<{name}> <{PROP}statement/P1308> <{WD}Q{person}> .\n",
        f'<{name}> <{PROP}qualifier/P580> "2020-01-01T00:00:00Z"^^<{XSD}dateTime> .\n',
    ]


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _edit(address: str, items: int, changes: int, day: int) -> None:
    """Give some items, spread over all, another holder; the source is complete a day later."""
    now = BEGIN + timedelta(days=400 + day)
    lines: list[str] = []
    for number in range(changes):
        index = number * items // changes
        lines += _item(index, (index + 1) % PEOPLE + 1, 10_000_000 + number, now - timedelta(hours=1, seconds=number))
    subjects = " ".join(f"<{WD}Q{1_000_000 + number * items // changes}>" for number in range(changes))
    clock = f"<http://www.wikidata.org> <{SCHEMA}dateModified>"
    update = (
        f"DELETE {{ ?i ?p ?o . ?o ?q ?v }} WHERE {{ VALUES ?i {{ {subjects} }} ?i ?p ?o "
        f'OPTIONAL {{ ?o ?q ?v FILTER(STRSTARTS(STR(?o), "{WD}statement/")) }} }} ;\n'
        f"DELETE WHERE {{ {clock} ?t }} ;\n"
        f'INSERT DATA {{ {clock} "{_stamp(now)}"^^<{XSD}dateTime> . {"".join(lines)} }}'
    )
    request = urllib.request.Request(
        f"{address}/update", update.encode(), {"Content-Type": "application/sparql-update"}, method="POST"
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300):
        pass


@contextmanager
def _served(store: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [OXIGRAPH, "serve", "-l", store, "-b", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _in_a_process(config: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(config)]
    environment = os.environ | {"no_proxy": "*"}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def _read(config: Path) -> dict[str, float]:
    """One pull, in this process."""
    runtime = Runtime(load_settings(config))
    runtime.make_state_directory()
    runtime.database.migrate()
    with runtime.database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    began = time.perf_counter()
    pull(runtime, key(cycle))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text("ascii")
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    with runtime.database.transaction() as session:
        done = session.get_one(Cycle, key(cycle))
        done.phase, done.outcome = Phase.DONE, Outcome.NOTHING
        facts = session.exec(select(func.count()).select_from(Fact)).one()
        recorded = session.exec(select(func.count()).select_from(Change).where(Change.cycle_id == key(cycle))).one()
    return {
        "seconds": round(seconds, 2),
        "memory_MiB": round((peak - before) / (1 << 20)),
        "facts": facts,
        "changes": recorded,
    }


if __name__ == "__main__":
    main()
