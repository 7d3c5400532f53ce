"""Help texts: every command and option has one, and none needs torch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from aimgraph.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path, groups included."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name
            yield from commands(found, (*path, name))


PATHS = [path for path, _ in commands()]

_ASKS = """
import sys
from aimgraph.cli.main import cli
for arguments in {arguments}:
    try:
        cli.main([*arguments], prog_name="aimgraph")
    except SystemExit as ended:
        print("ended", ended.code, [name for name in ("torch", "numpy", "pydantic", "networkx") if name in sys.modules])
"""


def test_there_are_commands() -> None:
    assert len(PATHS) > 15
    assert {("plan",), ("zoo", "check"), ("experiment", "run"), ("memory", "merge")} < set(PATHS)


def test_no_help_and_no_typo_imports_torch() -> None:
    """In one process, after each: what an earlier one had imported would be seen, too."""
    asked = [(*path, "--help") for path in PATHS] + [("--version",)]
    asked += [("exprot",), ("plan", "zoo/mlp", "--shap"), ("plan", "zoo/mlp", "--read", "resise"), ("zoo", "chek")]
    code = _ASKS.format(arguments=asked)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert ended == ["ended 0 []"] * (len(PATHS) + 1) + ["ended 2 []"] * 4


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=[" ".join(path) or "aimgraph" for path in PATHS])
def test_every_command_and_option_says_what_it_does(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, path
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, (path, option.name)
            assert option.help[0].isupper() or option.help.startswith(("png", "JSON")), (path, option.name)
            plain = option.is_flag or isinstance(option.type, click.Choice) or option.metavar
            named = isinstance(option.type, click.Path) or option.name == "source"
            assert plain or named, (path, option.name, "says not what to give")


def test_the_list_of_commands_says_what_their_help_says() -> None:
    own = {path[0]: command.get_short_help_str(200) for path, command in commands() if len(path) == 1}
    assert {name: about.rstrip(".") for name, about in own.items()} == {
        name: about.rstrip(".") for name, (_, about) in COMMANDS.items()
    }
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    for name, (_, about) in COMMANDS.items():
        assert f"  {name}" in shown
        assert about in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["exprot"], "Did you mean 'export'"),
        (["zoo", "chek"], "Did you mean 'check'?"),
        (["memory", "lst"], "Did you mean 'list'?"),
        (["plan", "zoo/mlp", "--shap", "3"], "'--shape'"),
        (["plan", "zoo/mlp", "--lowering", "splt"], "Did you mean 'split'?"),
        (["plan", "zoo/mlp", "--source", "coordinate"], "Did you mean 'coordinates'?"),
        (["zoo", "check", "--level", "numerics"], "Did you mean 'numeric'?"),
    ],
)
def test_close_names_are_told(arguments: list[str], near: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert near in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("zoo/mpl", "near misses: mlp"),
        ("torchvision/resnet19", "near misses: resnet1"),
        ("timm/vit_tiny_patch16", "near misses: vit_tiny_patch16_"),
        ("tim/resnet18", "did you mean timm/resnet18?"),
    ],
)
def test_close_names_of_models_are_told(model: str, near: str) -> None:
    error = CliRunner().invoke(cli, ["plan", model]).exception
    assert near in str(error)
