"""What people see of a data set: the screen, the HTML page, the figures."""
