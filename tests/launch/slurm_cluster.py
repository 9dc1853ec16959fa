"""A real Slurm on this machine, for tests: controller, node and munge, with all its state in one directory.

Needs Debian's slurm-wlm and munge, and root. Nothing outside the directory is written but munge's socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MUNGE_SOCKET = Path("/run/munge/munge.socket.2")
CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


NODE = "NodeName={name} NodeAddr={address} Port={port} CPUs={cores} RealMemory=4000 State=UNKNOWN"


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting Slurm's daemons needs root"


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 1) -> Iterator[dict[str, str]]:
    """A running cluster; the value is the environment that its commands need.

    Nodes after the first one are further daemons on this machine, which Debian's build allows where names and addresses
    differ; their names lead nowhere.
    """
    # The first host of a job must have a name that leads to it; to Slurm, localhost is the same as every other name.
    here = socket.gethostname()
    names = ["localhost"] if nodes == 1 else [here, *(f"{here}-{n}" for n in range(2, nodes + 1))]
    for name in ("state", *(f"spool-{name}" for name in names)):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    lines = [
        NODE.format(name=name, address=f"127.0.0.{n + 1}", port=16818 + n, cores=os.cpu_count())
        for n, name in enumerate(names)
    ]
    conf.write_text(CONF.format(folder=folder, nodes="\n".join(lines), names=",".join(names)))
    environment = {"SLURM_CONF": str(conf)}
    daemons = []
    try:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
            MUNGE_SOCKET.unlink(missing_ok=True)  # of a daemon that was killed
            MUNGE_SOCKET.parent.mkdir(exist_ok=True)
            shutil.chown(MUNGE_SOCKET.parent, "munge", "munge")
            daemons.append(
                _start("setpriv", "--reuid=munge", "--regid=munge", "--init-groups", shutil.which("munged"), "-F")
            )
            _until(MUNGE_SOCKET.exists, "munged")
        daemons.append(_start("slurmctld", "-D", "-f", str(conf)))
        time.sleep(1)
        daemons += [_start("slurmd", "-D", "-f", str(conf), "-N", name) for name in names]
        _until(lambda: _output(["sinfo", "-h", "-N", "-o", "%t"], environment).split() == ["idle"] * nodes, "slurmd")
        yield environment
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["scancel", "--full", "-u", "root"], env={**os.environ, **environment}, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()


def _start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    ).stdout


def _until(holds, what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not start"
        time.sleep(0.2)
