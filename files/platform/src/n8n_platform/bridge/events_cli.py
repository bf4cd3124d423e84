# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands ``events`` and ``routes``: what became of events, what was given up, and whether routes are right."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from n8n_platform.bridge import ids
from n8n_platform.bridge.routing import NoRouteError, RoutesError
from n8n_platform.bridge.settings import Settings, load

FAILED = 1
UNUSABLE = 69
STATES = ("queued", "published", "waiting", "leased", "retry", "done", "dead", "cancelled")
COLUMNS = """
    e.id, e.tenant, e.execution_id, e.type, e.workflow, e.route, e.topic, length(e.body) AS size, e.content_type,
    e.traceparent, e.created_at, e.expires_at, e.replay_of, d.attempt, d.next_at, d.lease_owner, d.message_id,
    d.last_status, d.last_error, d.done_at, d.replaced_by,
    coalesce(d.state, CASE WHEN EXISTS (SELECT FROM bridge.outbox o WHERE o.event_id = e.id) THEN 'queued'
                           ELSE 'published' END) AS state
"""
LIST = f"""
    SELECT * FROM (
        SELECT {COLUMNS} FROM bridge.event e LEFT JOIN bridge.delivery d ON d.event_id = e.id
        WHERE e.day >= (now() AT TIME ZONE 'UTC')::date - $1::int
    ) AS found
    WHERE ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR route = $3) AND ($4::text IS NULL OR state = $4)
    ORDER BY id DESC LIMIT $5
"""  # noqa: S608  (constants)
DEAD = f"""
    SELECT {COLUMNS}
    FROM bridge.delivery d JOIN bridge.event e ON e.day = bridge.event_day(d.event_id) AND e.id = d.event_id
    WHERE d.state = 'dead' AND ($1 OR d.replaced_by IS NULL)
      AND ($2::text IS NULL OR d.tenant = $2) AND ($3::text IS NULL OR d.route = $3)
    ORDER BY d.event_id DESC LIMIT $4
"""  # noqa: S608  (constants)
SHOW = f"""
    SELECT {COLUMNS}, e.body, c.execution AS claimed_by, c.done_at AS effect_done_at
    FROM bridge.event e LEFT JOIN bridge.delivery d ON d.event_id = e.id
    LEFT JOIN bridge.claim c ON c.tenant = e.tenant AND c.event_id = e.id
    WHERE e.day = $1 AND e.id = $2
"""  # noqa: S608  (constants)
# The copy travels like the original: by its topic, or straight from the database. A dead letter is replayed once.
REPLAY = """
    WITH old AS (
        SELECT e.* FROM bridge.event e JOIN bridge.delivery d ON d.event_id = e.id
        WHERE e.day = $1 AND e.id = $2 AND d.state IN ('done', 'dead', 'cancelled')
          AND (d.state <> 'dead' OR d.replaced_by IS NULL OR $4)
    ), copy AS (
        INSERT INTO bridge.event (id, day, tenant, execution_id, type, workflow, route, topic, body, content_type,
            body_hash, traceparent, created_at, expires_at, replay_of)
        SELECT $3, bridge.event_day($3), tenant, execution_id, type, workflow, route, topic, body, content_type,
            body_hash, traceparent, now(), now() + (expires_at - created_at), id FROM old
        RETURNING id, tenant, route, topic
    ), sent AS (
        INSERT INTO bridge.outbox (event_id, topic, tenant)
        SELECT id, topic, tenant FROM copy WHERE topic IS NOT NULL
    ), direct AS (
        INSERT INTO bridge.delivery (event_id, tenant, route, state, next_at)
        SELECT id, tenant, route, 'retry', now() FROM copy WHERE topic IS NULL
    ), noted AS (
        UPDATE bridge.delivery SET replaced_by = $3
        WHERE event_id = $2 AND state = 'dead' AND EXISTS (SELECT FROM copy)
    )
    SELECT id FROM copy
"""
# What Pulsar has confirmed and no consumer has seen; the ids stay, so one that was not lost after all is recognised.
RESEND = """
    INSERT INTO bridge.outbox (event_id, topic, tenant)
    SELECT e.id, e.topic, e.tenant FROM bridge.event e
    WHERE e.topic IS NOT NULL AND e.created_at < now() - interval '1 minute' AND e.expires_at > now()
      AND ($1::text IS NULL OR e.tenant = $1) AND ($2::text IS NULL OR e.route = $2)
      AND NOT EXISTS (SELECT FROM bridge.delivery d WHERE d.event_id = e.id)
      AND NOT EXISTS (SELECT FROM bridge.outbox o WHERE o.event_id = e.id)
    ORDER BY e.id LIMIT $3
    RETURNING event_id
"""
CANCEL = """
    INSERT INTO bridge.delivery AS d (event_id, tenant, route, state, done_at)
    SELECT id, tenant, route, 'cancelled', now() FROM bridge.event WHERE day = $1 AND id = $2
    ON CONFLICT (event_id) DO UPDATE SET state = 'cancelled', done_at = now(), next_at = NULL, lease_owner = NULL,
        lease_until = NULL
    WHERE d.state IN ('waiting', 'retry') RETURNING d.event_id
"""

