"""The command line. Each command is a few lines over the functions it calls; errors end in one line and exit code 1."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon import control, inspect
from daemon.ask import ask as ask_versions
from daemon.audit import audit as compare_sample
from daemon.calibrate import calibrate as find_settings
from daemon.calibrate import check_output, write_settings
from daemon.calibrate import report as calibration_of
from daemon.config import CONFIG_VARIABLE, Settings, load_settings
from daemon.cycle import run_cycle
from daemon.deliver import deliver
from daemon.demo import DEMO_DIRECTORY, run_demo
from daemon.errors import ConfigInvalid, DaemonError
from daemon.logs import configure_logging
from daemon.options import chosen_config, configured, reading, wants_json
from daemon.publish import publish_again
from daemon.pull import start_over
from daemon.report import page, write_page
from daemon.report import report as report_of
from daemon.runtime import Runtime
from daemon.service import Service
from daemon.setup import check_package_names, set_up
from daemon.show import (
    show_answers,
    show_audit,
    show_calibration,
    show_cycle,
    show_facts,
    show_quarantine,
    show_status,
    show_version_diff,
    show_versions,
    show_why,
)
from daemon.terminal import print_json, print_line, progress_bars
from daemon.version_diff import version_diff
from editor import EditorError
from sources import SourceError
from store import StoreError, WriterLock
from store.tables import Cycle, Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmodel import Session

EXIT_CODES = {
    Outcome.NOTHING: 0,
    Outcome.PROMOTED: 0,
    Outcome.REJECTED: 3,
    Outcome.HELD: 4,
    Outcome.ERROR: 1,
}

app = typer.Typer(
    help="Keep a deployed causal language model's facts in step with Wikidata.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
quarantine_app = typer.Typer(help="Facts kept out of the weights.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")


@app.callback()
def _options(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="Configuration file (TOML).")] = None,
) -> None:
    if config is not None:
        context.obj = context.obj or {}
        context.obj["config"] = config


def main() -> None:
    """Entry point: every known error becomes one line on standard error and exit code 1."""
    try:
        check_package_names()
        app()
    except (DaemonError, SourceError, EditorError, StoreError) as error:
        sys.stderr.write(f"factsyncd: {' '.join(str(error).split())}\n")
        sys.exit(1)


def _settings(context: typer.Context) -> Settings:
    file = chosen_config(context)
    if file is None:
        raise ConfigInvalid(f"no configuration: give --config FILE or set {CONFIG_VARIABLE}")
    settings = load_settings(file)
    configure_logging(settings.log)
    return settings


@contextmanager
def _writing(context: typer.Context) -> Iterator[Runtime]:
    """A runtime that may change the state: alone, set up, with progress bars."""
    settings = _settings(context)
    with progress_bars() as progress:
        runtime = Runtime(settings, progress)
        runtime.make_state_directory()
        with WriterLock(settings.state.directory):
            set_up(runtime)
            yield runtime


def _read(context: typer.Context, question: Callable[[Session], Any], show: Callable[[Any], None]) -> None:
    """Answer a question about the recorded state, as JSON or for a person."""
    runtime = Runtime(_settings(context))
    with runtime.database.read() as session:
        answer = question(session)
    print_json(answer) if wants_json(context) else show(answer)


def _finish(context: typer.Context, cycle: Cycle) -> None:
    print_json(cycle.model_dump(mode="json")) if wants_json(context) else show_cycle(cycle)
    raise typer.Exit(EXIT_CODES[cycle.outcome] if cycle.outcome is not None else 0)


@app.command()
@configured
def run(context: typer.Context) -> None:
    """Run the service: cycles on a schedule and metrics, until SIGTERM."""
    Service(_settings(context)).run()


@app.command()
@reading
def once(context: typer.Context) -> None:
    """Run one cycle. Exit code 0: promoted or nothing to do; 3: rejected; 4: held; 1: error."""
    with _writing(context) as runtime:
        cycle = run_cycle(runtime)
        deliver(runtime)  # also what an earlier cycle could not
    _finish(context, cycle)


@app.command()
@reading
def pull(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Read everything again, whatever was read before.")] = False,
) -> None:
    """Run only the pull phase of a cycle; the next `once` goes on from there."""
    with _writing(context) as runtime:
        if full:
            start_over(runtime)
        cycle = run_cycle(runtime, until=Phase.DIFF)
    _finish(context, cycle)


@app.command()
@reading
def status(context: typer.Context) -> None:
    """Show where the service stands."""
    _read(context, inspect.status, show_status)


@app.command()
@reading
def versions(
    context: typer.Context,
    diff: Annotated[
        tuple[int, int] | None, typer.Option(metavar="A B", help="Compare two versions: beliefs, edits, figures.")
    ] = None,
) -> None:
    """List all versions with what the gate measured, or show what differs between two."""
    if diff is None:
        _read(context, inspect.versions, show_versions)
    else:
        _read(context, lambda session: version_diff(session, *diff), show_version_diff)


@app.command()
@reading
def report(
    context: typer.Context,
    version: Annotated[int, typer.Argument(help="The version.")],
    output: Annotated[Path | None, typer.Option(help="The page to write. Default: report-vN.html.")] = None,
) -> None:
    """Write a page about a version: the decision and why, every measure with its bounds, answers, history."""
    runtime = Runtime(_settings(context))
    with runtime.database.read() as session:
        data = report_of(session, version, runtime.property_label)
    if wants_json(context):
        print_json(data)
        return
    file = output or Path(f"report-v{version}.html")
    write_page(file, page(data))
    print_line(f"written to {file}")


@app.command()
@reading
def facts(
    context: typer.Context,
    only: Annotated[str | None, typer.Option("--property", help="Only this property (P-id).")] = None,
    state: Annotated[str | None, typer.Option(help="Only facts whose last change is in this state.")] = None,
) -> None:
    """List recorded facts."""
    _read(context, lambda session: inspect.facts(session, only, state), show_facts)


@app.command()
@reading
def why(
    context: typer.Context,
    qid: Annotated[str, typer.Argument(help="The subject (Q-id).")],
    pid: Annotated[str | None, typer.Argument(help="The property (P-id).")] = None,
) -> None:
    """Tell the whole story of a subject's facts."""
    _read(context, lambda session: inspect.why(session, qid, pid), show_why)


