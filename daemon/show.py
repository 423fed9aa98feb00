"""How answers look to a person: each function takes the same data that ``--json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from daemon.terminal import print_line, print_table

if TYPE_CHECKING:
    from store.tables import Cycle

Row = dict[str, Any]


def show_cycle(cycle: Cycle) -> None:
    """How a cycle ended."""
    outcome = cycle.outcome.value if cycle.outcome is not None else f"stopped before {cycle.phase.value}"
    print_line(f"cycle {cycle.id}: {outcome}" + (f" ({cycle.detail})" if cycle.detail else ""))


def show_status(status: Row) -> None:
    """The overview."""
    cycle = status["last_cycle"]
    changes = ", ".join(f"{count} {state}" for state, count in sorted(status["changes"].items())) or "none"
    rows = [
        ("promoted version", _version(status["promoted"])),
        ("held candidate", _version(status["held_candidate"])),
        ("live edits", status["live_edits"]),
        ("facts recorded", status["facts"]),
        ("changes", changes),
        ("quarantined", status["quarantined"]),
        ("last cycle", "none" if cycle is None else f"{cycle['outcome'] or 'at ' + cycle['phase']}: {cycle['detail']}"),
        *((f"read up to ({cursor['source']})", cursor["modified_at"]) for cursor in status["sources"]),
        *((f"not to be asked ({rest['source']})", f"before {_time(rest['until'])}: {rest['why']}")
          for rest in status["resting"]),
        *((f"breaker tripped ({latch['property']})",
           f"{latch['changes']} of {latch['facts']} facts changed since {_time(latch['since'])}: `factsyncd resume`")
          for latch in status["breakers"]),
        ("items to be read again", status["unread_items"]),
        ("scheduled cycles", "paused" if status["paused"] else "on"),
        *((f"target {target['target']}", _publication(target)) for target in status["publications"]),
    ]  # fmt: skip
    print_table("factsyncd", ("", ""), rows)


def _publication(target: Row) -> str:
    """What a target has, and what stands in the way of its newest publication."""
    newest, has = target["newest"], f"has {_version(target['has'])}"
    if newest["state"] == "delivered":
        return has
    again = f", again at {_time(newest['next_at'])}" if newest["state"] == "pending" and newest["attempts"] else ""
    detail = f": {newest['detail']}" if newest["detail"] else ""
    return f"{has}, {_version(newest['version_id'])} {newest['state']}{again}{detail}"


MEASURES = (
    "efficacy", "paraphrase", "question", "retention", "reversal", "neighbourhood", "same_subject", "control", "task",
    "perplexity", "divergence", "fluency", "repetition",
)  # fmt: skip


def show_versions(versions: list[Row]) -> None:
    """One row per version."""
    print_table(
        "versions",
        ("version", "state", "edits", "decided", "gate"),
        (
            (
                _version(version["id"]), version["state"], version["edits"], _time(version["decided_at"]),
                "\n".join([*_measured(version["gate"]), _short(version["reason"])]),
            )
            for version in versions
        ),
    )  # fmt: skip


def show_version_diff(found: Row) -> None:
    """Beliefs, edits and figures of two versions side by side."""
    before, after = (_version(found[side]["id"]) for side in ("before", "after"))
    described = (f"{_version(v['id'])} ({v['state']}, {v['edits']} edits)" for v in (found["before"], found["after"]))
    print_line(" -> ".join(described))
    beliefs = found["beliefs"]
    print_table(
        f"beliefs of {beliefs['asked']['both']} facts", (before, after, "facts"),
        ((_belief_word(kind["before"]), _belief_word(kind["after"]), kind["facts"]) for kind in beliefs["kinds"]),
    )  # fmt: skip
    print_table(
        f"{len(beliefs['changed'])} beliefs changed (in brackets: log-probability of the value)",
        ("item", "property", "subject", "value", before, after),
        (
            (row["qid"], row["pid"], row["subject"], row["after"]["expected"] or "nothing", _held(row["before"]),
             _held(row["after"]))
            for row in beliefs["changed"]
        ),
    )  # fmt: skip
    edits = [(word, edit) for word in ("added", "removed") for edit in found["edits"][word]]
    print_table(
        f"edits: {len(found['edits']['added'])} added, {len(found['edits']['removed'])} removed",
        ("", "item", "property", "subject", "value", "former"),
        ((word, edit["qid"], edit["pid"], edit["subject"], edit["target"], edit["former"]) for word, edit in edits),
    )
    _show_gates(found["gate"], before, after)


def _show_gates(gate: list[Row], before: str, after: str) -> None:
    """The versions' figures on their own probes, and where there are some, on the same ones."""
    same = any(row["same"] for row in gate)
    columns = ("measure", before, after, *((f"same probes: {before}", after) if same else ()))
    rows = []
    for row in sorted(gate, key=lambda row: MEASURES.index(row["measure"]) if row["measure"] in MEASURES else 99):
        figures = [row["before"], row["after"]]
        if same:
            figures += [None, None] if row["same"] is None else [row["same"]["before"], row["same"]["after"]]
        rows.append((row["measure"], *(None if each is None else _figure(row["measure"], each) for each in figures)))
    print_table("gate", columns, rows)


