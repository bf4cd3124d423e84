"""Everything around the package: settings, data sources, links, dashboards, rights, and the package step's refusals."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from molecule.grafana.tests.documented import JSON_KEYS, KEYS, SOURCE_KEYS

INI = "/etc/grafana/grafana.ini"
SOURCES = "/etc/grafana/provisioning/datasources/n8n-platform.yml"
DASHBOARDS = "/etc/n8n-platform/grafana/dashboards"
DROP_IN = "/etc/systemd/system/grafana-server.service.d/10-n8n-platform.conf"
CREDENTIALS = "/run/credentials/grafana-server.service/"
APT_SOURCE = "/etc/apt/sources.list.d/n8n-platform-grafana.sources"
APT_KEY = "/etc/apt/keyrings/n8n-platform-grafana.asc"
SCENARIO = Path(__file__).parents[1]
# The parts of the package's own unit that matter to the sandbox.
VENDOR_UNIT = """[Unit]
After=network-online.target
[Service]
User=grafana
Group=grafana
Type=notify
WorkingDirectory=/usr/share/grafana
ExecStart=/usr/bin/true --config=/etc/grafana/grafana.ini
LimitNOFILE=10000
[Install]
WantedBy=multi-user.target
"""


def ini(host: Any) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(host.file(INI).content_string)
    return parser


def sources(host: Any) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(host.file(SOURCES).content_string)
    assert found["apiVersion"] == 1
    assert found["prune"] is True
    return {source["uid"]: source for source in found["datasources"]}


@pytest.fixture(scope="module")
def repository(host: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the settings of a signed repository on the host, which holds no package."""
    script = """
        set -eu; export GNUPGHOME=/root/test-gpg; umask 022; mkdir -m 700 -p $GNUPGHOME
        apt-get install -qq --no-install-recommends apt-utils gpg gpg-agent >/dev/null
        arch=$(dpkg --print-architecture); mkdir -p /srv/repository/dists/stable/main/binary-$arch
        cd /srv/repository/dists/stable; : > main/binary-$arch/Packages
        apt-ftparchive -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Components=main \
          -o APT::FTPArchive::Release::Architectures=$arch release . > /root/Release; mv /root/Release Release
        [ -f /srv/repository/key ] ||
          gpg --batch --passphrase '' --quick-gen-key test@example.org ed25519 sign never 2>/dev/null
        gpg --batch --yes --clearsign -o InRelease Release
        gpg --armor --export test@example.org > /srv/repository/key
        gpg --with-colons --list-keys test@example.org | awk -F: '/^fpr/ {print $10; exit}'
    """
    fingerprint = host.check_output("sh -c %s", script).splitlines()[-1]
    key = tmp_path_factory.mktemp("key") / "grafana.asc"
    key.write_text(host.file("/srv/repository/key").content_string, encoding="utf-8")
    return {
        "grafana_package_source": "repository",
        "grafana_repository_url": "file:///srv/repository",
        "grafana_repository_key": str(key),
        "grafana_repository_key_fingerprints": [fingerprint],
    }


def test_settings_are_documented_ones(host: Any) -> None:
    found = ini(host)
    unknown = [
        f"[{section}] {key}"
        for section in found.sections()
        for key in found[section]
        if key not in KEYS.get(section, "").split()
    ]
    assert unknown == []


def test_nothing_leaves_the_host_and_nobody_comes_in_unasked(host: Any) -> None:
    found = ini(host)
    for section, key, value in (
        ("analytics", "reporting_enabled", "false"),
        ("analytics", "check_for_updates", "false"),
        ("analytics", "check_for_plugin_updates", "false"),
        ("plugins", "preinstall_disabled", "true"),
        ("plugins", "preinstall_auto_update", "false"),
        ("plugins", "public_key_retrieval_disabled", "true"),
        ("news", "news_feed_enabled", "false"),
        ("snapshots", "external_enabled", "false"),
        ("public_dashboards", "enabled", "false"),
        ("users", "allow_sign_up", "false"),
        ("auth.anonymous", "enabled", "false"),
        ("security", "cookie_secure", "true"),
        ("security", "cookie_samesite", "strict"),
        ("security", "allow_embedding", "false"),
        ("security", "content_security_policy", "true"),
        ("server", "http_addr", "127.0.0.1"),
        ("unified_alerting", "execute_alerts", "false"),
    ):
        assert found[section][key] == value, (section, key)


def test_settings_of_the_inventory_win(host: Any) -> None:
    found = ini(host)
    assert found["security"]["admin_user"] == "operator"
    assert found["server"]["root_url"] == "https://grafana.test/"
    assert found["users"]["default_theme"] == "light"
    # Quoted, or the rest of the line would be a comment.
    assert found["smtp"]["from_name"] == '"""n8n #1"""'
    assert "MemoryMax=384M" in host.file(DROP_IN).content_string


