# SPDX-License-Identifier: MIT
"""What scripts/bench is made of.

peers      servers under test, their folders, checkouts of other commits
workloads  what fio does, and the rounds in which every peer does it
ext4       the same with a filesystem on the device
sizes      devices of 1 GiB to 16 TiB; starts, cold and warm
figures    medians, ratios and spreads of what was measured, and the bars
compare    what is slower or faster than it was, beyond the noise of both
records    the history: one file a commit
tables     what a reader sees
"""
