# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in a pipe. Every program's end is checked, and what it complained about is shown."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from n8n_platform.backup.errors import BackupError, UnusableError
from n8n_platform.backup.identity import switch_to

# Bytes read at once, and the size we ask the kernel to give the pipes between programs.
CHUNK = 256 * 1024
PIPE = 1024 * 1024
# Bytes of a program's complaints that are kept, from their end.
COMPLAINTS = 4000
STOP_SECONDS = 10
# How a program ends whose reader is gone, and how a shell says so.
CUT_OFF = (-signal.SIGPIPE, 128 + signal.SIGPIPE)
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Command:
    """A program. ``user`` runs it; ``tolerated`` are exit codes besides 0 that are only worth a warning.

    Never put a secret into ``words``: everybody on the host can read them.
    """

    words: Sequence[str | Path]
    user: str = ""
    tolerated: frozenset[int] = frozenset()
    extra_environment: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Return the program's name."""
        return Path(self.words[0]).name


UNPACK = Command(["zstd", "--decompress", "--quiet", "--stdout"])


def start(command: Command, stdin: Any, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    """Start a program with a small, known environment; raise :class:`UnusableError` when it is not there."""
    account = switch_to(command.user)
    switch: dict[str, Any] = {}
    if account:
        switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    home = account.pw_dir if account else "/"
    # Unlike the others, PostgreSQL's programs look for a home directory, n8n's wrapper for nothing at all.
    environment = {**ENVIRONMENT, "HOME": home, **dict(command.extra_environment)}
    try:
        return subprocess.Popen(
            [str(word) for word in command.words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd="/",
            umask=0o077,
            **switch,
        )
    except OSError as error:
        raise UnusableError(f"cannot start {command.words[0]}: {error.strerror}. Is its package installed?") from error


def memory_file() -> IO[bytes]:
    """Return a file that needs no disk: a full one must not hide why a program fails."""
    return os.fdopen(os.memfd_create("complaints"), "w+b")


def tail(stream: IO[bytes]) -> str:
    """Return the end of what a program complained about."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - COMPLAINTS))
    return stream.read().decode(errors="replace").strip()


class Pipeline:
    """Programs whose last one's output we read; use it as a context manager, read ``chunks``, call ``finish``.

    Leaving the context without ``finish`` kills the programs. Memory stays at one chunk, whatever the amount of data:
    a slow reader makes the programs wait.
    """

    def __init__(self, commands: Sequence[Command], stdin: IO[bytes] | None = None) -> None:
        self.commands = list(commands)
        self.stdin = stdin
        self.processes: list[subprocess.Popen[bytes]] = []
        self.complaints: list[IO[bytes]] = []

    def __enter__(self) -> Pipeline:
        before: Any = self.stdin if self.stdin is not None else subprocess.DEVNULL
        try:
            for command in self.commands:
                self.complaints.append(memory_file())
                process = start(command, before, subprocess.PIPE, self.complaints[-1])
                self.processes.append(process)
                if process.stdout is not None:
                    with contextlib.suppress(OSError):
                        fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
                if len(self.processes) > 1:
                    # The program before must notice when its reader dies: only the reader may hold the pipe.
                    self.processes[-2].stdout.close()  # type: ignore[union-attr]
                before = process.stdout
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End what still runs and close everything."""
        for process in self.processes:
            if process.stdout is not None:
                process.stdout.close()
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for stream in self.complaints:
            stream.close()

    def chunks(self) -> Iterator[bytes]:
        """Yield the output of the last program."""
        output = self.processes[-1].stdout
        assert output is not None  # noqa: S101  (it was asked for)
        while chunk := os.read(output.fileno(), CHUNK):
            yield chunk

    def finish(self) -> list[str]:
        """Wait for the programs; return the warnings of those that ended well enough.

        Raises :class:`BackupError` with the words of the program that failed first. A program that was cut off because
        its reader had gone is not the cause of anything.
        """
        warnings = []
        failures = []
        for command, process, stream in zip(self.commands, self.processes, self.complaints, strict=True):
            code = process.wait()
            said = tail(stream)
            if code == 0 or code in command.tolerated:
                if code and said:
                    warnings.append(f"{command.name}: {said}")
                continue
            failures.append((code in CUT_OFF, failure(command.name, code, said)))
        if failures:
            raise BackupError(min(failures, key=lambda found: found[0])[1])
        return warnings


def failure(name: str, code: int, said: str) -> str:
    """Return a sentence on how a program failed."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code})"
    return f"{name} {how}: {said}" if said else f"{name} {how} and said nothing"


def output(
    command: Command,
    stdin: IO[bytes] | None = None,
    timeout: float | None = None,
    accept: Callable[[int], bool] | None = None,
) -> str:
    """Run one program and return what it printed; raise :class:`BackupError` when it fails or takes too long.

    ``timeout`` is in seconds; ``accept`` tells which exit codes are as good as 0.
    """
    with memory_file() as complaints:
        process = start(command, stdin if stdin is not None else subprocess.DEVNULL, subprocess.PIPE, complaints)
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise BackupError(f"{command.name} did not end within {timeout:g} s and was stopped") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if process.returncode and not (accept and accept(process.returncode)):
            # Some say why where others print results.
            said = "\n".join(filter(None, (printed[-COMPLAINTS:].decode(errors="replace").strip(), tail(complaints))))
            raise BackupError(failure(command.name, process.returncode, said))
        return printed.decode(errors="replace")