def test_data_sources_are_those_of_the_contract(host: Any) -> None:
    found = sources(host)
    assert {uid: source["url"] for uid, source in found.items()} == {
        "prometheus": "http://127.0.0.1:9090",
        "alertmanager": "http://127.0.0.1:9093",
        "loki": "http://127.0.0.1:3100",
        "jaeger": "http://127.0.0.1:16686",
    }
    for uid, source in found.items():
        assert source["type"] == uid
        assert set(source) <= SOURCE_KEYS, uid
        assert set(source["jsonData"]) <= JSON_KEYS[uid], uid
        assert source["editable"] is False
    assert [uid for uid, source in found.items() if source.get("isDefault")] == ["prometheus"]
    assert found["prometheus"]["jsonData"]["timeInterval"] == "30s"
    assert found["loki"]["jsonData"]["maxLines"] == 500


def expanded(text: str) -> str:
    """Return what Grafana makes of a value of its provisioning files; a single dollar would be a variable's."""
    assert not re.search(r"(?<!\$)\$(?!\$|__file\{)", text.replace("$$", "")), text
    return text.replace("$$", "$")


def test_links_lead_from_metric_to_trace_to_log_and_back(host: Any) -> None:
    found = sources(host)
    assert found["prometheus"]["jsonData"]["exemplarTraceIdDestinations"] == [
        {"name": "trace_id", "datasourceUid": "jaeger"}
    ]
    trace, execution = found["loki"]["jsonData"]["derivedFields"]
    assert (trace["matcherType"], trace["matcherRegex"], trace["datasourceUid"]) == ("label", "trace_id", "jaeger")
    assert expanded(trace["url"]) == "${__value.raw}"
    assert execution["matcherRegex"] == "execution_id"
    address = urlsplit(expanded(execution["url"]).replace("${__value.raw}", "4711"))
    assert address.path == "/explore"
    pane = json.loads(parse_qs(address.query)["panes"][0])["a"]
    assert pane["datasource"] == "jaeger"
    assert pane["queries"][0]["tags"] == "n8n.execution.id=4711"
    logs = found["jaeger"]["jsonData"]["tracesToLogsV2"]
    assert logs["datasourceUid"] == "loki"
    assert expanded(logs["query"]) == '{service_name=~"n8n-.+"} | execution_id=`${__span.tags["n8n.execution.id"]}`'
    metrics = found["jaeger"]["jsonData"]["tracesToMetrics"]
    assert metrics["datasourceUid"] == "prometheus"
    assert all("{$__tags}" in expanded(query["query"]) for query in metrics["queries"])


def test_dashboards_are_those_of_the_collection_and_our_own(host: Any) -> None:
    provider = yaml.safe_load(host.file("/etc/grafana/provisioning/dashboards/n8n-platform.yml").content_string)
    assert provider["providers"][0]["options"]["path"] == DASHBOARDS
    assert provider["providers"][0]["allowUiUpdates"] is False
    names = set(host.check_output("ls %s", DASHBOARDS).split())
    collection = {path.name for path in (SCENARIO.parents[1] / "files" / "dashboards").glob("*.json")}
    assert names == collection | {"own.json"}
    found = {name: json.loads(host.file(f"{DASHBOARDS}/{name}").content_string) for name in names}
    assert len({page["uid"] for page in found.values()}) == len(found)
    assert ini(host)["dashboards"]["default_home_dashboard_path"] == f"{DASHBOARDS}/home.json"
    assert found["home.json"]["uid"] == "n8n-platform-home"
    known = set(sources(host)) | {"own-page"}
    for name, page in found.items():
        fixed = {
            uid
            for uid in re.findall(r'"uid": ?"([^"$]+)"', json.dumps(page.get("panels", [])))
            if not uid.startswith(("n8n-platform-", "-- "))
        }
        assert fixed <= known, f"{name} names data sources that are not there"


def test_files_are_roots_and_readable_by_grafana_only(host: Any) -> None:
    for path in (INI, SOURCES, f"{DASHBOARDS}/own.json"):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "grafana", 0o640), path
        assert host.run("runuser -u grafana -- cat %s", path).rc == 0
        assert host.run("runuser -u nobody -- cat %s", path).rc != 0
    assert host.run("runuser -u grafana -- sh -c 'echo x >> %s'" % INI).rc != 0  # noqa: UP031
    assert host.user("grafana").shell == "/bin/false"


def test_secrets_are_credentials_and_in_no_file(host: Any) -> None:
    given = dict(re.findall(r"^LoadCredential=([\w.]+):(\S+)$", host.file(DROP_IN).content_string, re.MULTILINE))
    wanted = set(re.findall(rf"\$__file\{{{CREDENTIALS}([\w.]+)\}}", host.file(INI).content_string))
    assert wanted == set(given) == {"grafana_admin_password", "grafana_secret_key"}
    for name, path in given.items():
        secret = host.file(path).content_string.strip()
        assert len(secret) >= 20, name
        assert host.run("grep -rqsF -e %s /etc/grafana /etc/n8n-platform/grafana /etc/systemd", secret).rc == 1, name


