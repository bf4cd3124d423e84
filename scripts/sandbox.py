"""Create, prove and remove the sandbox: one systemd host in a local container that runs the whole platform.

    python scripts/sandbox.py up      # make sandbox
    python scripts/sandbox.py full    # make sandbox FULL=1: logs, traces, Pulsar and the bridge as well
    python scripts/sandbox.py down    # make sandbox-down

`up` writes .sandbox/summary.json and ends with a screen that says where everything is. It is safe to run again and
leaves a full sandbox full.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".sandbox"
CONTAINER = "n8n-platform-sandbox"
BIN = ROOT / ".venv" / "bin"
TOOLS = ("nodejs", "traefik", "n8n", "versitygw")
# What logs, traces and messages need besides; built from Go modules where no binary can be had.
FULL_TOOLS = ("loki", "otelcol", "jaeger", "pulsar", "bridge")
# The name of the sandbox's inventory, for `make doctor` and the others.
ENVIRONMENT = STATE / "environment"
PROMETHEUS = "http://127.0.0.1:9090"
# First parts of the names of the platform's units.
UNITS = (
    "n8n",
    "redis",
    "postgresql",
    "traefik",
    "object-store",
    "prometheus",
    "alertmanager",
    "loki",
    "otel",
    "jaeger",
)
MIB = 1024 * 1024


def run(*command: str) -> None:
    """Run a command with its output on the screen; end the script with its exit code when it fails."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"\nFailed: {' '.join(command)} (exit code {code}). Mend it, then run `make sandbox` again.")


def output(*command: str) -> str:
    """Return what a command prints; errors raise CalledProcessError."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def environment() -> str:
    """Return the name of the sandbox's inventory."""
    return ENVIRONMENT.read_text(encoding="utf-8").strip() if ENVIRONMENT.exists() else "sandbox"


def tools() -> tuple[str, ...]:
    """Return the programs of the artifact store that the sandbox runs."""
    return TOOLS + FULL_TOOLS * (environment() == "sandbox-full")


def playbook(*arguments: str) -> None:
    """Run a playbook on the sandbox's inventory."""
    run(str(BIN / "ansible-playbook"), "-i", f"inventories/{environment()}", *arguments)


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Note how many seconds a step took."""
    print(f"\n== {step} ==", flush=True)
    started = time.monotonic()
    yield
    timings[step] = round(time.monotonic() - started, 1)


def versions() -> dict[str, str]:
    """Return the versions of the programs that run in the sandbox."""
    links = {tool: f"/opt/n8n-platform/{tool}/current" for tool in tools()}
    found = {tool: output("docker", "exec", CONTAINER, "readlink", link).strip() for tool, link in links.items()}
    packages = {"postgresql": "postgresql-17", "redis": "redis-server", "prometheus": "prometheus"}
    query = ("docker", "exec", CONTAINER, "dpkg-query", "--show", "--showformat=${Version}")
    return found | {name: output(*query, package) for name, package in packages.items()}


def memory_mib() -> dict[str, int]:
    """Return the proportional memory (PSS, MiB) of each service in the sandbox, from the kernel's own accounting."""
    script = (
        "for unit in $(systemctl list-units --type=service --state=running --plain --no-legend | cut -d' ' -f1); do"
        "  total=0; for pid in $(cat /sys/fs/cgroup/systemd$(systemctl show -P ControlGroup $unit)/cgroup.procs"
        "    /sys/fs/cgroup$(systemctl show -P ControlGroup $unit)/cgroup.procs 2>/dev/null | sort -u); do"
        "    pss=$(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null); total=$((total + ${pss:-0})); done;"
        "  echo $unit $total; done"
    )
    result = {}
    for line in output("docker", "exec", CONTAINER, "sh", "-c", script).splitlines():
        unit, kib = line.split()
        if unit.startswith(UNITS):
            result[unit.removesuffix(".service")] = round(int(kib) / 1024)
    return result


def backup_key() -> None:
    """Make the key pair of the sandbox's backups, once, in .sandbox/; the private half stays on this machine.

    The host has the program that makes it; it prints the key and keeps nothing.
    """
    key, recipient = STATE / "backup-key.txt", STATE / "backup-recipient.txt"
    if not key.exists():
        install = "command -v age-keygen >/dev/null || apt-get install -qq --no-install-recommends age >/dev/null"
        made = output("docker", "exec", CONTAINER, "sh", "-c", f"{install}; age-keygen 2>/dev/null")
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write(made)
    public = next(line for line in key.read_text(encoding="utf-8").splitlines() if line.startswith("# public key: "))
    recipient.write_text(public.removeprefix("# public key: ") + "\n", encoding="utf-8")


