"""What bench/device_check.py runs on a machine with a GPU: stages, each a process of its own.

The parent (``run``) imports no torch and touches no device. A stage appends what it measures to one file,
a JSON object per line (``records``), as it goes; the report is made from those lines alone.
"""
