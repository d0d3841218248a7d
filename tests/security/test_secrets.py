"""Tokens in the environment, in the remote of the repository and of a reward server: none of them is in the results."""

import json
import shutil
import subprocess

import pandas as pd
import pytest
from hostile_server import reply, serving
from micro_spec import SPEC, lab, write_spec

TOKENS = {
    "HF_TOKEN": "hf_faketokenfaketokenfaketoken",
    "GITHUB_TOKEN": "ghp_faketokenfaketokenfaketoken",
    "RLHF_LAB_KEY_JUDGE": "sk-faketokenfaketokenfaketoken",
}
IN_THE_REMOTE = "glpat-faketokenfaketoken"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_no_token_is_in_the_results(tmp_path, monkeypatch):
    """One run that succeeds, and one against a server that repeats the key in everything it says."""
    for name, token in TOKENS.items():
        monkeypatch.setenv(name, token)
    echo = reply(f"no, Bearer {TOKENS['RLHF_LAB_KEY_JUDGE']}", "500 no")
    with serving(reply("", "503 busy")) as good, serving(otherwise=echo) as bad:
        reward = "{{name: http, url: '{}', key_variable: RLHF_LAB_KEY_JUDGE, pause: 0, retries: 1}}"
        arms = f"arms:\n  good: {{rl.reward: {reward.format(good.url)}}}\n  bad: {{rl.reward: {reward.format(bad.url)}}}"
        path = write_spec(tmp_path, SPEC, axes="axes: {}", seeds="seeds: [0]", arms=arms)
        for command in (
            ["init", "-q"],
            ["remote", "add", "origin", f"https://me:{IN_THE_REMOTE}@example.org/a.git"],
            ["add", "."],
        ):
            subprocess.run(["git", "-C", tmp_path, *command], check=True)
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"], check=True)
        hosts = ["--allow-host", good.host, "--allow-host", bad.host]
        result = lab("run", path, "--out", tmp_path / "out", "--json", "rl.steps=2", *hosts)
    outcome = json.loads(result.stdout)
    assert result.exit_code == 1 and len(outcome["done"]) == 1 and "[key]" in next(iter(outcome["failed"].values()))
    assert all(f"Bearer {TOKENS['RLHF_LAB_KEY_JUDGE']}" in head for head in good.heads + bad.heads)
    results = tmp_path / "out" / "tiny"
    exported = lab("export", results, "--out", tmp_path / "archive")
    shown = "".join(lab("show", run, "--results", results, "--samples", 9).stdout for run in outcome["done"])
    tables = "".join(pd.read_parquet(path).to_csv() for path in results.glob("*.parquet"))
    log = "".join(path.read_text() for path in results.glob("runs/*/log.txt"))
    assert "asking again" in log and "git_revision" in tables
    content = b"\n".join(
        path.read_bytes() for root in (results, tmp_path / "archive") for path in root.rglob("*") if path.is_file()
    )
    everything = content + (shown + tables + result.stdout + result.stderr + exported.stdout).encode()
    for secret in (*TOKENS.values(), IN_THE_REMOTE):
        assert secret.encode() not in everything
    assert len(everything) > 100_000
    scored = pd.read_parquet(results / "steps.parquet").query("stage == 'rl' and split == 'train'")
    lengths = [len(text) for asked in good.asked[1:] for text in asked["responses"]]
    assert min(lengths) <= scored["reward_proxy"].min() and scored["reward_proxy"].max() <= max(lengths), "it was the server's"
