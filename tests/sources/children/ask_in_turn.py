"""Ask an endpoint some times, in a process of its own: URL, turnstile directory, how often."""

import sys
from pathlib import Path

from sources.endpoint import EndpointEngine
from sources.queries import Query

url, directory, count = sys.argv[1:]
engine = EndpointEngine(url, user_agent="tests/0", timeout_seconds=30, turnstile=Path(directory))
for _ in range(int(count)):
    engine.select(Query("SELECT ?x WHERE { ?x ?y ?z }", ("x",)))
