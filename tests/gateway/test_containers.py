"""``scenarium containerize``: what it writes holds against the schemas; a gateway lives in a container as the image would start it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from scenarium.core import devices
from scenarium.core.cli import root
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.gateway.containers import UID, Options, write

ROOT = Path(__file__).resolve().parents[2]
UNIT = Path(__file__).parent / "plugins" / "unit.py"
SCENARIO = "credit_risk"
CHECKED = ("deployment", "service", "pdb", "hpa", "store")


def registry(*sets):
    return Registry(Settings.read(environ={}, sets=list(sets)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "out"
    write(
        folder,
        registry(f"scenarios.{SCENARIO}.serve.workers=2", "gateway.keep_alive_s=7", "gateway.redis=redis://:secret@host/0"),
        Options([SCENARIO], "registry.example/risk:1.2"),
    )
    return folder


def manifest(folder, name):
    return yaml.safe_load((folder / "k8s" / f"{name}.yaml").read_text())


# ── what is written ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_manifests_hold_against_the_schemas_of_kubernetes(written, name, version):
    kubernetes_validate.validate(manifest(written, name), version, strict=True)


def test_the_schemas_would_notice_a_slip(written):
    broken = manifest(written, "deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_dockerfile_holds_against_hadolint(written):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--format", "json", written / "Dockerfile"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []
    broken = (written / "Dockerfile").read_text() + "RUN apt-get install curl\nENTRYPOINT scenarium\n"
    done = subprocess.run([hadolint, "--format", "json", "-"], input=broken, capture_output=True, text=True, check=False)
    assert {finding["code"] for finding in json.loads(done.stdout)} >= {"DL3008", "DL3025"}


def test_a_pod_is_restricted_and_outlives_its_requests(written):
    pod = manifest(written, "deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    drain = float(re.search(r"SCENARIUM_GATEWAY__DRAIN_S=(\d+)", (written / "Dockerfile").read_text())[1])
    deadline = registry().serve_config(SCENARIO).deadline_ms / 1000
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drain > deadline
    assert pod["terminationGracePeriodSeconds"] > drain + pause
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {
        "SCENARIUM_GATEWAY__OPEN_METRICS": "true",
        "SCENARIUM_GATEWAY__JOBS": "null",
        f"SCENARIUM_{SCENARIO.upper()}__SERVE__REQUIRED": "true",
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} == {"tmp", "data", "keys", "store"}


def test_the_parts_name_each_other(written):
    deployment, service, hpa = (manifest(written, name) for name in ("deployment", "service", "hpa"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == manifest(written, "pdb")["spec"]["selector"]["matchLabels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (rule,) = manifest(written, "prometheus-adapter")["rules"]["custom"]
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    listed = manifest(written, "kustomization")["resources"]
    assert set(listed) == {path.name for path in (written / "k8s").iterdir()} - {"kustomization.yaml", "prometheus-adapter.yaml"}


def test_the_rule_speaks_of_a_metric_that_exists(written):
    from scenarium.gateway.metrics import STEPS, GatewayCollector

    (rule,) = manifest(written, "prometheus-adapter")["rules"]["custom"]
    families = {family.name for family in GatewayCollector({}).collect()}
    names = re.findall(r"(scenarium_\w+?)_(?:sum|count)\{step=\"(\w+)\"", rule["seriesQuery"] + rule["metricsQuery"])
    assert len(names) == 3
    assert {name for name, _ in names} <= families
    assert {step for _, step in names} <= set(STEPS)


def test_only_what_was_named_is_in_the_image_and_pinned_as_it_is_here(written):
    lines = (written / "requirements.txt").read_text().split()
    extensions = {f"{plugin.distribution}=={plugin.version}" for plugin in registry().extension_plugins if plugin.distribution != "scenarium"}
    assert set(lines[1:]) == {"scenarium-credit-risk==0.1.0", *extensions}
    assert lines[0].startswith("scenarium[redis]==")
    pinned = dict(line.split("==") for line in (written / "constraints.txt").read_text().split())
    assert {"scenarium", "scenarium-credit-risk", "xgboost-cpu", "numpy", "pydantic-core", "uvicorn", "redis"} <= set(pinned)
    assert not {"pytest", "mypy", "torch", "scenarium-fraud-text", "scenarium-chatbot"} & set(pinned)
    for name, version in pinned.items():
        assert importlib.metadata.version(name).partition("+")[0] == version
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert need.name.lower().replace("_", "-").replace(".", "-") in pinned, f"{name} needs {need.name}"


def test_settings_of_serving_come_along_and_secrets_do_not(written):
    everything = "".join(path.read_text() for path in written.rglob("*") if path.is_file())
    assert "secret@host" not in everything
    assert f"SCENARIUM_{SCENARIO.upper()}__SERVE__WORKERS='2'" in everything
    environment = dict(re.findall(r"(SCENARIUM_\w+)='?([^' \n]*)'?", (written / "Dockerfile").read_text()))
    settings = Settings.read(environ={**environment, "SCENARIUM_STORE": environment["SCENARIUM_STORE"]})
    assert settings.store_url == "/store"
    assert registry_of(settings).serve_config(SCENARIO).workers == 2
    assert settings.table("gateway")["keep_alive_s"] == 7
    ignored = (written / ".dockerignore").read_text().split("\n")
    assert [line for line in ignored if line and not line.startswith(("#", "!"))] == ["*"]
    copied = re.findall(r"^COPY (?!--from)(.+) /", (written / "Dockerfile").read_text(), re.M)
    assert {name.rstrip("/") for line in copied for name in line.split()[: line.count(" ") + 1]} - {""} == {
        line[1:] for line in ignored if line.startswith("!")
    }


def registry_of(settings):
    return Registry(settings)


@pytest.mark.parametrize("value", ["it's", "a\\b", '"', "$HOME", "${X:-y}", "真"])
def test_any_value_of_a_setting_survives(tmp_path, value):
    """Between single quotes a Dockerfile's ENV takes everything as it is, backslashes and dollars too."""
    write(tmp_path / "out", registry(f"scenarios.{SCENARIO}.serve.device={json.dumps(value)}"), Options([SCENARIO]))
    text = re.search(r"__SERVE__DEVICE='([^'\n]*)'", (tmp_path / "out" / "Dockerfile").read_text())[1]
    assert registry_of(Settings.read(environ={f"SCENARIUM_{SCENARIO.upper()}__SERVE__DEVICE": text})).serve_config(SCENARIO).device == value


