"""From the text of a spec to validated runs: pure functions of plain data; nothing is computed and nothing written."""
