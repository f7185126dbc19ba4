"""The reward service on Ray Serve: two replicas of nano over HTTP on loopback. One start for the whole file."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from tiny import make_image

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.serving import Limits, RemoteReward, RewardServer, ServeConfig, ServingError

pytestmark = pytest.mark.integration

if find_spec("ray") is None:  # looked for only: its environment must be set before it is imported
    pytest.skip("the extra serve is not installed", allow_module_level=True)

TOKEN = "a-token-for-tests-only"
REQUESTS = 16
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
SIZES = ((56, 56), (84, 56), (56, 112), (70, 90))
LIMITS = Limits(max_held_bytes=80 << 20, max_body_bytes=16 << 20, batch_pixels=40_000, compute_timeout_s=120.0)


def mixed(count):
    """Images of several sizes, every second one as 8 bits, which travel as PNG."""
    images = [make_image(k, *SIZES[k % len(SIZES)]) for k in range(count)]
    return [(image * 255).round() / 255 if k % 2 else image for k, image in enumerate(images)]


@pytest.fixture(scope="module")
def server():
    config = ServeConfig(port=0, replicas=2, threads=1, tokens=(TOKEN,), limits=LIMITS)
    others = set(children(os.getpid()))  # such as the fork server of another file's tests
    with RewardServer(config) as running:
        processes = [pid for pid in children(os.getpid()) if pid not in others]
        yield running
    assert processes, "Ray started no process that could be left"
    deadline = time.monotonic() + 60
    while (left := [pid for pid in processes if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == [], "Ray left processes behind"


@pytest.fixture(scope="module")
def local():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the replicas
    yield ZoomIQAReward(ZoomIQA.from_pretrained("nano"))
    torch.set_num_threads(before)


@pytest.fixture
def remote(server):
    with RemoteReward(server.url, token=TOKEN) as found:
        yield found


def children(pid):
    """Every process below `pid`, by what the kernel says."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, grown = {pid}, True
    while grown:
        more = {one for one, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {pid})


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def title(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""


def replica_pids():
    """Serve's replicas of this server; Ray's own list of actors would need its dashboard."""
    return [pid for pid in children(os.getpid()) if title(pid).startswith("ray::ServeReplica") and is_alive(pid)]


def listening(pids):
    """(address, port, both in the kernel's hexadecimal, process) of every socket on which these processes listen."""
    owners = {}
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if target.startswith("socket:["):
                owners[target[8:-1]] = title(pid)[:120]
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in owners:
                    found.add((*fields[1].split(":"), owners[fields[9]]))
    return found


def test_many_mixed_requests_equal_local_scores_bit_for_bit(server, local, remote):
    images = mixed(REQUESTS)
    expected = local(images)
    assert remote.fingerprint == local.fingerprint
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(remote, images))
    assert torch.equal(torch.cat([one.value for one in found]), expected.value)
    assert torch.equal(torch.cat([one.std for one in found]), expected.std)
    together = remote(images)  # and in one call
    assert torch.equal(together.value, expected.value)
    assert together.valid.all()


def test_batching_is_asked_for_and_close(server, local):
    images = mixed(REQUESTS)
    large = make_image(99, 210, 210)  # larger than a whole batch
    large[:, ::2] *= 0.5  # and with edges, or it would count as blurred away
    large[:, 50:120] *= 0.2
    with RemoteReward(server.url, token=TOKEN, batched=True) as batched:
        found = batched([*images, large])
    expected = local([*images, large])
    assert torch.allclose(found.value, expected.value, atol=1e-4, rtol=0)


def test_the_token_is_asked_for_and_info_tells_what_is_served(server, local):
    with pytest.raises(ServingError, match="unauthorized"):
        RemoteReward(server.url, token="another-token-altogether")
    with RemoteReward(server.url, token=TOKEN) as remote:
        assert remote.info["replicas"] == 2
        assert remote.info["threads"] == 1
        assert remote.info["reward"]["model"] == "nano"


def test_nothing_listens_beyond_loopback(server):
    found = listening([os.getpid(), *children(os.getpid())])
    assert len(found) > 3
    # A replica's port between replicas cannot be told to stay on loopback: the next test is about it.
    assert [one for one in found if one[0] not in LOOPBACK and "ServeReplica" not in one[2]] == []


def test_the_port_of_a_replica_unpickles_nothing_from_strangers(server, tmp_path):
    import grpc
    from ray.serve.generated.serve_pb2 import ASGIRequest

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    harm = pickle.dumps(Harm())
    ports = [int(port, 16) for address, port, name in listening(replica_pids()) if address not in LOOPBACK]
    assert ports
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                "/ray.serve.ASGIService/HandleRequest", request_serializer=ASGIRequest.SerializeToString
            )
            with pytest.raises(grpc.RpcError) as caught:
                call(ASGIRequest(pickled_request_metadata=harm, request_args=harm), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "harm").exists()
    pickle.loads(harm)
    assert (tmp_path / "harm").exists()  # so that this test can fail


def test_statistics_stay_at_home(server):
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


def test_a_replica_killed_under_load_gives_no_wrong_answer(server, local, remote):
    images = mixed(8)
    expected = local(images).value
    before = replica_pids()
    assert len(before) == 2
    rounds = []
    stop = threading.Event()

    def load(attempts):
        with RemoteReward(server.url, token=TOKEN, attempts=attempts) as mine:
            while not stop.is_set():
                rounds.append((attempts, mine(images)))

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(load, attempts) for attempts in (1, 4, 4)]
        while len(rounds) < 2:
            time.sleep(0.05)
        os.kill(before[0], signal.SIGKILL)
        killed = len(rounds)
        while len(rounds) < killed + 3:
            time.sleep(0.05)
        stop.set()
        for task in tasks:
            task.result()
    for attempts, found in rounds:
        assert torch.equal(found.value[found.valid], expected[found.valid])
        assert found.value[~found.valid].isnan().all()
        assert {kind for kind in found.info["kinds"] if kind} <= {"replica_died"}
        if attempts > 1:
            assert found.valid.all()
    lost = sum(int((~found.valid).sum()) for attempts, found in rounds if attempts == 1)
    print(f"images lost without retries: {lost}")
    assert torch.equal(remote(images).value, expected)


@pytest.mark.slow  # it starts a second Ray
def test_zoomiqa_serve_says_where_and_stops_when_told(tmp_path):
    """The command in a process of its own; it must not need the model's seconds twice, so it serves a metric."""
    program = (
        "import sys, typer\n"
        "from zoomiqa_reward.cli.serve import serve\n"
        "app = typer.Typer()\n"
        "app.command()(serve)\n"
        "sys.exit(app(standalone_mode=False))\n"
    )
    arguments = ["--reward", "zoomiqa_reward.check.baselines:laplacian", "--port", "0"]
    command = [sys.executable, "-c", program, *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment | {"ZOOMIQA_TOKEN": TOKEN},
    ) as process:  # fmt: skip
        try:
            ready = json.loads(process.stdout.readline())
            processes = children(process.pid)
            with RemoteReward(ready["url"], token=TOKEN) as remote:
                assert remote.fingerprint == ready["fingerprint"]
                assert remote(make_image(0)).value[0] > 0
            process.send_signal(signal.SIGTERM)
            more, talk = process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == 0, talk
    assert more == ""  # Ray's own words are not for stdout
    assert "serving laplacian at http://127.0.0.1:" in talk
    assert [pid for pid in processes if is_alive(pid)] == []
