"""deploy/grafana/ and deploy/prometheus/: the files agree with each other, with Compose and with the pages.

Grafana does not run here. What a dashboard asks is answered by a real Prometheus in test_dashboard_queries.py.
"""

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import SETTING_NAMES
from tests.support.dashboards import DASHBOARDS, FOLDER, metrics_in, panels, queries
from tests.support.prometheus_servers import running_prometheus
from tests.support.redis_servers import needed
from tests.support.servers import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
CONFIG: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
PROVISIONING = ROOT / "deploy/grafana/provisioning"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
RULE_FILES = ("fast-embedding-rules.yml", "fast-embedding-alerts.yml")
RULES: list[dict[str, Any]] = [
    rule
    for file in RULE_FILES
    for group in yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
SELECTOR = '{job="$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
KINDS = {"stat", "timeseries", "heatmap", "table"}
"""Panels that each Grafana has, without plugins."""
COLUMNS = 24

each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def provisioned(kind: str, key: str) -> dict[str, Any]:
    """Return the only entry of the only provisioning file of this kind."""
    [file] = (PROVISIONING / kind).glob("*.yml")
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert document["apiVersion"] == 1
    [entry] = document[key]
    return dict(entry)


def mounts(service: str) -> dict[str, str]:
    """Return where the container of *service* has each folder of the repository."""
    pairs = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {parts[0]: parts[1] for parts in pairs if parts[0].startswith("./")}


# --- Dashboards ---


def test_there_are_the_three_dashboards_and_each_can_be_imported() -> None:
    assert set(DASHBOARDS) == {"overview", "models", "capacity"}
    assert {board["uid"] for board in DASHBOARDS.values()} == {f"fast-embedding-{name}" for name in DASHBOARDS}
    assert len({board["title"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    for board in DASHBOARDS.values():
        assert board["id"] is None  # the number that another Grafana gave it could be that of another dashboard here
        assert board["schemaVersion"] >= 39  # Grafana 11 and later read it without changes
        assert not {"__inputs", "__requires"} & set(board)  # importers would be asked for a data source twice
        assert board["description"].endswith(".")
        [link] = board["links"]
        assert set(link["tags"]) <= set(board["tags"])


@each_dashboard
def test_panels_have_unique_numbers_titles_and_places(name: str) -> None:
    every = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    # A figure may have the title of a graph.
    titles = [(panel["type"], panel["title"]) for panel in panels(name)]
    assert len(set(titles)) == len(titles) > 10
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < COLUMNS


@each_dashboard
def test_each_panel_says_what_it_shows_in_which_unit_and_asks_the_chosen_data_source(name: str) -> None:
    for panel in panels(name):
        title = panel["title"]
        assert panel["type"] in KINDS, title
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, title
        assert panel["datasource"] == DATASOURCE, title
        assert panel["targets"], title
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"]), title
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), title
        assert all(target["legendFormat"] not in {"", "__auto"} for target in panel["targets"]), title


@each_dashboard
def test_columns_of_tables_have_a_heading_and_a_unit(name: str) -> None:
    for panel in panels(name):
        if panel["type"] == "table":
            [organize] = [found["options"] for found in panel["transformations"] if found["id"] == "organize"]
            units = {found["matcher"]["options"] for found in panel["fieldConfig"]["overrides"]}
            assert units <= set(organize["renameByName"].values())
            assert len(units) == len(panel["targets"])


@each_dashboard
def test_data_source_job_and_replica_are_variables(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert "://" not in text
    source, job, instance, *others = DASHBOARDS[name]["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (job["name"], job["multi"]) == ("job", False)
    assert (instance["name"], instance["multi"], instance["allValue"]) == ("instance", True, ".+")
    for variable in (job, instance, *others):
        assert variable["datasource"] == DATASOURCE
        assert variable["query"]["query"] == variable["definition"]
        assert variable["definition"].startswith("label_values(")


def test_each_metric_of_a_query_is_that_of_the_chosen_job_and_replicas() -> None:
    wrong = []
    for query in queries():
        asked = re.sub(r"\bALERTS\{[^}]*\}", "", query.expr)  # most alerts are about several replicas
        if asked.count(SELECTOR) != asked.count("{") or "offset" in asked:
            wrong.append(query)
    assert wrong == []


def test_descriptions_name_settings_and_pages_that_exist() -> None:
    texts = [panel["description"] for name in DASHBOARDS for panel in panels(name)]
    named = {setting for text in texts for setting in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)}
    assert named
    assert named <= set(SETTING_NAMES)
    pages = {page for text in texts for page in re.findall(r"\b(?:docs|deploy)/[\w/.-]+\w", text)}
    assert pages
    assert [page for page in pages if not (ROOT / page).exists()] == []


# --- Names ---


def documented_metrics() -> set[str]:
    """Return the names in the table of docs/MONITORING.md, which a test compares with those of the service.

    The series of a histogram have names of their own.
    """
    page = (ROOT / "docs/MONITORING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:fast_embedding|process)_.+?) \| (.+?) \|", page, re.MULTILINE)
    names = {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)}
    histograms = {name for cell, kind in rows if "histogram" in kind for name in re.findall(r"`(\w+)`", cell)}
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")} | {"up"}


def test_dashboards_and_rules_name_only_metrics_that_exist() -> None:
    expressions = {query.place: query.expr for query in queries()}
    expressions |= {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}
    variables = [variable for board in DASHBOARDS.values() for variable in board["templating"]["list"][1:]]
    expressions |= {f"variable {variable['name']}": variable["definition"] for variable in variables}
    known = documented_metrics()
    assert len(known) > 50
    wrong = {place: metrics_in(expr) - known for place, expr in expressions.items() if metrics_in(expr) - known}
    assert wrong == {}


def test_recorded_series_that_rules_read_are_recorded() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    read = {name for rule in RULES for name in re.findall(r"\b[a-z_]+:\w+:\w+", rule["expr"])}
    assert read
    assert read <= recorded
    assert all(re.fullmatch(r"job(_\w+)?:fast_embedding_\w+:(\w+_)?rate5m", name) for name in recorded)


# --- Rules ---


@pytest.mark.prometheus
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    command = [needed("promtool"), "check", "config", str(PROMETHEUS / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULE_FILES)} rule files found" in done.stdout


def test_each_alert_has_a_severity_and_names_its_section_of_the_runbook() -> None:
    for rule in (rule for rule in RULES if "alert" in rule):
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["runbook"] == f"docs/production/alerts.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]


# --- Compose ---


def test_prometheus_finds_one_container_and_replicas_alike() -> None:
    assert tuple(CONFIG["rule_files"]) == RULE_FILES
    assert mounts("prometheus")["./deploy/prometheus"] == "/etc/prometheus"
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    [scraped] = CONFIG["scrape_configs"]
    assert scraped["job_name"] == "fast-embedding"  # as in the alerts
    [name_server] = scraped["dns_sd_configs"]
    assert name_server["names"] == ["fast-embedding"]  # the service's name, which resolves to all its containers
    assert str(name_server["port"]) == SERVICES["fast-embedding"]["environment"]["PORT"]
    assert "replicas" in {*SERVICES["prometheus"]["networks"]} & {*SERVICES["fast-embedding"]["networks"]}


@pytest.mark.prometheus
def test_prometheus_starts_with_the_options_of_compose(tmp_path: Path) -> None:
    """And reads all rules. The containers themselves need an engine."""
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    given = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", option) for option in SERVICES["prometheus"]["command"]]
    options = [option for option in given if not option.startswith(("--config.file=", "--storage.tsdb.path="))]
    with running_prometheus(tmp_path, *options) as prometheus:
        groups = prometheus.get("/rules")["groups"]
    assert sum(len(group["rules"]) for group in groups) == len(RULES)


def test_grafana_has_the_data_source_and_the_dashboards() -> None:
    source = provisioned("datasources", "datasources")
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
    assert {*SERVICES["prometheus"]["networks"]} & {*SERVICES["grafana"]["networks"]} == {"monitoring"}
    inside = mounts("grafana")
    assert inside["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert inside["./deploy/grafana/dashboards"] == provisioned("dashboards", "providers")["options"]["path"]
    start = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert start == f"{inside['./deploy/grafana/dashboards']}/overview.json"


def test_grafana_has_no_account_and_lets_everybody_only_look() -> None:
    """A variable that must be set would not do: Compose requires it without the profile, too."""
    given = SERVICES["grafana"]["environment"]
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert given["GF_AUTH_BASIC_ENABLED"] == given["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert not [name for name in given if "PASSWORD" in name]
    assert ":?" not in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