def test_the_unit_would_run_in_a_tight_sandbox(host: Any) -> None:
    """The package's unit with the drop-in, rated without starting it."""
    script = f"""
        set -eu; root=/srv/unit; directory=$root/etc/systemd/system; mkdir -p $directory/grafana-server.service.d
        cp {DROP_IN} $directory/grafana-server.service.d/; printf %s "$1" > $directory/grafana-server.service
        systemd-analyze security --no-pager --offline=true --root=$root grafana-server.service
    """
    rated = host.check_output("sh -c %s sh %s", script, VENDOR_UNIT)
    assert float(rated.rsplit("grafana-server.service:", 1)[1].split()[0]) <= 2.0, rated[-3000:]


def test_without_the_package_the_play_says_so_and_starts_nothing(host: Any, converge: Callable[..., Any]) -> None:
    result = converge()
    assert result.returncode == 0, result.stdout[-3000:]
    assert "Grafana is not installed on n8n-platform-grafana" in " ".join(result.stdout.split())
    assert "changed=0" in result.stdout
    assert not host.service("grafana-server").is_running


def test_an_unreachable_repository_leaves_nothing_behind(host: Any, converge: Callable[..., Any]) -> None:
    nowhere = {"grafana_repository_url": "https://127.0.0.1:9", "grafana_repository_key": "https://127.0.0.1:9/key"}
    result = converge(grafana_package_source="repository", **nowhere)
    said = " ".join(result.stdout.split())
    assert result.returncode != 0
    assert "cannot be had from https://127.0.0.1:9" in said
    assert "Everything else of the platform is set up" in said
    assert not host.file(APT_SOURCE).exists
    assert not host.file(APT_KEY).exists


def test_a_key_of_somebody_else_is_refused(host: Any, converge: Callable[..., Any], repository: dict[str, Any]) -> None:
    result = converge(**{**repository, "grafana_repository_key_fingerprints": ["0" * 40]})
    assert result.returncode != 0
    assert "has none of the fingerprints" in " ".join(result.stdout.split())
    assert not host.file(APT_KEY).exists


def test_a_signed_repository_is_accepted(host: Any, play: Callable[..., Any], repository: dict[str, Any]) -> None:
    first = play("repository.yml", **repository)
    assert first.returncode == 0, first.stdout[-3000:]
    assert "_srv_repository_dists_stable_InRelease" in host.check_output("ls /var/lib/apt/lists")
    again = play("repository.yml", **repository)
    assert "changed=0" in again.stdout, again.stdout[-3000:]


def test_a_repository_without_the_package_is_removed_again(
    host: Any, converge: Callable[..., Any], repository: dict[str, Any]
) -> None:
    result = converge(**repository)
    assert result.returncode != 0
    assert "Grafana 13.2.* cannot be had from file:///srv/repository" in " ".join(result.stdout.split())
    assert not host.file(APT_SOURCE).exists
    host.check_output("apt-get update -qq")


def test_a_package_file_must_be_the_one_that_was_checked(converge: Callable[..., Any], tmp_path: Path) -> None:
    package = tmp_path / "grafana.deb"
    package.write_bytes(b"not what was checked")
    result = converge(grafana_package_source="file", grafana_package_file=str(package))
    assert "set grafana_package_file to the .deb" in " ".join(result.stdout.split())
    result = converge(grafana_package_source="file", grafana_package_file=str(package), grafana_package_sha256="0" * 64)
    assert result.returncode != 0
    assert "not grafana_package_sha256" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"title": "no uid"}', "has no uid of 1 to 40 letters"),
        ('{"uid": "own-page", "title": "twice"}', "needs a file name and a uid of its own"),
    ],
)
def test_bad_dashboards_never_reach_grafana(
    host: Any, converge: Callable[..., Any], tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    result = converge(grafana_extra_dashboard_dirs=[str(SCENARIO / "files"), str(tmp_path)])
    assert result.returncode != 0
    assert sentence in " ".join(result.stdout.split())
    assert not host.file(f"{DASHBOARDS}/bad.json").exists


def test_on_several_hosts_everything_is_encrypted_and_signed_in(
    host: Any, play: Callable[..., Any], converge: Callable[..., Any]
) -> None:
    result = play("multi_host.yml")
    assert result.returncode == 0, result.stdout[-3000:]
    try:
        found = sources(host)
        assert set(found) == {"prometheus", "alertmanager", "loki"}
        for source in found.values():
            assert source["url"].startswith("https://")
            assert (source["basicAuth"], source["basicAuthUser"]) == (True, "metrics")
            assert source["secureJsonData"] == {
                "basicAuthPassword": f"$__file{{{CREDENTIALS}metrics_password}}",
                "tlsCACert": "$__file{/etc/n8n-platform/tls/ca.crt}",
            }
        # Links to the data source that is not there are gone with it.
        assert "derivedFields" not in found["loki"]["jsonData"]
        settings = ini(host)["server"]
        assert (settings["protocol"], settings["cert_key"]) == ("https", f"{CREDENTIALS}host.key")
        assert settings["http_addr"] == host.check_output("hostname -I").split()[0]
        drop_in = host.file(DROP_IN).content_string
        assert "LoadCredential=host.key:/etc/n8n-platform/tls/host.key" in drop_in
        for path in (settings["cert_file"], "/etc/n8n-platform/tls/ca.crt"):
            assert host.run("runuser -u grafana -- cat %s", path).rc == 0, path
    finally:
        assert converge().returncode == 0
