"""README, cluster.yaml and .ci/run say what is true."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from robustfront import cli, config
from robustfront.attacks import ATTACKS
from robustfront.data import DATA
from robustfront.methods import METHODS
from robustfront.models import MODELS
from robustfront.search.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_readme_names_the_two_commands_and_ci_runs_the_second():
    commands = re.findall(r"```sh\n(.+?)\n```", README)
    assert commands[0] == "pip install uv && uv run robustfront run jobs/quickstart.yaml"
    assert "uv run pytest" in commands
    assert (ROOT / "jobs" / "quickstart.yaml").is_file()
    assert "uv run pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_readme_lists_every_component():
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", README, re.MULTILINE))
    expected = {
        "data": DATA.classes,
        "model": MODELS.classes,
        "method": METHODS.classes,
        "evaluate.attack": ATTACKS.classes,
        "search.sampler": SAMPLERS,
    }
    for part, names in expected.items():
        assert len(names) >= 2
        missing = [name for name in names if f"`{name}`" not in rows[part]]
        assert not missing, f"README's row {part} lacks {missing}"


def test_readme_mentions_every_command():
    commands = [command.callback.__name__ for command in cli.app.registered_commands]
    assert len(commands) >= 7
    assert not [name for name in commands if f"robustfront {name}" not in README]


def test_readme_mentions_every_job():
    jobs = sorted((ROOT / "jobs").glob("*.yaml"))
    assert len(jobs) >= 15
    assert not [path.name for path in jobs if f"jobs/{path.name}" not in README]


def test_changelog_lists_every_command():
    text = (ROOT / "CHANGELOG.md").read_text()
    listed = re.search(r"^- Commands (.+?)\.$", text, re.MULTILINE | re.DOTALL).group(1)
    commands = {command.callback.__name__ for command in cli.app.registered_commands}
    assert set(re.findall(r"`(\w+)`", listed)) == commands


def test_the_job_in_the_readme_is_valid(tmp_path, monkeypatch):
    text = re.search(r"```yaml\n(name: my_front.+?)```", README, re.DOTALL).group(1)
    space = re.search(r"```yaml\n(method\.type:.+?)```", README, re.DOTALL).group(1)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text(
        text.replace("type: mnist, root: ../data", "type: digits")
    )
    (tmp_path / "search_spaces" / "trades.yaml").write_text(space)
    monkeypatch.chdir(tmp_path)
    settings = [
        "--set",
        "data.train_size=1000",
        "--set",
        "data.val_size=200",
        "--set",
        "model.type=mlp",
    ]
    result = CliRunner().invoke(cli.app, ["validate", "jobs/job.yaml", *settings])
    assert result.exit_code == 0, result.output
    assert "32 (tpe" in result.output


def test_changelog_has_an_unreleased_section_first():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_cluster_yaml_passes_rays_own_validation():
    from ray.autoscaler._private.util import prepare_config, validate_config

    settings = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(settings))
    broken = {**settings, "available_node_types": {"head": {"resources": {"GPU": 0.5}}}}
    with pytest.raises(Exception, match="0.5|node_config"):
        validate_config(prepare_config(broken))


def test_every_job_is_named_after_its_file():
    jobs = sorted((ROOT / "jobs").glob("*.yaml"))
    assert len(jobs) >= 2
    for path in jobs:
        assert config.read_settings(path, {})["name"] == path.stem