Action = Callable[[Any, argparse.Namespace], Awaitable[int]]


def say(text: str = "") -> None:
    """Print a line."""
    print(text)


def event_id(text: str) -> UUID:
    """Return the id of an event; raise ArgumentTypeError for any other text."""
    try:
        found = UUID(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of an event") from error
    if not ids.is_event_id(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no id of an event (it is no UUID version 7)")
    return found


def when(value: datetime | None) -> str:
    """Return a time for people, UTC."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if value else "-"


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it; the body as text where it is text."""
    found: dict[str, Any] = {}
    for name, value in dict(row).items():
        if isinstance(value, datetime):
            found[name] = value.astimezone(UTC).isoformat()
        elif isinstance(value, UUID):
            found[name] = str(value)
        elif isinstance(value, bytes):
            found[name] = value.decode(errors="replace")
        else:
            found[name] = value
    return found


def table(rows: Sequence[Mapping[str, Any]], errors: bool) -> None:
    """Print rows as a table, with what went wrong last below each when asked for."""
    say(f"{'ID':36}  {'STATE':9}  {'ACCEPTED (UTC)':19}  {'TRIES':>5}  {'TENANT':12}  {'ROUTE':12}  TYPE")
    for row in rows:
        say(
            f"{row['id']}  {row['state']:9}  {when(row['created_at'])}  {row['attempt'] or 0:>5}  "
            f"{row['tenant']:12}  {row['route']:12}  {row['type']}"
        )
        if errors and row["last_error"]:
            say(f"{'':38}{row['last_error']}")


def show_rows(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace, none: str, errors: bool) -> int:
    """Print rows as the arguments want them."""
    if arguments.json:
        say(json.dumps([plain(row) for row in rows], indent=1))
    elif rows:
        table(rows, errors)
    else:
        say(none)
    return 0


async def list_events(connection: Any, arguments: argparse.Namespace) -> int:
    """Print the newest events."""
    rows = await connection.fetch(
        LIST, arguments.days, arguments.tenant, arguments.route, arguments.state, arguments.limit
    )
    return show_rows(rows, arguments, "No such event.", errors=False)


async def list_dead(connection: Any, arguments: argparse.Namespace) -> int:
    """Print the events that were given up."""
    rows = await connection.fetch(DEAD, arguments.replayed, arguments.tenant, arguments.route, arguments.limit)
    code = show_rows(rows, arguments, "No event was given up.", errors=True)
    if rows and not arguments.json:
        say("\nOne again:  n8n-platform events replay ID      all of them:  n8n-platform events replay --dead")
    return code


async def show_event(connection: Any, arguments: argparse.Namespace) -> int:
    """Print all that is known about an event."""
    row = await connection.fetchrow(SHOW, ids.day(arguments.id), arguments.id)
    if row is None:
        say(f"There is no event {arguments.id}; payloads are kept for some days only.")
        return FAILED
    if arguments.body:
        sys.stdout.buffer.write(row["body"])
        return 0
    found = plain(row)
    del found["body"]
    if arguments.json:
        say(json.dumps(found, indent=1))
        return 0
    for name, value in found.items():
        if value is not None:
            say(f"{name:14} {value}")
    return 0


async def replay_events(connection: Any, arguments: argparse.Namespace) -> int:
    """Send events again, each as a new event of the same content."""
    wanted: list[UUID] = arguments.ids
    if arguments.dead:
        rows = await connection.fetch(DEAD, False, arguments.tenant, arguments.route, arguments.limit)
        # In the order in which they were accepted.
        wanted = [row["id"] for row in rows][::-1]
    if not wanted:
        say("Nothing to send again." if arguments.dead else "Name events, or give --dead.")
        return 0 if arguments.dead else FAILED
    failed = 0
    for item in wanted:
        fresh = ids.new_id(datetime.now(UTC).timestamp())
        if await connection.fetchval(REPLAY, ids.day(item), item, fresh, arguments.again):
            say(f"{item}: sent again as {fresh}")
        else:
            failed += 1
            say(f"{item}: not sent again: it is not there, still under way, or was sent again before (--again)")
    return FAILED if failed else 0


async def resend_events(connection: Any, arguments: argparse.Namespace) -> int:
    """Tell Pulsar once more of the events no consumer has seen: after its disks were lost."""
    rows = await connection.fetch(RESEND, arguments.tenant, arguments.route, arguments.limit)
    say(
        f"{len(rows)} events are in the outbox again."
        + (" Repeat: there may be more." * (len(rows) == arguments.limit))
    )
    return 0


async def cancel_events(connection: Any, arguments: argparse.Namespace) -> int:
    """Stop events that n8n has not been called for; one whose call is under way cannot be called back."""
    failed = 0
    for item in arguments.ids:
        if await connection.fetchval(CANCEL, ids.day(item), item) is None:
            failed += 1
            say(f"{item}: not cancelled: it is not there, under way, or at its end")
        else:
            await connection.execute("DELETE FROM bridge.outbox WHERE event_id = $1 AND reason IS NULL", item)
            say(f"{item}: cancelled")
    return FAILED if failed else 0


async def with_database(settings: Settings, action: Action, arguments: argparse.Namespace) -> int:
    """Run an action with a connection; return 69 when PostgreSQL does not answer."""
    import asyncpg  # noqa: PLC0415  (only these commands need it)

    from n8n_platform.bridge import db  # noqa: PLC0415

    try:
        connection = await asyncpg.connect(**db.options(settings, "n8n-platform events"))
    except db.UNAVAILABLE as error:
        print(f"n8n-platform: PostgreSQL does not answer: {error}", file=sys.stderr)
        return UNUSABLE
    try:
        async with connection.transaction():
            return await action(connection, arguments)
    finally:
        await connection.close()


def events(action: Action) -> Callable[[argparse.Namespace], int]:
    """Return a command that runs an action with the database."""

    def run(arguments: argparse.Namespace) -> int:
        return asyncio.run(with_database(load(arguments.settings), action, arguments))

    return run


def routes_check(arguments: argparse.Namespace) -> int:
    """Say whether a file of routes is right and, when asked, which route takes an event."""
    try:
        # Only hosts of the bridge have what reads YAML.
        from n8n_platform.bridge import routes_file  # noqa: PLC0415

        routes = routes_file.load(arguments.file)
        if arguments.type is None:
            say(f"{arguments.file}: {len(routes.routes)} routes, topics: {', '.join(routes.topics) or 'none'}")
            return 0
        route = routes.decide(arguments.tenant or "", arguments.type, arguments.workflow)
        path = route.path(arguments.tenant or "", arguments.type, arguments.workflow) or "no webhook"
        say(f"route {route.name}: by {route.topic or 'the queue'}, {path}")
    except RoutesError as error:
        print(error, file=sys.stderr)
        return FAILED
    except NoRouteError as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return FAILED
    return 0


def register(groups: Any) -> None:
    """Add the words ``events`` and ``routes`` to a command line."""
    group = groups.add_parser("events", help="events of the bridge").add_subparsers(dest="command", required=True)

    def command(name: str, action: Action, text: str, filters: bool = False) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        found.set_defaults(action=events(action))
        if filters:
            found.add_argument("--tenant", help="of this tenant only")
            found.add_argument("--route", help="of this route only")
            found.add_argument("--limit", type=int, default=50, help="at most so many (%(default)s)")
        return found

    listed = command("list", list_events, "List the newest events.", filters=True)
    listed.add_argument("--state", choices=STATES, help="in this state only")
    listed.add_argument("--days", type=int, default=1, help="look so many days back (%(default)s)")
    listed.add_argument("--json", action="store_true", help="as JSON")
    dead = command("dead", list_dead, "List events that were given up.", filters=True)
    dead.add_argument("--replayed", action="store_true", help="also those that were sent again")
    dead.add_argument("--json", action="store_true", help="as JSON")
    show = command("show", show_event, "Print what is known about an event.")
    show.add_argument("id", type=event_id, metavar="ID")
    how = show.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--body", action="store_true", help="its body and nothing else")
    replay = command("replay", replay_events, "Send events again, each as a new event.", filters=True)
    replay.add_argument("ids", type=event_id, nargs="*", metavar="ID")
    replay.add_argument("--dead", action="store_true", help="all that were given up and not sent again")
    replay.add_argument("--again", action="store_true", help="also one that was sent again before")
    resend = command("resend", resend_events, "Tell Pulsar again of what no consumer has seen.", filters=True)
    resend.set_defaults(limit=10_000)
    cancel = command("cancel", cancel_events, "Stop events n8n has not been called for.")
    cancel.add_argument("ids", type=event_id, nargs="+", metavar="ID")

    routes = groups.add_parser("routes", help="the file of routes").add_subparsers(dest="command", required=True)
    text = "Say whether a file of routes is right and, with --type, which route takes an event."
    check = routes.add_parser("check", help=text, description=text)
    check.set_defaults(action=routes_check)
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--type", help="type of an event")
    check.add_argument("--tenant", help="its tenant")
    check.add_argument("--workflow", help="its workflow")
