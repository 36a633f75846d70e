"""Runs commands and tells what they cost: wall time, CPU seconds, peak memory, bytes written.

Candidates are interleaved: each round runs every one of them once, in an order that moves on by one from round to
round, so that what else the machine does hits all of them alike. Compare rows of one table, not tables.
"""

import json
import os
import sys
import time


class Cost:
    """What one run took. Peak memory has a floor: what this interpreter itself needs (see `peak_floor`)."""

    def __init__(self, wall, cpu, peak, stored=0):
        self.wall, self.cpu, self.peak, self.stored = wall, cpu, peak, stored


class User:
    """Whom commands run as: PostgreSQL refuses root."""

    def __init__(self, name="postgres"):
        self.ids = None
        if os.getuid() == 0:
            import pwd

            account = pwd.getpwnam(name)
            self.ids = (account.pw_uid, account.pw_gid)

    def give(self, path):
        if self.ids:
            os.chown(path, *self.ids)

    def become(self):
        if self.ids:
            os.setgroups([])
            os.setgid(self.ids[1])
            os.setuid(self.ids[0])


def run(user, argv, cwd="/", env=None, stdout=None, log=None):
    """Runs a command to its end and returns its Cost, that of all it started included. A failure ends the bench."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/tmp", **(env or {})}
    out = os.open(stdout or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else out
    if stdout:
        user.give(stdout)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            user.become()
            os.chdir(cwd)
            os.execvpe(argv[0], argv, environment)
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    os.close(out)
    if log:
        os.close(err)
    if status != 0:
        tail = open(log).read()[-2000:] if log else ""
        sys.exit(f"failed ({os.waitstatus_to_exitcode(status)}): {' '.join(argv)}\n{tail}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def shell(user, script, **how):
    """As `run`, for a pipeline."""
    return run(user, ["bash", "-c", "set -euo pipefail; " + script], **how)


def synced(cost, paths):
    """Adds to `cost` what it takes to make these files and folders durable."""
    began, cpu = time.monotonic(), time.process_time()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    cost.wall += time.monotonic() - began
    cost.cpu += time.process_time() - cpu
    return cost


def everything_below(folder):
    """Every file and folder, the innermost first: the order in which to make a tree durable."""
    found = [folder]
    for parent, folders, files in os.walk(folder):
        found += [os.path.join(parent, name) for name in folders + files]
    return [path for path in reversed(found) if not os.path.islink(path)]


def bytes_below(folder):
    return sum(os.path.getsize(path) for path in everything_below(folder) if os.path.isfile(path))


def interleave(candidates, rounds):
    """Runs {name: function of the round's number} in turn; returns {name: list of Cost}."""
    costs = {name: [] for name in candidates}
    names = list(candidates)
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(candidates[name](round_))
            print(f"  round {round_ + 1} of {rounds}: {name}: {costs[name][-1].wall:.3f} s", file=sys.stderr)
    return costs


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def peak_floor(user):
    """What the smallest possible program is charged for: memory of this interpreter before it became that program."""
    return run(user, ["true"]).peak


def summary(costs, floor):
    """{name: medians}, with ratios to the candidate named `floor`. Peak memory is the highest seen."""
    rows = {}
    for name, several in costs.items():
        rows[name] = {
            "runs": len(several),
            "wall_s": median([cost.wall for cost in several]),
            "cpu_s": median([cost.cpu for cost in several]),
            "peak_bytes": max(cost.peak for cost in several),
            "stored_bytes": median([cost.stored for cost in several]),
        }
    for row in rows.values():
        row["wall_ratio"] = row["wall_s"] / rows[floor]["wall_s"]
        row["cpu_ratio"] = row["cpu_s"] / max(rows[floor]["cpu_s"], 1e-6)
    return rows


def print_table(title, rows, floor):
    print(f"\n{title}; ratios to: {floor}")
    width = max(len(name) for name in rows)
    print(f"{'':{width}}  runs   wall s   ratio    CPU s   ratio  peak MB  stored MB")
    for name, row in rows.items():
        print(
            f"{name:{width}}  {row['runs']:4}  {row['wall_s']:7.3f}  {row['wall_ratio']:6.2f}  {row['cpu_s']:7.3f}"
            f"  {row['cpu_ratio']:6.2f}  {row['peak_bytes'] / 1e6:7.1f}  {row['stored_bytes'] / 1e6:9.2f}"
        )


def write_json(path, document):
    with open(path, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    print(f"\nwritten: {path}")
