"""What the two cluster files promise; that the launcher's one starts MLflow is in tests/cluster."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCHER, KUBERAY = ROOT / "cluster.yaml", ROOT / "cluster.kuberay.yaml"
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")
# In a shell a missing value must be told, and none may stand in for it.
REQUIRED = re.compile(r"\$\{(\w+):\?\}")
USED = re.compile(r"\$\{?(\w+)")
SECRETS = {"RAY_AUTH_TOKEN", "PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"}


def launcher() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(LAUNCHER.read_text())
    return settings


def kuberay() -> dict[str, dict[str, Any]]:
    """The manifest's documents by kind and name."""
    documents = yaml.safe_load_all(KUBERAY.read_text())
    return {f"{doc['kind']}/{doc['metadata']['name']}": doc for doc in documents}


def shells() -> dict[str, str]:
    """Every command line that starts something."""
    settings = launcher()
    started = settings["head_start_ray_commands"][1:] + settings["worker_start_ray_commands"][1:]
    server = kuberay()["Deployment/robustfront-mlflow"]["spec"]["template"]["spec"]["containers"]
    return {"head": started[0], "mlflow": started[1], "worker": started[2]} | {
        "mlflow in a pod": server[0]["args"][0]
    }


def leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for name, part in value.items() for leaf in leaves(part, str(name))]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part, key)]
    return [(key, value)]


def test_trials_run_on_spot_machines_that_come_and_go() -> None:
    settings = launcher()
    worker = settings["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0 < worker["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert settings["available_node_types"]["head"]["resources"] == {"CPU": 0}
    cluster = kuberay()["RayCluster/robustfront"]["spec"]
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    assert "spot" in group["template"]["spec"]["nodeSelector"].values()
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("path", [LAUNCHER, KUBERAY], ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    assert not re.search(r"://[^\s/\"']+:[^\s/\"'$]+@", path.read_text()), (
        "a password in an address"
    )
    for document in yaml.safe_load_all(path.read_text()):
        for key, value in leaves(document):
            if SECRET.search(key.upper()):
                assert key == "secretName", f"{key}: {value}"
    if path is KUBERAY:
        texts = [v for d in kuberay().values() for k, v in leaves(d) if k == "value"]
        assert set(texts) == {"token", "false", "/etc/mlflow/auth.ini"}
        head = kuberay()["RayCluster/robustfront"]["spec"]["headGroupSpec"]["template"]["spec"]
        refs = [env for env in head["containers"][0]["env"] if SECRET.search(env["name"])]
        assert refs and all("secretKeyRef" in env["valueFrom"] for env in refs)


def test_a_missing_secret_stops_the_start_with_its_name() -> None:
    for name, text in shells().items():
        required = set(REQUIRED.findall(text))
        assert required & SECRETS, name
        for variable in set(USED.findall(text)) & (SECRETS | {"ROBUSTFRONT_ARTIFACTS"}):
            assert variable in required, f"{name}: {variable} may be missing"
        check = re.sub(r"(exec mlflow|ray start|\(nohup).*", "echo started", text)
        check = re.sub(r"\. ~/robustfront.env", "true", check)
        check = re.sub(r"MLFLOW_AUTH_CONFIG_PATH=~\S+ && printf .*", "echo started", check)
        for missing in sorted(required):
            given = {variable: "x" for variable in required if variable != missing}
            done = subprocess.run(
                ["bash", "-c", check], env=given, capture_output=True, text=True, check=False
            )
            assert done.returncode != 0 and "started" not in done.stdout, f"{name}: {missing}"
            assert missing in done.stderr
        whole = subprocess.run(
            ["bash", "-c", check],
            env=dict.fromkeys(required, "x"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert whole.stdout.strip() == "started", whole.stderr


def test_mlflow_asks_who_is_there_and_keeps_nothing_on_the_head() -> None:
    for name in ("mlflow", "mlflow in a pod"):
        text = shells()[name]
        for part in (
            "--app-name basic-auth",
            "--backend-store-uri postgresql+psycopg://",
            '--artifacts-destination "$ROBUSTFRONT_ARTIFACTS"',
        ):
            assert part in text
    assert "--host 127.0.0.1" in shells()["mlflow"]
    ini = kuberay()["ConfigMap/robustfront-mlflow"]["data"]["auth.ini"]
    assert "database_uri = postgresql+psycopg://\n" in ini
    assert ini == shells()["mlflow"].split("printf '")[1].split("'")[0].replace("\\n", "\n")


def test_the_cluster_s_own_doors_are_closed() -> None:
    for name in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in shells()[name]
    assert "--dashboard-host=127.0.0.1" in shells()["head"]
    ray = kuberay()["RayCluster/robustfront"]["spec"]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    for group in groups:
        container = group["template"]["spec"]["containers"][0]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": "robustfront"}}]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/shared"}]
