"""Receiving: catching up, and commits that wait. Called by run.sh, which has built and installed what this needs.

Catching up: the same WAL (pgbench's and random values) to the same disk, by us and by pg_receivewal, each from a slot of
its own. Commits that wait: pgbench with synchronous_standby_names, its median latency held against the median of small
conditional PUTs to the same S3 server in the same run, and its throughput against `pg_receivewal --synchronous`.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from measure import bytes_below, interleave, median, peak_floor, print_table, summary, write_json
from scenarios import MEGABYTE, Bench

WAL_MB = int(os.environ.get("PGP_BENCH_WAL_MB", "1000"))
ROUNDS = int(os.environ.get("PGP_BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("PGP_BENCH_SECONDS", "10"))
KEY, SECRET = "bench", "bench-secret"


class S3:
    """versitygw on a free port, and a client for one kind of request."""

    def __init__(self, bench):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = bench.folder("s3")
        os.mkdir(os.path.join(self.folder, "bucket"))
        program = [os.environ["PGP_BENCH_S3"], "--access", KEY, "--secret", SECRET, "--port", f"127.0.0.1:{self.port}"]
        self.server = subprocess.Popen(program + ["posix", self.folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.05)
        self.client = http.client.HTTPConnection("127.0.0.1", self.port)

    def environment(self):
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
        }

    def put(self, name, body):
        """One conditional PUT on an open connection, as long as it took."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp}
        canonical = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
        request = f"PUT\n/bucket/{name}\n\n{canonical}\n{';'.join(sorted(headers))}\n{digest}"
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = f"AWS4{SECRET}".encode()
        for part in (day, "us-east-1", "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={';'.join(sorted(headers))}, Signature={signature}"
        )
        began = time.monotonic()
        self.client.request("PUT", f"/bucket/{name}", body, {**headers, "if-none-match": "*"})
        answer = self.client.getresponse()
        answer.read()
        took = time.monotonic() - began
        if answer.status != 200:
            sys.exit(f"PUT answered {answer.status}")
        return took

    def stop(self):
        self.server.kill()
        self.server.wait()


