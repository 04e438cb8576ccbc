"""The image store: references, pulls, conversion to SquashFS, and the service that owns the site's store."""
