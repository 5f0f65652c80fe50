"""Two real processes, as `torchrun` starts them, against one with the same batch."""

import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from bonemet_auto.commands import plan_and_preprocess
from bonemet_auto.errors import UsageError
from bonemet_auto.training.distributed import World
from tests.cohort import write_cohort

NAME = "Dataset001_Tiny"
IN_FLOAT64 = """
import torch
torch.set_default_dtype(torch.float64)
torch.float32 = torch.float64  # whatever names it at run time
torch.Tensor.float = torch.Tensor.double
from bonemet_auto.model import precision
precision.has_bfloat16 = lambda device: False
from bonemet_auto.model.mask_rcnn import MaskRCNN
look = MaskRCNN.look
MaskRCNN.look = lambda self, images, generator=None: look(self, images.double(), generator)
"""
"""In float32 the order of sums shows: it turns single choices among proposals after few steps."""

START = "from bonemet_auto.commands.train import main; raise SystemExit(main())"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = 12
TIMES = ("step_s", "loader_wait_s")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    write_cohort(root / "raw" / NAME, n_cases=10)
    flags = ["-d", "1", "--root", str(root), "--planner", "fast", "--patch-size", "16", "16", "24"]
    assert plan_and_preprocess.main(flags) == 0
    return root


def start(root, *flags, processes=1, script=START, check=True):
    """Run the command, in one process or under torchrun, one thread each."""
    file = root / "start.py"
    file.write_text(script)
    command = [sys.executable] if processes == 1 else TORCHRUN
    given = ["1", "1", "--root", str(root), "--workers", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(file), *given], env=environment, check=check, capture_output=True, text=True
    )


def fold(root):
    return root / "results" / NAME / "default" / "fold_1"


def copy_of(prepared, place):
    shutil.copytree(prepared, place)
    return place


def test_two_processes_learn_what_one_does(prepared, tmp_path):
    tables, weights = [], []
    for processes in (1, 2):
        root = copy_of(prepared, tmp_path / str(processes))
        done = start(
            root, "--iterations", str(STEPS), processes=processes, script=IN_FLOAT64 + START
        )
        tables.append(pd.read_csv(fold(root) / "metrics.csv").drop(columns=[*TIMES]))
        weights.append(torch.load(fold(root) / "checkpoint_last.pt", weights_only=True)["model"])
        assert (fold(root) / "operating_point.json").is_file()
        assert done.stderr.count("epoch 1 of 1") == 1, "only the first process speaks"
    pd.testing.assert_frame_equal(*tables, rtol=2e-6)  # six digits are written
    assert {weight.dtype for weight in weights[0].values()} == {torch.float64}
    torch.testing.assert_close(*weights, rtol=0, atol=1e-8)


def test_gradients_are_averaged_and_what_nobody_has_stays_none(prepared, tmp_path):
    script = (
        "import os, torch\n"
        "from bonemet_auto.training.distributed import join_world\n"
        "with join_world(torch.device('cpu')) as world:\n"
        "    weights = torch.nn.ParameterList(torch.zeros(2) for _ in range(3))\n"
        "    weights[0].grad = torch.full((2,), world.rank + 1.0)\n"
        "    if world.rank == 1:\n"
        "        weights[1].grad = torch.ones(2)\n"
        "    world.average_gradients(weights)\n"
        "    grads = [w.grad if w.grad is None else w.grad.tolist() for w in weights]\n"
        "    mean = world.average({'a': torch.tensor(float(world.rank))})['a'].item()\n"
        "    said = world.anybody(world.rank == 1), world.anybody(False)\n"
        "    line = f'{grads} {mean} {said[0]} {said[1]} {world.from_leader(world.rank)}\\n'\n"
        "    os.write(1, line.encode())\n"  # at once: the other process writes there, too
    )
    done = start(tmp_path, processes=2, script=script)
    expected = "[[1.5, 1.5], [0.5, 0.5], None] 0.5 True False 0"
    assert done.stdout.splitlines() == [expected] * 2


def test_two_processes_stop_together_and_resume_to_the_same_weights(prepared, tmp_path):
    straight = copy_of(prepared, tmp_path / "straight")
    start(straight, "--iterations", "12", processes=2)
    stopped = copy_of(prepared, tmp_path / "stopped")
    begin = (
        "from bonemet_auto.training.trainer import Trainer\n"
        "import os, signal\n"
        "step = Trainer.step\n"
        "def told(self, number, batch):\n"
        "    if number == 4 and self.world.rank == 1 and self.total_steps == 12:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, number, batch)\n"
        "Trainer.step = told\n"
    )
    done = start(stopped, "--iterations", "12", processes=2, script=begin + START, check=False)
    assert done.returncode != 0 and "stopped by another process after step 5 of 12" in done.stderr
    start(stopped, "--resume", processes=2)
    one, other = (
        torch.load(fold(root) / "checkpoint_last.pt", weights_only=True)["model"]
        for root in (straight, stopped)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_death_of_a_process_ends_the_run_with_its_traceback(prepared, tmp_path):
    root = copy_of(prepared, tmp_path / "root")
    begin = (
        "from bonemet_auto.training.trainer import Trainer\n"
        "step = Trainer.step\n"
        "def dies(self, number, batch):\n"
        "    if number == 3 and self.world.rank == 1:\n"
        "        raise RuntimeError('the second process is lost')\n"
        "    return step(self, number, batch)\n"
        "Trainer.step = dies\n"
    )
    began = time.monotonic()
    done = start(root, "--iterations", "12", processes=2, script=begin + START, check=False)
    assert done.returncode != 0 and "the second process is lost" in done.stderr
    assert "Traceback" in done.stderr
    assert time.monotonic() - began < 120


def test_a_batch_that_cannot_be_shared_is_refused():
    assert [list(World(rank, 2).share_of(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match="batch of 4 windows cannot be shared by 3"):
        World(0, 3).share_of(4)
