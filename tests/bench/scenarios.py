"""The scenarios: archive, backup, restore. Called by run.sh, which has built and installed what they need.

Each makes a throwaway cluster with pgbench's tables (which compress far too well) and random values (which do not
compress at all), and measures this tool, floors made of standard tools, and pgBackRest where it is installed, on
the same data.
"""

import os
import shutil
import sys
import tempfile
import time

from measure import (
    User,
    bytes_below,
    everything_below,
    interleave,
    peak_floor,
    print_table,
    run,
    shell,
    summary,
    synced,
    write_json,
)

MEGABYTE = 1_000_000
# Two thirds of the cluster are pgbench's (15 MB a unit of scale), a third is random.
SIZE_MB = int(os.environ.get("PGP_BENCH_MB", "1200"))
SEGMENTS = int(os.environ.get("PGP_BENCH_SEGMENTS", "20"))
ROUNDS = int(os.environ.get("PGP_BENCH_ROUNDS", "5"))


class Bench:
    """A folder with our binaries, one running cluster, and a way to run things in it."""

    def __init__(self, work):
        self.work = work
        self.user = User()
        self.log = self.path("log")
        self.data = self.path("data")
        self.postgres = os.environ["PGP_BENCH_POSTGRES"]
        self.peer = shutil.which("pgbackrest")
        os.chmod(work, 0o755)
        self.user.give(work)
        # Where the server's user can run them, whatever folder cargo builds in.
        os.mkdir(self.path("bin"))
        for name in ("pgp-pitr", "pgp-archive", "pgp-restore"):
            shutil.copy(os.path.join(os.environ["PGP_BENCH_BUILT"], name), self.path("bin"))

    def path(self, *names):
        return os.path.join(self.work, *names)

    def folder(self, *names):
        path = self.path(*names)
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, mode=0o700)
        self.user.give(path)
        return path

    def run(self, *argv, **how):
        env = {"PGHOST": self.work, "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres"}
        return run(self.user, list(argv), **{"log": self.log, "env": env, "cwd": self.work, **how})

    def shell(self, script, **how):
        return shell(self.user, script, **{"log": self.log, "cwd": self.work, **how})

    def tool(self, name, *arguments, **how):
        return self.run(os.path.join(self.postgres, name), *arguments, **how)

    def ours(self, name, *arguments, **how):
        return self.run(self.path("bin", name), *arguments, **how)

    def sql(self, text):
        answer = self.path("answer")
        self.tool("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, stdout=answer)
        return open(answer).read().strip()

    def start_cluster(self, archive_command):
        self.tool("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--data-checksums", "--no-sync")
        with open(self.path("data", "postgresql.conf"), "a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.work}'\nshared_buffers = '256MB'\n"
                f"wal_keep_size = '100GB'\nmax_wal_size = '1GB'\nsynchronous_commit = off\nautovacuum = off\n"
                f"archive_mode = on\narchive_command = '{archive_command}'\n"
            )
        self.tool("pg_ctl", "start", "-w", "-D", self.data, "-l", self.path("server.log"))

    def stop_cluster(self):
        if os.path.exists(self.path("data", "postmaster.pid")):
            self.tool("pg_ctl", "stop", "-m", "immediate", "-D", self.data)

    def load(self, megabytes):
        scale = max(1, megabytes * 2 // 3 // 15)
        print(f"loading pgbench at scale {scale} and {megabytes // 3} MB of random values", file=sys.stderr)
        self.tool("pgbench", "-i", "-q", "-s", str(scale))
        columns = ", ".join(f"gen_random_uuid() as u{n}" for n in range(8))
        # 8 values of 16 bytes and 32 bytes around them.
        rows = max(1, megabytes * MEGABYTE // 3 // 160)
        self.sql(f"create table noise as select {columns} from generate_series(1, {rows})")
        self.sql("checkpoint")

    def make_wal(self, segments):
        """Real work, one statement in ten writing random values, until so many segments are full. Their names."""
        noise = self.path("noise.sql")
        with open(noise, "w") as script:
            script.write("insert into noise select * from noise limit 4;\n")
        os.chmod(noise, 0o644)
        first = self.sql("checkpoint; select pg_walfile_name(pg_switch_wal())")
        while True:
            self.tool("pgbench", "-c", "4", "-T", "3", "-n", "-b", "tpcb-like@9", "-f", f"{noise}@1")
            last = self.sql("select pg_walfile_name(pg_current_wal_lsn())")
            full = [name for name in os.listdir(self.path("data", "pg_wal")) if len(name) == 24 and first < name < last]
            if len(full) >= segments:
                return sorted(full)[:segments]

    def wait_archived(self):
        name = self.sql("select pg_walfile_name(pg_switch_wal())")
        for _ in range(6000):
            if self.sql(f"select coalesce(last_archived_wal, '') >= '{name}' from pg_stat_archiver") == "t":
                return
            time.sleep(0.1)
        sys.exit("the server could not archive its WAL; see " + self.path("server.log"))

    def pgbackrest(self, command, *arguments, **how):
        # By environment: a flag that a command has no use for is an error, a variable is not.
        settings = {
            "CONFIG": "/dev/null",
            "STANZA": "bench",
            "PG1_PATH": self.data,
            "PG1_SOCKET_PATH": self.work,
            "REPO1_PATH": self.pgbackrest_repository,
            "REPO1_RETENTION_FULL": "99",
            "LOCK_PATH": self.path("lock"),
            "LOG_LEVEL_FILE": "off",
            "LOG_LEVEL_CONSOLE": "error",
            "COMPRESS_TYPE": "zst",
            "COMPRESS_LEVEL": "3",
            "START_FAST": "y",
            "ARCHIVE_CHECK": "n",
        }
        env = {f"PGBACKREST_{name}": value for name, value in settings.items()}
        return self.run(self.peer, command, *arguments, env=env, **how)

    def make_pgbackrest_repository(self):
        self.pgbackrest_repository = self.folder("pgbackrest")
        self.pgbackrest("stanza-create")


def archive(bench):
    """One 16 MiB segment, pushed and fetched, process start included."""
    bench.start_cluster("true")
    bench.load(min(SIZE_MB, 300))
    segments = bench.make_wal(SEGMENTS)
    repository, floors, fetched = bench.path("repository"), bench.folder("floors"), bench.folder("fetched")
    bench.ours("pgp-pitr", "init", "--repo", repository)

    def zstd(round_):
        out = os.path.join(floors, segments[round_] + ".zst")
        cost = bench.run("zstd", "-q", "-1", "-T1", source(round_), "-o", out)
        cost.stored = os.path.getsize(out)
        return synced(cost, [out, floors])

    def copy(round_):
        out = os.path.join(floors, segments[round_])
        cost = bench.run("cp", source(round_), out)
        cost.stored = os.path.getsize(out)
        return synced(cost, [out, floors])

    def source(round_):
        return os.path.join(bench.data, "pg_wal", segments[round_])

    def push(round_):
        before = bytes_below(repository)
        cost = bench.ours("pgp-archive", f"pg_wal/{segments[round_]}", "--repo", repository, cwd=bench.data)
        cost.stored = bytes_below(repository) - before
        return cost

    candidates = {"zstd -1 -T1 + fsync": zstd, "cp + fsync": copy, "pgp-archive": push}
    if bench.peer:
        bench.make_pgbackrest_repository()

        def peer(round_):
            before = bytes_below(bench.pgbackrest_repository)
            cost = bench.pgbackrest("archive-push", source(round_))
            cost.stored = bytes_below(bench.pgbackrest_repository) - before
            return cost

        candidates["pgBackRest zst 3"] = peer
    pushed = interleave(candidates, len(segments))
    pushed.update(interleave({"pgp-archive, the same again": push}, len(segments)))
    bench.stop_cluster()

    def target(round_, who):
        return os.path.join(fetched, f"{segments[round_]}.{who}")

    def unzstd(round_):
        out = target(round_, "zstd")
        return synced(bench.run("zstd", "-q", "-d", os.path.join(floors, segments[round_] + ".zst"), "-o", out), [out, fetched])

    def fetch(round_):
        return bench.ours("pgp-restore", segments[round_], target(round_, "ours"), "--repo", repository)

    gets = {"zstd -d + fsync": unzstd, "pgp-restore": fetch}
    if bench.peer:
        gets["pgBackRest archive-get"] = lambda round_: bench.pgbackrest("archive-get", segments[round_], target(round_, "peer"))
    got = interleave(gets, len(segments))
    for round_ in range(len(segments)):
        if open(target(round_, "ours"), "rb").read() != open(source(round_), "rb").read():
            sys.exit(f"{segments[round_]} came back with other content")
    return [
        ("push one segment of 16 MiB to a folder", summary(pushed, "zstd -1 -T1 + fsync"), "zstd -1 -T1 + fsync"),
        ("fetch one segment of 16 MiB from a folder", summary(got, "zstd -d + fsync"), "zstd -d + fsync"),
    ]


def prepared_for_backups(bench):
    """A loaded cluster that archives into whatever repository `current` leads to."""
    repository = bench.folder("repository")
    bench.ours("pgp-pitr", "init", "--repo", repository)
    link = bench.path("current")
    os.symlink(repository, link)
    bench.start_cluster(f"{bench.path('bin', 'pgp-archive')} %p --repo {link}")
    bench.load(SIZE_MB)
    bench.wait_archived()
    return link


def tar_of(bench, out):
    """What a copy of the files costs, with nothing of PostgreSQL in the way."""
    excluded = "--exclude=./pg_wal/* --exclude=./postmaster.pid"
    cost = bench.shell(f"tar -C {bench.data} {excluded} -cf - . | zstd -q -1 -T1 -o {out}")
    cost.stored = os.path.getsize(out)
    return synced(cost, [out, os.path.dirname(out)])


def backup(bench):
    """A full backup of an idle cluster to a folder. The server's own CPU is in no row but tar's."""
    link = prepared_for_backups(bench)
    conninfo = f"host={bench.work} port=5432 user=postgres"

    def ours(round_):
        repository = bench.folder(f"repository-{round_}")
        bench.ours("pgp-pitr", "init", "--repo", repository)
        os.remove(link)
        os.symlink(repository, link)
        bench.sql("checkpoint")
        cost = bench.ours("pgp-pitr", "backup", "-d", conninfo, "--repo", repository, "--checkpoint", "fast")
        cost.stored = bytes_below(repository)
        shutil.rmtree(repository)
        os.makedirs(repository)
        bench.user.give(repository)
        bench.ours("pgp-pitr", "init", "--repo", repository)
        return cost

    def nowhere(round_):
        bench.sql("checkpoint")
        return bench.tool("pg_basebackup", "-Ft", "-D", "-", "-X", "none", "-c", "fast")

    def tar(round_):
        out = bench.path("floor.tar.zst")
        cost = tar_of(bench, out)
        os.remove(out)
        return cost

    candidates = {"tar | zstd -1 -T1 + fsync": tar, "pg_basebackup to nowhere": nowhere, "pgp-pitr backup": ours}
    if bench.peer:
        bench.make_pgbackrest_repository()

        def peer(round_):
            before = bytes_below(bench.pgbackrest_repository)
            bench.sql("checkpoint")
            cost = bench.pgbackrest("backup", "--type=full")
            cost.stored = bytes_below(bench.pgbackrest_repository) - before
            return cost

        candidates["pgBackRest zst 3"] = peer
    costs = interleave(candidates, ROUNDS)
    title = f"full backup of {bytes_below(bench.data) / MEGABYTE:.0f} MB (WAL included) to a folder"
    bench.stop_cluster()
    return [
        (title, summary(costs, "tar | zstd -1 -T1 + fsync"), "tar | zstd -1 -T1 + fsync"),
        ("the same", summary(costs, "pg_basebackup to nowhere"), "pg_basebackup to nowhere"),
    ]


def restore(bench):
    """A full restore into an empty directory, every file synced; no replay."""
    link = prepared_for_backups(bench)
    repository = os.path.realpath(link)
    bench.ours("pgp-pitr", "backup", "-d", f"host={bench.work} port=5432 user=postgres", "--repo", repository)
    bench.wait_archived()
    tarball = bench.path("floor.tar.zst")
    tar_of(bench, tarball)
    if bench.peer:
        bench.make_pgbackrest_repository()
        bench.pgbackrest("backup", "--type=full")
    bench.stop_cluster()

    def into_empty(make):
        def one(round_):
            target = bench.folder("restored")
            cost = make(target)
            cost.stored = bytes_below(target)
            shutil.rmtree(target)
            # What one candidate left to be written must not be charged to the next.
            os.sync()
            return cost

        return one

    def untar(target):
        return synced(bench.shell(f"zstd -q -dc {tarball} | tar -C {target} -xf -"), everything_below(target))

    def ours(target):
        return bench.ours("pgp-pitr", "restore", "--repo", repository, "--to", target, "--latest")

    candidates = {"zstd -d | tar -x + fsync": into_empty(untar), "pgp-pitr restore": into_empty(ours)}
    if bench.peer:
        candidates["pgBackRest zst 3"] = into_empty(lambda target: bench.pgbackrest("restore", f"--pg1-path={target}"))
    costs = interleave(candidates, ROUNDS)
    return [("full restore from a folder", summary(costs, "zstd -d | tar -x + fsync"), "zstd -d | tar -x + fsync")]


SCENARIOS = {"archive": archive, "backup": backup, "restore": restore}


def main():
    scenario = sys.argv[1]
    work = tempfile.mkdtemp(prefix="pgp-bench-", dir=os.environ.get("PGP_BENCH_DIR", "/var/tmp"))
    bench = Bench(work)
    try:
        tables = SCENARIOS[scenario](bench)
        floor = peak_floor(bench.user)
    finally:
        bench.stop_cluster()
        shutil.rmtree(work)
    for title, rows, of in tables:
        print_table(title, rows, of)
    print(f"\npeak MB: the lowest figure possible here is {floor / 1e6:.1f}")
    if not bench.peer:
        print("pgBackRest is not installed and left out")
    document = {
        "scenario": scenario,
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "tables": [{"title": title, "floor": of, "rows": rows} for title, rows, of in tables],
    }
    write_json(os.environ["PGP_BENCH_JSON"], document)


if __name__ == "__main__":
    main()
