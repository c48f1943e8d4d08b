"""Environment of every process that compares with the recorded outputs, set before torch starts."""

import os

# The recorded outputs come from AVX2 kernels; others differ from them by as much as some tests allow.
os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as scripts/cog_server.py
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # processes side by side share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))
