"""What people see of a data set: the screen, the HTML page, the figures."""

import logging

# What it says of its own cache, in a home that cannot be written, is nobody's business: reports are the same without.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