def test_a_store_behind_a_url_needs_no_volume(tmp_path):
    write(tmp_path / "out", registry(), Options([SCENARIO], store="s3://bucket/store", service_monitor=True))
    pod = manifest(tmp_path / "out", "deployment")["spec"]["template"]["spec"]
    assert "store" not in {volume["name"] for volume in pod["volumes"]}
    assert "SCENARIUM_STORE='s3://bucket/store'" in (tmp_path / "out" / "Dockerfile").read_text()
    assert not (tmp_path / "out" / "k8s" / "store.yaml").exists()
    assert "servicemonitor.yaml" in manifest(tmp_path / "out", "kustomization")["resources"]
    for name in ("deployment", "service", "pdb", "hpa"):
        kubernetes_validate.validate(manifest(tmp_path / "out", name), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "Bad Image"},
        {"image": "a\nb"},
        {"cpu": "two"},
        {"cpu": "0"},
        {"memory": "4"},
        {"memory": "4Gi\n        x: y"},
        {"store": "relative"},
        {"store": "/st'ore"},
        {"max_replicas": 1},
    ],
)
def test_options_that_no_manifest_may_hold(tmp_path, changes):
    with pytest.raises(ScenariumError) as caught:
        write(tmp_path / "out", registry(), Options([SCENARIO], **changes))
    assert caught.value.code == "SCN-1201"
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_in_an_image(tmp_path):
    with pytest.raises(ScenariumError) as caught:
        write(tmp_path / "out", registry(), Options(["chatbot"]))
    assert caught.value.code == "SCN-1203"
    single = Registry(Settings.read(environ={}), {"unit": Plugin("unit", str(UNIT), "scenarium-unit", "0.1.0")})
    with pytest.raises(ScenariumError) as caught:
        write(tmp_path / "out", single, Options())
    assert caught.value.code == "SCN-1204"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(ScenariumError) as caught:
        write(tmp_path / "out", registry(), Options([SCENARIO]))
    assert caught.value.code == "SCN-1202"