class Receiver:
    """A receiver that runs beside the measurement."""

    def __init__(self, bench, argv, environment=None):
        user = bench.user.ids
        become = bench.user.become if user else None
        env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "LC_ALL": "C.UTF-8", **(environment or {})}
        log = open(bench.log, "a")
        self.process = subprocess.Popen(argv, env=env, preexec_fn=become, stdout=log, stderr=log, cwd=bench.work)

    def stop(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            peak = re.search(r"VmHWM:\s+(\d+)", status.read())
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return int(peak[1]) * 1024


def connection(bench, name="pgp-pitr"):
    return f"host={bench.work} port=5432 user=postgres application_name={name}"


def catching_up(bench):
    """WAL that lies ready, to the same disk."""
    ours, theirs = "bench_ours", "bench_theirs"
    slots = [f"{slot}{round_}" for slot in (ours, theirs) for round_ in range(ROUNDS)]
    for slot in slots:
        bench.sql(f"select pg_create_physical_replication_slot('{slot}', true)")
    begun = bench.sql("select pg_current_wal_lsn()")
    rows = WAL_MB * MEGABYTE // 3 // 170
    bench.sql(
        f"create table noise as select g, md5(g::text) || md5((-g)::text) || md5((g * 7)::text) as text"
        f" from generate_series(1, {rows}) g"
    )
    while int(bench.sql(f"select pg_current_wal_lsn() - '{begun}'").split(".")[0]) < WAL_MB * MEGABYTE:
        bench.tool("pgbench", "-n", "-c", "4", "-j", "2", "-t", "4000")
    bench.sql("select pg_switch_wal()")
    end = bench.sql("select pg_current_wal_lsn()")
    size = int(bench.sql(f"select '{end}'::pg_lsn - '{begun}'").split(".")[0])

    def we(round_):
        repo = bench.folder("receive", "repo")
        bench.ours("pgp-pitr", "init", "--repo", repo)
        arguments = ["-d", connection(bench), "--slot", f"{ours}{round_}", "--until", end]
        cost = bench.ours("pgp-pitr", "receive", "--repo", repo, "--status-file", bench.path("status"), *arguments)
        cost.stored = bytes_below(repo)
        return cost

    def they(round_):
        folder = bench.folder("receive", "pg_receivewal")
        arguments = ["-D", folder, "-d", connection(bench), "-S", f"{theirs}{round_}", f"--endpos={end}", "--no-loop"]
        cost = bench.tool("pg_receivewal", *arguments)
        cost.stored = bytes_below(folder)
        return cost

    costs = interleave({"pg_receivewal": they, "pgp-pitr receive": we}, ROUNDS)
    for slot in slots:
        bench.sql(f"select pg_drop_replication_slot('{slot}')")
    rows = summary(costs, "pg_receivewal")
    for row in rows.values():
        row["mb_per_s"] = size / MEGABYTE / row["wall_s"]
    return size, rows


def commits(bench, clients):
    """pgbench's latencies in milliseconds, median and mean, and its transactions a second."""
    for old in [name for name in os.listdir(bench.work) if name.startswith("pgbench_log")]:
        os.remove(bench.path(old))
    answer = bench.path("answer")
    script = bench.path("insert.sql")
    with open(script, "w") as file:
        file.write("insert into acknowledged(value) values (random());\n")
    arguments = ["-n", "-f", script, "-c", str(clients), "-j", "2", "-T", str(SECONDS), "-l"]
    bench.tool("pgbench", *arguments, stdout=answer)
    text = open(answer).read()
    times = []
    for name in os.listdir(bench.work):
        if name.startswith("pgbench_log"):
            times += [int(line.split()[2]) for line in open(bench.path(name))]
    tps = float(re.search(r"tps = ([0-9.]+)", text)[1])
    return {"median_ms": median(times) / 1000, "tps": tps}


def waiting(bench, s3):
    """Commits that wait for a receiver."""
    bench.sql("create table if not exists acknowledged(id bigserial, value float8)")
    bench.sql("alter system set synchronous_commit = on")
    rows = {}
    put = [s3.put(f"warm{number}", os.urandom(600)) for number in range(20)]
    put = [s3.put(f"put{number}", os.urandom(600)) for number in range(200)]
    rows["PUT"] = {"median_ms": median(put) * 1000}

    def measure(label, argv, name, environment=None):
        receiver = Receiver(bench, argv, environment)
        try:
            for _ in range(200):
                state = bench.sql(f"select state from pg_stat_replication where application_name = '{name}'")
                if state == "streaming":
                    break
                time.sleep(0.1)
            bench.sql(f"alter system set synchronous_standby_names = '\"{name}\"'")
            bench.sql("select pg_reload_conf()")
            time.sleep(0.5)
            rows[label] = {clients: commits(bench, clients) for clients in (1, 32)}
        finally:
            # First, because a commit that waits for nobody waits for ever.
            bench.sql("alter system reset synchronous_standby_names")
            bench.sql("select pg_reload_conf()")
            rows.setdefault(label, {})["peak_bytes"] = receiver.stop()

    for number, (label, repo, environment) in enumerate(
        [("pgp-pitr, folder", bench.folder("sync", "repo"), None), ("pgp-pitr, S3", "s3://bucket/sync", s3.environment())]
    ):
        bench.ours("pgp-pitr", "init", "--repo", repo, env=environment)
        pitr = [bench.path("bin", "pgp-pitr"), "receive", "--repo", repo, "-d", connection(bench)]
        pitr += ["--slot", f"sync{number}", "--create-slot", "--synchronous", "--status-file", bench.path("status")]
        measure(label, pitr, "pgp-pitr", environment)
    folder = bench.folder("sync", "pg_receivewal")
    bench.sql("select pg_create_physical_replication_slot('sync9', true)")
    theirs = [os.path.join(bench.postgres, "pg_receivewal"), "-D", folder, "-d", connection(bench, "pg_receivewal")]
    measure("pg_receivewal, folder", theirs + ["-S", "sync9", "--synchronous"], "pg_receivewal")
    return rows


def main():
    with tempfile.TemporaryDirectory(prefix="pgp-bench-", dir=os.environ.get("PGP_BENCH_DIR", "/var/tmp")) as work:
        bench = Bench(work)
        s3 = S3(bench)
        try:
            bench.start_cluster("true")
            bench.tool("pgbench", "-i", "-q", "-s", "10")
            size, rows = catching_up(bench)
            floor = peak_floor(bench.user)
            print_table(f"catching up on {size / MEGABYTE:.0f} MB of WAL", rows, "pg_receivewal")
            for name, row in rows.items():
                print(f"{name:20} {row['mb_per_s']:8.0f} MB/s")
            commits_ = waiting(bench, s3)
            print(f"\ncommits that wait; a small PUT takes {commits_['PUT']['median_ms']:.2f} ms (median)")
            theirs = commits_["pg_receivewal, folder"]
            for label, row in commits_.items():
                if label == "PUT":
                    continue
                ratio = row[32]["tps"] / theirs[32]["tps"]
                print(
                    f"{label:24} 1 client {row[1]['median_ms']:6.2f} ms, 32 clients {row[32]['tps']:8.0f} tps"
                    f" ({ratio:.2f}), peak {row['peak_bytes'] / 1e6:.0f} MB"
                )
            over = commits_["pgp-pitr, S3"][1]["median_ms"] - commits_["PUT"]["median_ms"]
            print(f"one client's commit takes {over:.2f} ms more than a PUT")
            document = {"wal_bytes": size, "peak_floor": floor, "catching_up": rows, "commits": commits_}
            write_json(os.environ["PGP_BENCH_JSON"], document)
        finally:
            s3.stop()
            bench.stop_cluster()


if __name__ == "__main__":
    main()
