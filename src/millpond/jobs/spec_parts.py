"""Parts that every form of a specification shares: cron, code, TensorBoard, options, and the checks of a whole job.

`complete` turns what a loader has read into a `JobSpec` with every default filled in, or says which field is wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from millpond.api.job import (
    CodeSpec,
    Concurrency,
    CronSpec,
    JobSpec,
    RoleSpec,
    SpecError,
    TensorBoardSpec,
)
from millpond.base.suggest import did_you_mean
from millpond.jobs.cron import parse_schedule
from millpond.jobs.frameworks.base import Framework, Option
from millpond.jobs.quantities import read_duration
from millpond.jobs.spec_document import Reader, Value

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
MAX_REPLICAS = 100_000


def read_name(reader: Reader) -> str:
    """A name as Kubernetes wants it: small letters, digits and dashes, at most 63."""
    text = reader.text()
    if not _NAME.fullmatch(text):
        raise reader.fail(
            f"'{text[:80]}' is not a name.", "Use small letters, digits and '-', at most 63, with a letter first."
        )
    return text


def read_texts(reader: Reader | None) -> dict[str, str]:
    """A mapping of texts: labels, annotations, selectors."""
    return {} if reader is None else {key: value.scalar() for key, value in reader.entries()}


def check_variable(name: str, reader: Reader) -> str:
    """Checks the name of an environment variable."""
    if not _VARIABLE.fullmatch(name):
        raise reader.fail(f"'{name[:80]}' is not the name of a variable.")
    return name


def read_cron(reader: Reader, names: Mapping[str, str]) -> CronSpec:
    """A cron; `names` says what the form at hand calls its fields."""
    reader.check_fields(names.values())
    schedule = reader.need(names["schedule"])
    try:
        parsed = parse_schedule(schedule.text())
    except ValueError as error:
        raise schedule.fail(f"{error}.", "Write five fields: minute hour day month weekday.") from None
    if parsed.next_after(datetime(2024, 1, 1, tzinfo=UTC)) is None:
        raise schedule.fail(f"'{schedule.text()}' never comes.", "Check day and month.")
    concurrency, suspend = reader.find(names["concurrency"]), reader.find(names["suspend"])
    deadline, limit = reader.find(names["deadline"]), reader.find(names["history_limit"])
    return CronSpec(
        schedule=schedule.text(),
        concurrency=Concurrency.ALLOW if concurrency is None else concurrency.member(Concurrency),
        suspend=False if suspend is None else suspend.flag(),
        deadline_s=None if deadline is None else _read_moment(deadline),
        history_limit=10 if limit is None else limit.integer(0, 10_000),
    )


def _read_moment(reader: Reader) -> float:
    if isinstance(reader.value, int | float):
        return reader.number(0)
    try:
        moment = datetime.fromisoformat(reader.text())
    except ValueError:
        raise reader.fail("is not a time.", "Write 2026-01-31T08:00:00Z.") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def read_code(reader: Reader, names: Mapping[str, str]) -> CodeSpec:
    """Code to fetch with git."""
    source = reader.need(names["source"])
    if source.text().startswith("-"):
        raise source.fail("must not start with '-'.")
    texts = {key: _optional_text(reader, names[key]) for key in ("branch", "revision", "root_path", "dest")}
    for key in ("branch", "revision"):
        if texts[key].startswith("-"):
            raise reader.child(names[key]).fail("must not start with '-'.")
    dest = texts["dest"] or re.sub(r"\.git$", "", source.text().rstrip("/")).rpartition("/")[2].rpartition(":")[2]
    if dest.startswith("/") or ".." in dest.split("/") or not dest:
        raise reader.child(names["dest"]).fail("must be a directory below the working directory.")
    depth, failures = reader.find(names["depth"]), reader.find(names["max_failures"])
    return CodeSpec(
        source=source.text(),
        branch=texts["branch"],
        revision=texts["revision"],
        depth=0 if depth is None else depth.integer(0),
        root_path=texts["root_path"],
        dest=dest,
        max_failures=3 if failures is None else failures.integer(0, 100),
    )


def read_tensorboard(reader: Reader, names: Mapping[str, str]) -> TensorBoardSpec:
    """A TensorBoard beside the job."""
    ttl = reader.find(names["ttl"])
    return TensorBoardSpec(
        log_dir=reader.need(names["log_dir"]).text(),
        ttl_s=0.0 if ttl is None else read_duration(ttl),
        image=_optional_text(reader, "image"),
    )


def _optional_text(reader: Reader, key: str) -> str:
    found = reader.find(key)
    return "" if found is None else found.text()


def read_option(reader: Reader, option: Option) -> int | str:
    """A framework's own field."""
    if option.is_text:
        if isinstance(reader.value, list):
            return ":".join(item.text() for item in reader.items())
        return str(reader.flag()).lower() if isinstance(reader.value, bool) else reader.scalar()
    if option.choices and (isinstance(reader.value, str) or option.high == 1 << 31):
        return reader.one_of(option.choices)
    return reader.integer(option.low, option.high)