def screen(summary: dict[str, Any]) -> str:
    """Return the closing screen."""
    memory = summary["memory_mib"]
    groups: dict[str, list[int]] = {}
    for unit, mib in memory.items():
        groups.setdefault(unit.split("@")[0], []).append(mib)
    lines = [
        "",
        f"  n8n runs at        {summary['url']}",
        f"  sign in            {summary['editor_user']} at the browser's prompt, then {summary['owner_email']} in n8n",
        f"  passwords          {summary['basic_auth_file']} (prompt), {summary['owner_password_file']} (n8n)",
        f"  root certificate   {summary['ca_file']} (import it, or use curl --cacert)",
        f"  proof              {summary['proof']}",
        *([f"                     {summary['bridge']}"] if summary["bridge"] else []),
        "",
        "  memory, MiB        "
        + ", ".join(
            f"{len(v)} x {name} {sum(v)}" if len(v) > 1 else f"{name} {v[0]}" for name, v in sorted(groups.items())
        ),
        f"                     {sum(memory.values())} in all",
        "  seconds            " + ", ".join(f"{step} {seconds:g}" for step, seconds in summary["timings_s"].items()),
        "",
        f"  monitoring         {summary['monitoring']}",
        "",
        "  next               make doctor            health of the platform",
        f"                     docker exec -it {CONTAINER} n8n list:workflow",
        *(["                     make sandbox FULL=1    with Pulsar and the bridge"] if not summary["full"] else []),
        "                     make sandbox-down      remove everything",
        "                     docs/production.md     the same on your own hosts",
        "",
    ]
    return "\n".join(lines)


def monitoring() -> str:
    """Return in a line what Prometheus measures and which alerts fire."""

    def ask(query: str) -> list[dict[str, Any]]:
        command = ("docker", "exec", CONTAINER, "curl", "-sfG", "--data-urlencode", f"query={query}")
        found: list[dict[str, Any]] = json.loads(output(*command, f"{PROMETHEUS}/api/v1/query"))["data"]["result"]
        return found

    targets = {result["metric"].get("job", ""): result["value"][1] for result in ask("min by (job) (up)")}
    down = sorted(job for job, value in targets.items() if value != "1")
    firing = {one["metric"]["alertname"] for one in ask('ALERTS{alertstate="firing",severity!="none"}')}
    return (
        f"{len(targets)} kinds of targets, {'not answering: ' + ', '.join(down) if down else 'all answer'};"
        f" alerts: {', '.join(sorted(firing)) or 'none'} (docs/observability.md)"
    )


def full() -> None:
    """Create or update the sandbox with logs, traces, Pulsar and the bridge."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    ENVIRONMENT.write_text("sandbox-full\n", encoding="utf-8")
    up()


def up() -> None:
    """Create or update the sandbox and prove that a workflow runs."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    timings: dict[str, float] = {}
    started = time.monotonic()
    with timed(timings, "artifacts"):
        run(str(BIN / "python"), "-m", "artifacts.store", "ensure", *tools())
    with timed(timings, "host"):
        known = output("docker", "ps", "-aq", "--filter", f"name=^{CONTAINER}$").strip()
        if not known:
            # Facts of an earlier sandbox (its address) do not apply to the new one.
            (ROOT / ".cache" / "facts" / CONTAINER).unlink(missing_ok=True)
        playbook("playbooks/sandbox/create.yml")
        backup_key()
    with timed(timings, "converge"):
        playbook("site.yml")
    with timed(timings, "verify"):
        bridge = STATE / "verify_bridge.json"
        bridge.unlink(missing_ok=True)
        playbook("playbooks/verify.yml", "-e", f"verify_report={STATE}/verify.json")
    timings["total"] = round(time.monotonic() - started, 1)
    proof = json.loads((STATE / "verify.json").read_text(encoding="utf-8"))
    for name in ("n8n_owner_password", "traefik_editor_password"):
        target = STATE / name
        secret = output("docker", "exec", CONTAINER, "cat", f"/etc/n8n-platform/secrets/{name}")
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(secret)
    (STATE / "ca.crt").write_text(
        output("docker", "exec", CONTAINER, "cat", "/etc/n8n-platform/tls/ca.crt"), encoding="utf-8"
    )
    summary = {
        "url": proof["url"],
        "ca_file": str(STATE / "ca.crt"),
        "container": CONTAINER,
        "editor_user": proof["editor_user"],
        "owner_email": proof["owner_email"],
        "owner_password_file": str(STATE / "n8n_owner_password"),
        "basic_auth_file": str(STATE / "traefik_editor_password"),
        "versions": versions(),
        "proof": proof["proof"],
        "bridge": json.loads(bridge.read_text(encoding="utf-8"))["proof"] if bridge.exists() else "",
        "full": environment() == "sandbox-full",
        "monitoring": monitoring(),
        "timings_s": timings,
        "memory_mib": memory_mib(),
    }
    (STATE / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(screen(summary))


def down() -> None:
    """Remove the container, its volumes and the local state; the artifact store stays."""
    subprocess.run(["docker", "rm", "--force", "--volumes", CONTAINER], check=False, capture_output=True)
    shutil.rmtree(STATE, ignore_errors=True)
    (ROOT / ".cache" / "facts" / CONTAINER).unlink(missing_ok=True)
    print("The sandbox is gone. The artifact store stays for the next one (see docs/artifacts.md to remove it).")


if __name__ == "__main__":
    verbs = {"up": up, "full": full, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:  # noqa: PLR2004
        sys.exit(__doc__)
    verbs[sys.argv[1]]()
