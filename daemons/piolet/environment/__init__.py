"""`--environment`: the definition language (EDF), the image store, the container."""
