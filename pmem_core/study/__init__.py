# SPDX-License-Identifier: MIT
"""The study: which leveling migrates descriptor pages properly, measured over placements, units and workloads.

``cells`` says what is run, ``run`` runs it on all cores and goes on where it was interrupted, ``answer`` says in words
what came out, ``write`` puts it into files.
"""