def complete(job: JobSpec, framework: Framework, at: Mapping[str, Reader]) -> JobSpec:
    """Fills in the framework's defaults and checks the job as a whole.

    Args:
        job: As read; roles may lack restart policies and edges.
        framework: Its framework.
        at: Where things stood in the document: "" the whole, "roles" the roles, else a role's name.
    """
    whole = at["roles"]
    if not any(role.replicas for role in job.roles):
        raise whole.fail("no role has a replica.", f"Give {framework.roles[-1].name} at least one.")
    if job.num_replicas > MAX_REPLICAS:
        raise whole.fail(f"{job.num_replicas} replicas are more than {MAX_REPLICAS}.")
    if job.min_available is not None and job.min_available > job.num_replicas:
        raise whole.fail(f"minAvailable {job.min_available} is more than the {job.num_replicas} replicas.")
    order = {rule.name: position for position, rule in enumerate(framework.roles)}
    roles = sorted((_complete_role(role, framework, at[role.name]) for role in job.roles),
                   key=lambda role: order.get(role.name, len(order)))  # fmt: skip
    _check_order(roles, at)
    options = {name: option.default for name, option in framework.options.items() if option.default is not None}
    if "minFinishWorkNum" in job.options:
        options.pop("minFinishWorkRate", None)  # the user chose the number; the default rate must not win over it
    notes = job.notes
    if job.priority_class and not job.priority:
        notes = (*notes, f"The priority class '{job.priority_class}' has no effect here; write a number.")
    return dataclasses.replace(job, roles=tuple(roles), options=options | job.options, notes=notes)


def _complete_role(role: RoleSpec, framework: Framework, at: Reader) -> RoleSpec:
    rule = framework.rule(role.name) or framework.roles[-1]
    if role.spot is not None and role.spot.replicas > role.replicas:
        raise at.fail(f"{role.spot.replicas} spot replicas are more than the role's {role.replicas}.")
    if role.min_replicas is not None and role.min_replicas > role.replicas:
        raise at.fail(f"a minimum of {role.min_replicas} is more than the role's {role.replicas} replicas.")
    if role.max_replicas is not None and role.max_replicas < role.replicas:
        raise at.fail(f"a maximum of {role.max_replicas} is less than the role's {role.replicas} replicas.")
    command = role.command or rule.default_command
    if not command and role.replicas:
        raise at.fail("there is no command to run.", "Say what runs, for instance: python train.py.")
    return dataclasses.replace(
        role,
        command=command,
        restart=rule.restart if role.restart is None else role.restart,
        after=rule.start_after if role.after is None else role.after,
        port=framework.port if role.port is None else role.port,
    )


def _check_order(roles: Sequence[RoleSpec], at: Mapping[str, Reader]) -> None:
    """Every edge leads to a role the framework or the job knows, and no edges make a circle."""
    edges = {role.name: [edge.role for edge in role.after or ()] for role in roles}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " -> ".join((*way[way.index(name) :], name))
            raise at[way[0]].fail(f"the start order is a circle: {circle}.", "Remove one edge.")
        if name not in done:
            for upstream in edges.get(name, ()):
                visit(upstream, (*way, name))
            done.add(name)

    for role in roles:
        visit(role.name, ())


def normal_role(name: str, reader: Reader, framework: Framework) -> str:
    """The framework's spelling of a role: letter case does not count."""
    known = {rule.name.casefold(): rule.name for rule in framework.roles}
    if name.casefold() in known:
        return known[name.casefold()]
    near = did_you_mean(name, known.values())
    raise reader.fail(f"{framework.kind} has no role '{name[:40]}'.", near)


def parse_annotation(reader: Reader) -> Reader:
    """An annotation that holds JSON."""
    from millpond.jobs.spec_document import read_documents

    try:
        documents = read_documents(reader.text())
    except SpecError as error:
        raise reader.fail(f"does not hold JSON: {error.message}") from None
    value: Value = documents[0].value
    return Reader(value, reader.path)
