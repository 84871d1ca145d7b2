"""The launch examples: what they start is a command of ours, and what must be shared is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

from mkd_fast.cli import app
from mkd_fast.cli_common import overrides
from mkd_fast.train.config import load

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"


def pod():
    job = yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())
    return job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]


def command_of_slurm():
    text = (LAUNCH / "slurm.sbatch").read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^srun (torchrun.*) &$", text, re.MULTILINE)[1])


def command_of_kubernetes():
    return pod()[1]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("command", [command_of_slurm(), command_of_kubernetes()])
def test_torchrun_and_the_cli_know_the_command(command):
    assert command[0] == "torchrun"
    arguments = [word.replace("$SLURM_NNODES", "2") for word in command[1:]]
    started = get_args_parser().parse_args(arguments)
    assert (started.module, started.training_script) == (True, "mkd_fast")
    name, *rest = started.training_script_args
    with get_command(app).get_command(None, name).make_context(name, rest) as context:
        settings = overrides(context.params["set_"])
    assert load(ROOT / "recipes" / "massive.toml", settings).train.parallel == "ddp"


def test_slurm_s_script_is_one():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sbatch"], check=True)
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert f"--nproc-per-node={options['gpus-per-node']}" in command_of_slurm()
    assert options["signal"].startswith("B:TERM@")


def test_pods_share_a_volume_and_are_started_again():
    spec, worker = pod()
    container = worker["template"]["spec"]["containers"][0]
    assert spec["elasticPolicy"]["minReplicas"] == worker["replicas"]
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    home = {entry["name"]: entry["value"] for entry in container["env"]}["MKD_FAST_HOME"]
    shared = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["work"]
    assert home.startswith(shared)
    assert container["workingDir"] == shared
    assert worker["restartPolicy"] == "OnFailure"
