"""Launchers: what each leaves for a process, simulated: variables, and Cloud TPU's metadata."""

import http.server
import socket
import threading

import pytest
from jax._src.clusters import cloud_tpu_cluster, k8s_cluster

from vit_jax.errors import ConfigError
from vit_jax.parallel import launchers
from vit_jax.parallel.launchers import Membership, find

EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "head:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2",
}  # fmt: skip
TORCHRUN = {
    "MASTER_ADDR": "head", "MASTER_PORT": "29500", "RANK": "9", "WORLD_SIZE": "16",
    "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8",
}  # fmt: skip
# As Open MPI 5.0.11 and 4.1.4 and Slurm 22.05 set them.
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_NAMESPACE": "prterun-head-node-4221@1",
}  # fmt: skip
OPEN_MPI_4 = {
    **OPEN_MPI_5, "PMIX_NAMESPACE": "471138305",
    "OMPI_MCA_orte_hnp_uri": "471138304.0;tcp://192.0.2.2:47565;tcp6://[fd00::2]:58309",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08],gpu11",
    "SLURM_NTASKS": "20", "SLURM_PROCID": "10", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_STEP_NUM_NODES": "3",
}  # fmt: skip
SBATCH = {
    "SLURM_JOB_ID": "4097", "SLURM_NTASKS": "20", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[07-08],gpu11",
}  # fmt: skip
ALL_GPUS = "0,1,2,3,4,5,6,7"
POD = {
    "agent-worker-number": "2",
    "worker-network-endpoints": ",".join(f"unknown:u:10.0.0.{i}" for i in range(1, 5)),
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
}
SLICES = {
    "tpu-env": "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'\nMEGASCALE_NUM_SLICES: '2'\n"
    "MEGASCALE_SLICE_ID: '1'\n"
}
GKE_SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.7", "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1", "TPU_WORKER_ID": "0",
}  # fmt: skip


class Metadata:
    """A stand-in for Google Cloud's metadata server; `asked` lists the keys that it was asked."""

    def __init__(self, address):
        self.address, self.values, self.asked = address, {}, []

    def answer(self, path):
        self.asked.append(key := path.rpartition("/")[2])
        return self.values.get(key)


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = metadata.answer(self.path)
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        metadata = Metadata(f"127.0.0.1:{served.server_port}")
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield metadata
        served.shutdown()


@pytest.fixture
def metadata(server):
    server.values, server.asked = {}, []
    return server


