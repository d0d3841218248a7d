"""The interop group: this project beside other systems, in an environment of its own (requirements.txt).

Every test here is marked `interop` and skips itself where the other system is not installed.
"""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