STYLES = {"holds": "green", "outdated": "yellow", "other": "red", "unknown": "dim"}


def _belief_word(belief: str) -> Text:
    return Text(belief, style=STYLES[belief])


def _held(belief: Row) -> Text:
    """A belief with the answer behind it, and how likely the value is."""
    likely = belief["logprob_expected"]
    figure = "" if likely is None else f" ({likely:.1f})"
    return Text.assemble(_belief_word(belief["belief"]), f" {belief['answer']!r}{figure}")


def show_facts(facts: list[Row]) -> None:
    """One line per fact."""
    print_table(
        f"{len(facts)} facts",
        ("item", "subject", "property", "value", "state", "revision"),
        (
            (
                fact["qid"], fact["subject_label"], fact["pid"], _labels(fact["values"]) or fact["outcome"],
                fact["state"], fact["revision"],
            )
            for fact in facts
        ),
    )  # fmt: skip


def show_why(stories: list[Row]) -> None:
    """The story of each fact, oldest first."""
    for story in stories:
        _show_source(story)
        for change in story["changes"]:
            print_line(f"  change    {_change(change)}")
            for other in change["expanded_to"]:
                print_line(
                    f"    expanded to {other['subject_label']} ({other['qid']}) {other['pid']}: {_change(other)}"
                )
        for belief in story["beliefs"]:
            print_line(f"  belief    {_version(belief['version_id'])} {_believed(belief)}")
        for edit in story["edits"]:
            where = ", ".join(_version(number) for number in edit["live_in_versions"]) or "no version"
            print_line(f"  edit      {edit['prompt'].replace('{}', edit['subject'])} {edit['target']}: live in {where}")
        for probe in story["probes"]:
            mark = "passed" if probe["correct"] else f"failed, said {probe['answer']!r}"
            print_line(f"  probe     {_version(probe['version_id'])} {probe['kind']}: {probe['prompt']!r} {mark}")
        for kept in story["quarantine"]:
            state = "released" if kept["released_at"] else "kept out"
            print_line(f"  quarantine {state}: {kept['reason']}")


def _believed(belief: Row) -> str:
    """A belief in one line, with the log-probabilities of all values that were scored."""
    scored = [(belief["expected"], belief["logprob_expected"]), (belief["former"], belief["logprob_former"])]
    scored += belief["rivals"].items()
    figures = ", ".join(f"{label} {figure:.2f}" for label, figure in scored if figure is not None)
    asked = "nothing" if belief["expected"] is None else repr(belief["expected"])
    return f"{belief['belief']} {asked}: says {belief['answer']!r} (log-probabilities: {figures})"


def _show_source(story: Row) -> None:
    """Where the slot's value comes from: the source, or for want of a statement what was expanded to it."""
    fact = story["fact"]
    if fact is None:
        last = story["changes"][-1]
        print_line(f"{last['subject_label']} ({last['qid']}) {last['pid']}: {_labels(last['new_values']) or 'nothing'}")
        print_line("  source    no statement of its own, told by facts that name it")
        return
    print_line(f"{fact['subject_label']} ({fact['qid']}) {fact['pid']}: {_labels(fact['values']) or fact['outcome']}")
    print_line(f"  source    revision {fact['revision']} of {_time(fact['modified_at'])}, {fact['reason']}")
    print_line(f"            statement {fact['statement'] or 'none'}, recorded {_time(fact['recorded_at'])}")