@app.command()
@reading
def ask(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Text for the model to go on with.")],
    version: Annotated[
        list[int] | None, typer.Option(help="Version to ask; may be repeated. Default: the promoted one.")
    ] = None,
) -> None:
    """Ask versions of the model to go on with a text."""
    runtime = Runtime(_settings(context))
    answers = ask_versions(runtime, prompt, version or [])
    print_json(answers) if wants_json(context) else show_answers(answers)


@app.command()
@reading
def verify(context: typer.Context) -> None:
    """Check every version on disk against its manifest and the recorded digest."""
    runtime = Runtime(_settings(context))
    with runtime.database.read() as session:
        known = [row for row in inspect.versions(session) if row["path"] is not None]
    for row in known:
        runtime.artifacts.verify(row["id"], row["digest"])
    checked = {"verified": [row["id"] for row in known]}
    print_json(checked) if wants_json(context) else print_line(f"{len(known)} versions are intact")


@app.command()
@reading
def audit(
    context: typer.Context,
    sample: Annotated[int, typer.Option(min=1, help="How many recorded facts to compare.")] = 200,
) -> None:
    """Compare recorded facts, chosen at random, with the source. Exit code 1: some differ."""
    report = compare_sample(Runtime(_settings(context)), sample)
    print_json(report) if wants_json(context) else show_audit(report)
    raise typer.Exit(1 if report["drifted"] else 0)


@app.command()
@configured
def rollback(
    context: typer.Context,
    version: Annotated[int | None, typer.Argument(help="Default: the version before the present one.")] = None,
) -> None:
    """Promote an older version again, without recomputing it."""
    with _writing(context) as runtime:
        promoted = control.rollback(runtime, version)
    print_line(f"version {promoted} is promoted and published")


@app.command()
@configured
def publish(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(help="The target's name. Default: all targets.")] = None,
) -> None:
    """Publish the promoted version again. Exit code 1: a target does not answer with it."""
    with _writing(context) as runtime:
        version = publish_again(runtime, target)
    print_line(f"version {version} is published")


@app.command()
@configured
def approve(context: typer.Context, version: int) -> None:
    """Promote a held candidate."""
    with _writing(context) as runtime:
        control.approve(runtime, version)
    print_line(f"version {version} is promoted and published")


@app.command()
@configured
def reject(context: typer.Context, version: int) -> None:
    """Reject a held candidate and quarantine its changes."""
    with _writing(context) as runtime:
        control.reject(runtime, version)
    print_line(f"version {version} is rejected")


@app.command()
@configured
def pause(context: typer.Context) -> None:
    """Stop scheduled cycles until `resume`; `once` still works."""
    control.pause(Runtime(_settings(context)))
    print_line("paused")


@app.command()
@configured
def resume(context: typer.Context) -> None:
    """Start scheduled cycles again, and let go what the rate breaker holds."""
    control.resume(Runtime(_settings(context)))
    print_line("resumed")


@quarantine_app.command("list")
@reading
def quarantine_list(context: typer.Context) -> None:
    """List what is kept out, with the reasons."""
    _read(context, inspect.quarantined, show_quarantine)


@quarantine_app.command("release")
@configured
def quarantine_release(
    context: typer.Context,
    qid: Annotated[str | None, typer.Argument(help="Only this subject (Q-id). Default: all.")] = None,
) -> None:
    """Let quarantined facts be tried again by the next cycle."""
    with _writing(context) as runtime:
        released = control.release(runtime, qid)
    print_line(f"{released} changes wait for the next cycle")


@app.command()
@reading
def calibrate(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="The settings file to write.")] = Path("memit.toml"),
    facts: Annotated[
        Path | None,
        typer.Option(help="Facts, one JSON object a line: relation, prompt, subject, answer, paraphrases."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the file.")] = False,
) -> None:
    """Choose layers and strength for the base from facts it knows, and write a settings file for [edit] settings."""
    check_output(output, force=force)
    with _writing(context) as runtime:
        found = find_settings(runtime, facts)
    write_settings(output, found)
    print_json(calibration_of(found)) if wants_json(context) else show_calibration(calibration_of(found))
    if not wants_json(context):
        layers = found.settings.layers
        print_line(
            f"layers {layers[0]} to {layers[-1]}, weight {found.settings.covariance_weight:g}: written to {output}"
        )


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where the demo keeps its state.")] = DEMO_DIRECTORY,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run one whole cycle on an embedded Wikidata snapshot and SmolLM2-135M, with no server and no network."""
    with progress_bars() as progress:
        result = run_demo(directory, progress)
    print_json(result.data) if json_ else result.show()
    raise typer.Exit(EXIT_CODES[result.outcome])
