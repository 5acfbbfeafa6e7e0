# SPDX-License-Identifier: MIT
"""Reports: one HTML file that opens anywhere and asks the network for nothing.

======== ===================================================================================================
curves   counters to what is drawn: Lorenz curves, bins, quantiles; exact, numpy alone
wearmap  counters to the cells of a heat map
figures  arrays and dicts to figures; knows nothing of images
words    numbers as people read them, rounded against us
page     sections, tables and figures to HTML
drawn    sections of an image's report that have a figure
disk     the report of an image
======== ===================================================================================================

Only this package imports matplotlib and jinja2, and only the verbs `report`, `study` and `pagemaps` import it.
"""

import os

from .. import codecache

# Without a home that can be written to, matplotlib would warn, and look for fonts anew each time.
os.environ.setdefault("MPLCONFIGDIR", str(codecache.FOLDER.parent / "matplotlib"))
