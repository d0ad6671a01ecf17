"""Shared by all tests: two threads that wait without spinning, since test machines are shared."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

torch.set_num_threads(2)