@pytest.fixture
def host(monkeypatch, metadata):
    """Sets up this host: its variables, and whether it has TPUs and Google Cloud's metadata."""

    def set_up(variables, values=None, *, platforms=None):
        for name in (*EXPLICIT, "TPU_SKIP_MDS_QUERY", "JAX_COORDINATOR_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"GCE_METADATA_IP": metadata.address, **variables}.items():
            monkeypatch.setenv(name, value)
        is_tpu = values is not None or any(name.startswith("TPU_") for name in variables)
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", is_tpu)
        metadata.values = values or {}
        allowed = {"cuda", "tpu", "cpu"} if platforms is None else platforms
        monkeypatch.setattr(launchers, "_may_use", lambda *names: bool(allowed & set(names)))

    return set_up


CASES = {
    "explicit": (EXPLICIT, None, Membership("JAX_COORDINATOR_ADDRESS", "head:1234", 4, 2)),
    "explicit, in a job": (
        SRUN | TORCHRUN | EXPLICIT, None, Membership("JAX_COORDINATOR_ADDRESS", "head:1234", 4, 2),
    ),
    "address alone": (
        SRUN | {"JAX_COORDINATOR_ADDRESS": "x:1"}, None, Membership("Slurm", "x:1", 20, 10),
    ),
    "torchrun": (
        TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, None,
        Membership("torchrun", "head:29501", 16, 9),
    ),
    "torchrun, GPUs": (
        TORCHRUN | {"CUDA_VISIBLE_DEVICES": ALL_GPUS}, None,
        Membership("torchrun", "head:29500", 16, 9, (1,)),
    ),
    "torchrun in a job": (
        SRUN | TORCHRUN | {"JAX_COORDINATOR_PORT": "99"}, None,
        Membership("torchrun", "head:99", 16, 9),
    ),
    "Kubeflow, a process a node": (
        {k: v for k, v in TORCHRUN.items() if "LOCAL" not in k} | {"CUDA_VISIBLE_DEVICES": "0,1"},
        None, Membership("torchrun", "head:29500", 16, 9),
    ),
    "Open MPI 4": (OPEN_MPI_4, None, Membership("Open MPI", "192.0.2.2:61776", 4, 3)),
    "Open MPI 5": (OPEN_MPI_5, None, Membership("Open MPI", "head-node:61565", 4, 3)),
    "Open MPI 5, one host": (
        OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"},
        None, Membership("Open MPI", "localhost:61565", 4, 3),
    ),
    "mpirun in a job": (
        SRUN | OPEN_MPI_5 | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None,
        Membership("Open MPI", "head-node:61565", 4, 3, (2, 3)),
    ),
    "srun": (SRUN, None, Membership("Slurm", "gpu07:61441", 20, 10)),
    "srun --gpus-per-task=1": (
        SRUN | {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "8"}, None,
        Membership("Slurm", "gpu07:61441", 20, 10),
    ),
    "srun --gpus-per-task=2": (
        SRUN | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "16"}, None,
        Membership("Slurm", "gpu07:61441", 20, 10),
    ),
    "srun, a task a GPU, all visible": (
        SRUN | {"CUDA_VISIBLE_DEVICES": ALL_GPUS, "SLURM_GPUS_ON_NODE": "8"}, None,
        Membership("Slurm", "gpu07:61441", 20, 10, (2,)),
    ),
    "srun, a task a node": (
        SRUN | {
            "CUDA_VISIBLE_DEVICES": ALL_GPUS, "SLURM_GPUS_ON_NODE": "8", "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
        },
        None, Membership("Slurm", "gpu07:61441", 3, 1),
    ),
    "local devices by hand": (
        SRUN | {"CUDA_VISIBLE_DEVICES": ALL_GPUS, "JAX_LOCAL_DEVICE_IDS": "5"}, None,
        Membership("Slurm", "gpu07:61441", 20, 10),
    ),
    "TPU VM pod": ({}, POD, Membership("the metadata of Cloud TPU", "10.0.0.1:8482", 4, 2)),
    "queued slices of TPU VMs": (
        {}, POD | SLICES, Membership("the metadata of Cloud TPU", "10.0.0.1:8482", 8, 6),
    ),
    "GKE, hosts": (
        {"TPU_WORKER_HOSTNAMES": "10.0.0.3,10.0.0.4", "TPU_WORKER_ID": "1"},
        {"tpu-env": ""}, Membership("GKE", "10.0.0.3:8482", 2, 1),
    ),
    "GKE, addresses": (
        {"TPU_PROCESS_ADDRESSES": "10.0.0.3:8471,10.0.0.4:8471", "TPU_WORKER_ID": "1"},
        {"tpu-env": ""}, Membership("GKE", "10.0.0.3:8482", 2, 1),
    ),
    "GKE JobSet, slices of one host": (
        GKE_SLICES | {"TPU_WORKER_HOSTNAMES": "10.0.0.9"}, None,
        Membership("GKE", "10.0.0.7:8482", 2, 1),
    ),
    "GKE JobSet, slices of two hosts": (
        GKE_SLICES | {"TPU_WORKER_HOSTNAMES": "10.0.0.9,10.0.0.10", "TPU_WORKER_ID": "1"}, None,
        Membership("GKE", "10.0.0.7:8482", 4, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_launcher_tells_a_process_its_place(host, case):
    variables, values, expected = CASES[case]
    host(variables, values)
    assert find(1) == expected


ALONE = {
    "a laptop": {},
    "a batch script without srun": SBATCH | {"CUDA_VISIBLE_DEVICES": ALL_GPUS},
    "srun with one task": SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    "torchrun with one process, in a job of several": SRUN | TORCHRUN | {"WORLD_SIZE": "1"},
    "mpirun with one process": OPEN_MPI_5 | {"OMPI_COMM_WORLD_SIZE": "1"},
    "told to be alone": SRUN | {"JAX_NUM_PROCESSES": "1"},
    "GKE with one TPU host": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "a pod that is in no indexed job": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
}


@pytest.mark.parametrize("case", ALONE)
def test_a_single_process_joins_none_and_asks_no_server(host, metadata, case, capsys):
    host(ALONE[case])
    assert find(1) is None
    assert metadata.asked == [] and capsys.readouterr().err == ""


def test_a_single_tpu_vm_runs_alone(host, metadata):
    host({}, POD | {"agent-worker-number": "0", "worker-network-endpoints": "unknown:u:10.0.0.1"})
    assert find(1) is None
    assert metadata.asked


def test_a_pod_whose_tpus_are_not_used_is_not_asked(host, metadata):
    host({}, POD, platforms={"cpu"})
    assert find(1) is None and metadata.asked == []


def test_a_tpu_host_without_metadata_runs_alone_and_says_so(host, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host({"GCE_METADATA_IP": f"127.0.0.1:{closed.getsockname()[1]}"}, {})
    assert find(1) is None
    assert "note: the metadata of Cloud TPU did not answer" in capsys.readouterr().err


JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}


@pytest.fixture
def kubernetes(monkeypatch):
    """JAX's detection of Kubernetes jobs, as if its package were installed: 4 pods, this is 3."""
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name)
    answers = {
        "is_env_present": True, "get_process_count": 4, "get_process_id": 3,
        "get_coordinator_address": "job-0.jobset:55527", "get_local_process_id": None,
    }  # fmt: skip
    for name, answer in answers.items():
        method = classmethod(lambda cls, answer=answer, **_: answer)
        monkeypatch.setattr(k8s_cluster.K8sCluster, name, method)


def test_kubernetes_tells_the_pods_of_an_indexed_job(host, kubernetes):
    host(JOB)
    assert find(1) == Membership("Kubernetes", "job-0.jobset:55527", 4, 3)


def test_without_rights_in_kubernetes_the_error_names_the_variables(host, kubernetes, monkeypatch):
    def forbidden(cls):
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden")

    monkeypatch.setattr(k8s_cluster.K8sCluster, "get_process_count", classmethod(forbidden))
    host(JOB)
    with pytest.raises(ConfigError, match=r"403.*JAX_COORDINATOR_ADDRESS.*JAX_NUM_PROCESSES=1"):
        find(1)


def test_without_the_package_a_pod_runs_alone_and_says_so(host, monkeypatch, capsys):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    host(JOB)
    assert find(1) is None
    assert "note: this pod of an indexed job runs alone" in capsys.readouterr().err


WRONG = {
    "JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID": {
        "JAX_COORDINATOR_ADDRESS": "head:1234"
    },
    "set JAX_COORDINATOR_ADDRESS as well": {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"},
    "JAX_PROCESS_ID=4 of JAX_NUM_PROCESSES=4: .* from 0": EXPLICIT | {"JAX_PROCESS_ID": "4"},
    "JAX_NUM_PROCESSES='four': it must be": EXPLICIT | {"JAX_NUM_PROCESSES": "four"},
    "JAX_COORDINATOR_ADDRESS='head': write HOST:PORT": EXPLICIT
    | {"JAX_COORDINATOR_ADDRESS": "head"},
    "one of 4 processes that MPICH": {"PMI_SIZE": "4", "PMI_RANK": "1"},
    "RANK are set, as torchrun sets them: set MASTER_PORT and WORLD_SIZE": {
        "MASTER_ADDR": "head",
        "RANK": "0",
    },
    "torchrun numbers this process 16 of 16: .* from 0 to 15": TORCHRUN | {"RANK": "16"},
    "JAX_COORDINATOR_PORT='http': it must be": TORCHRUN | {"JAX_COORDINATOR_PORT": "http"},
    "OMPI_COMM_WORLD_RANK='': it must be": {
        "OMPI_COMM_WORLD_SIZE": "4",
        "PMIX_NAMESPACE": "prterun-head-node-4221@1",
    },
    "number this process 8 of 8 on its host": TORCHRUN
    | {"LOCAL_RANK": "8", "CUDA_VISIBLE_DEVICES": ALL_GPUS},
    "number this process 2 of 0 on its host": SRUN
    | {"SLURM_NODEID": "3", "CUDA_VISIBLE_DEVICES": ALL_GPUS},
    "8 processes of this host share 3 GPUs": SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused_with_the_fix(host, message):
    host(WRONG[message])
    with pytest.raises(ConfigError, match=message):
        find(1)