def test_the_command(tmp_path):
    done = CliRunner().invoke(root, ["containerize", str(tmp_path / "out"), "--cpu", "500m", "--memory", "1Gi"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out" / "Dockerfile") in done.stdout
    assert "chatbot" in done.stderr
    assert manifest(tmp_path / "out", "deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("text", "most"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("400000 100000", 4), ("", None), ("nonsense", None), ("1 0", None)]
)
def test_cores_of_a_cgroup(monkeypatch, tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(devices, "CPU_MAX", tmp_path / "cpu.max")
    own = len(os.sched_getaffinity(0))
    assert devices.cores() == (own if most is None else min(own, most))


# ── a gateway in a container ──────────────────────────────────────────────────────────────────────────────────────────────

SCRIPT = """
set -e
root=$1; store=$2; uid=$3; shift 3
mount -t tmpfs -o mode=755,size=1m tmpfs "$root"
bind() { mkdir -p "$root$2"; mount --rbind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
mkdir "$root/tmp" "$root/data" "$root/proc" "$root/dev" "$root/sys"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/tmp"
for folder in $SHOWN; do [ -e "$folder" ] && bind "$folder" "$folder"; done
bind "$store" "$store"
mount -t tmpfs -o size=64m,mode=700,uid="$uid",gid="$uid" tmpfs "$root/data"
mount -t tmpfs -o size=1m,mode=755 tmpfs "$root/sys"
mkdir -p "$root/sys/fs/cgroup"; echo "100000 100000" > "$root/sys/fs/cgroup/cpu.max"
for device in null zero urandom; do : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/shm"; mount -t tmpfs -o size=1m,mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -o remount,ro "$root"
[ -z "$GROUP" ] || echo $$ > "$GROUP/cgroup.procs"
exec chroot "$root" setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all env -i PATH=/usr/bin:/bin \
  HOME=/tmp XDG_CACHE_HOME=/tmp/cache XDG_DATA_HOME=/data "$@"
"""
"""A container by hand: what a runtime does with the image's settings, as process 1 of new namespaces."""


def shown():
    """What the image would hold: the system's libraries, the interpreter, this project."""
    places = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", sys.base_prefix, sys.prefix, str(ROOT)]
    found: list[str] = []
    for place in map(os.path.abspath, places):
        if not any(place == other or place.startswith(f"{other}/") for other in found):
            found.append(place)
    return " ".join(found)


@pytest.fixture
def contained(lab, tmp_path):
    """Starts a gateway in a container; gives it, and its process number out here."""
    missing = [tool for tool in ("unshare", "setpriv", "chroot") if not shutil.which(tool)]
    if missing or os.geteuid() or subprocess.run(["unshare", "-mp", "-f", "true"], check=False).returncode:
        pytest.fail(f"making namespaces needs root with CAP_SYS_ADMIN, and the system's tools (missing: {', '.join(missing) or 'none'})")
    for folder in (tmp_path, *tmp_path.parents[:3]):  # another user may pass through
        if folder != Path("/tmp"):
            os.chmod(folder, 0o755)
    lab.publish("unit")
    (tmp_path / "root").mkdir()
    started = []

    def start(group=""):
        script = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]
        inside = ["env", f"SHOWN={shown()}", f"GROUP={group}", *script, str(tmp_path / "root"), lab.store.root, str(UID)]
        gateway = lab.start({"unit": "unit"}, "gateway.keys=null", "gateway.jobs=/data/jobs.sqlite", inside=inside)
        started.append(gateway)
        gateway.ready("unit")
        return gateway, int(Path(f"/proc/{gateway.popen.pid}/task/{gateway.popen.pid}/children").read_text())

    yield start
    for gateway in started:
        gateway.popen.kill()  # unshare passes no other signal on


def zombies(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(ppid) == parent:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_a_gateway_is_process_one_of_a_read_only_container(lab, contained):
    gateway, pid = contained()
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"NSpid:\s+\d+\s+1\n", status)
    assert re.search(rf"Uid:\s+{UID}\s+{UID}\s", status)
    assert re.search(r"CapEff:\s+0+\n", status)
    with pytest.raises(OSError, match="Read-only"):
        (Path(f"/proc/{pid}/root") / "x").write_text("")
    assert gateway.ask("unit", "answer").json()["text"] == "answer"
    (worker,) = gateway.client.get("/admin/status").json()["scenarios"][0]["workers"]
    assert worker["threads"] == 1  # one core of cpu.max, whatever the machine has
    job = gateway.client.post("/scenarios/unit/jobs", json={"text": "job"}).json()
    lab.until(lambda: gateway.client.get(job["result"]).status_code == 200)

    assert gateway.ask("unit", "x", do="orphan").status_code == 200
    lab.until(lambda: len(gateway.processes()) > 4, 1)  # unshare, gateway, zygote, worker, and the orphan
    lab.until(lambda: zombies(pid), 5)
    lab.until(lambda: not zombies(pid), 5)

    inner = next(p for p in gateway.processes() if f"\t{worker['pid']}\n" in Path(f"/proc/{p}/status").read_text().split("NSpid:")[1].split("Ns")[0])
    os.kill(inner, signal.SIGKILL)
    assert gateway.ask("unit", "again").status_code == 200

    processes = gateway.processes()
    os.kill(pid, signal.SIGTERM)
    assert gateway.popen.wait(20) == 0
    assert not lab.alive(processes)


@pytest.fixture
def memory_group():
    """A cgroup that may use 600 MB."""
    for base, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = base / f"scenarium-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(600 * 2**20))
            yield str(group)
            return
        except OSError:
            continue
        finally:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
    pytest.fail("no cgroup with a memory controller that may be written")


@pytest.mark.slow
def test_a_request_that_eats_the_containers_memory_fails_alone(contained, memory_group):
    gateway, pid = contained(memory_group)
    before = gateway.ask("unit").json()["pid"]
    eaten = gateway.ask("unit", "x", do="grow")
    assert (eaten.status_code, eaten.json()["code"]) == (500, "SCN-4009")
    after = gateway.ask("unit", "still here")
    assert after.status_code == 200
    assert after.json()["pid"] != before
    os.kill(pid, signal.SIGTERM)
    assert gateway.popen.wait(20) == 0