def _change(change: Row) -> str:
    """A change in one line."""
    before, after = _names(change["old_values"]) or "nothing", _names(change["new_values"]) or "nothing"
    origin = change.get("expanded_from")
    source = f", expanded from {origin['qid']} {origin['pid']}" if origin else ""
    reason = f" ({change['reason']})" if change["reason"] else ""
    return f"{before} -> {after}, revision {change['revision']}{source}: {change['state']}{reason}"


def show_answers(answers: list[Row]) -> None:
    """What each version said."""
    print_table(
        "answers",
        ("version", "state", "answer"),
        ((_version(a["version"]), a["state"], a["answer"]) for a in answers),
    )


def show_quarantine(rows: list[Row]) -> None:
    """What is kept out, and what could not be read."""
    changes = [row for row in rows if row["kind"] == "change"]
    print_table(
        f"{len(changes)} in quarantine",
        ("item", "subject", "property", "value", "since", "again", "reason"),
        (
            (
                row["qid"], row["subject"], row["pid"], _names(row["new_values"]), _time(row["created_at"]),
                _time(row["retry_at"]), row["reason"],
            )
            for row in changes
        ),
    )  # fmt: skip
    if items := [row for row in rows if row["kind"] == "item"]:
        print_table(
            f"{len(items)} items could not be read",
            ("item", "since", "attempts", "next", "reason"),
            (
                (row["qid"], _time(row["created_at"]), row["attempts"], _time(row["next_at"]), row["reason"])
                for row in items
            ),
        )


def show_audit(report: Row) -> None:
    """Drift by property, and each fact that drifted."""
    print_table(
        f"{report['drifted']} of {report['compared']} facts have drifted ({report['changed_since']} changed since)",
        ("property", "compared", "drifted"),
        ((pid, counts["compared"], counts["drifted"]) for pid, counts in sorted(report["properties"].items())),
    )
    for drift in report["drift"]:
        print_line(f"{drift['qid']} {drift['pid']} (revision {drift['revision']}): {drift['difference']}")


def _short(reason: str | None) -> str:
    """The first of several reasons; all of them are in the JSON."""
    first, _, more = (reason or "").partition("; ")
    return f"{first}; ..." if more else first


def _version(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


def _labels(values: list[Row]) -> str:
    return ", ".join(value["label"] for value in values)


def _names(values: list[Row]) -> str:
    """Labels, and the ids of what has none."""
    return ", ".join(value["label"] or value["id"] for value in values)


def _time(moment: str | None) -> str:
    """An ISO time to the minute."""
    return "" if moment is None else moment[:16].replace("T", " ")


def _measured(gate: list[Row]) -> list[str]:
    """The candidate's figures, one line each, with the base's where there is one."""
    lines = []
    for measure in MEASURES:
        rows = [row for row in gate if row["measure"] == measure and row["candidate"] is not None]
        if rows:
            base = next((row["reference"] for row in rows if row["against"] == "base"), None)
            before = "" if base is None else f" (base {_figure(measure, base)})"
            lines.append(f"{measure} {_figure(measure, rows[0]['candidate'])}{before}")
    return lines


def _figure(measure: str, value: float) -> str:
    if measure in ("perplexity", "fluency", "divergence"):
        return f"{value:.3f}" if measure == "divergence" else f"{value:.2f}"
    return f"{value:.1%}"


def show_calibration(found: Row) -> None:
    """All trials, best first, and what was chosen."""
    ordered = sorted(found["trials"], key=lambda trial: -trial["score"])
    shares = ("efficacy", "paraphrase", "neighbourhood", "reading", "score")
    rows = [
        (
            f"{trial['layers'][0]}-{trial['layers'][-1]}",
            f"{trial['covariance_weight']:g}",
            *(f"{trial[share]:.3f}" for share in shares),
        )
        for trial in ordered
    ]
    print_table("trials", ["layers", "weight", *shares], rows)
