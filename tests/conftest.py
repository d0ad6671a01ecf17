"""Shared by all tests: two threads, and the shape check of names such as tokens_BT."""

import torch

torch.set_num_threads(2)
