"""A worker that starts in milliseconds: it speaks as rlhf_lab.worker does, and does what RUN_DIR/run.json tells it to.

{"does": […], "stages": {name: [folder, seconds]}}, of which `does` lists one act for each time that the run is started
(the last one for all further times): done, raise, die, segv, hang, child, disk_full.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

asked = []
busy = [False]


def on_signal(number, frame):
    if asked or not busy[0]:
        os._exit(128 + number)
    asked.append(number)


def status(run_dir, **values):
    temporary = run_dir / f".status.{os.getpid()}"
    temporary.write_text(json.dumps(values))
    temporary.rename(run_dir / "status.json")


def note(run_dir, what):
    with open(run_dir.parents[1] / "notes.jsonl", "a") as file:
        seen = {"cuda": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}
        file.write(json.dumps({"run": run_dir.name, "what": what, "at": time.time(), "pid": os.getpid(), **seen}) + "\n")


def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked:
        time.sleep(0.01)


def run(run_dir):
    order = json.loads((run_dir / "run.json").read_text())
    before = len((run_dir / "starts").read_text()) if (run_dir / "starts").exists() else 0
    (run_dir / "starts").write_text("x" * (before + 1))
    act = order["does"][min(before, len(order["does"]) - 1)]
    status(run_dir, status="running", pid=os.getpid())
    note(run_dir, "begins")
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if act in ("hang", "child"):
        child = subprocess.Popen(["sleep", "1000"], start_new_session=act == "child")
        (run_dir / "child").write_text(str(child.pid))
        while True:
            time.sleep(1)
    for folder, seconds in order["stages"].values():
        folder = pathlib.Path(folder)
        if not (folder / "COMMIT").exists():
            note(run_dir, f"computes {folder.name}")
            wait(seconds)
            if asked:
                return status(run_dir, status="interrupted", error="asked to")
            folder.mkdir(exist_ok=True)
            (folder / "COMMIT").write_text("{}")
    note(run_dir, "ends")
    if act == "raise":
        return status(run_dir, status="failed", error="KeyError: 'x'")
    if act == "disk_full":
        return status(run_dir, status="failed:disk_full", error="OSError: no space")
    return status(run_dir, status="done")


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
if "--serve" in sys.argv:
    for line in sys.stdin:
        busy[0] = True
        run(pathlib.Path(line.rstrip("\n")))
        print(json.dumps({"event": "finished"}), flush=True)
        if asked:
            break
        busy[0] = False
else:
    busy[0] = True
    run(pathlib.Path(sys.argv[1]))
